"""Recall stage: at each checkpoint of a training, whether the model gives the answers that a run asks about.

So queries fall into those that were known before the training, learned in it, or never (METHODS: the learned slice).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from storage.checkpoints import context_length, load_model, load_tokenizer
from storage.digests import digest_of
from storage.prompts import Prompt
from storage.schemas import SCHEMAS
from storage.staging import discard, has_staged, staged_reader, staged_writer
from storage.store import Store
from storage.tables import has_part, made_from, write_part
from storage.trajectory import Checkpoint
from tasks.evaluation.recall import Outcome, recall_answers
from tasks.influence.queries import encode_query
from tasks.progress import progress
from tasks.stage import stage

RELATION = "query_outcomes"


@stage("recall")
def measure_recall(
    store: Store,
    run_id: str,
    model: Path,
    prompts: Sequence[Prompt],
    checkpoints: Sequence[Checkpoint],
    batch_size: int,
    aliases: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Fill `query_outcomes`: every query of the run at every checkpoint; what is there already is not asked again.

    `model` is the directory whose tokenizer and context all checkpoints share. `aliases` are completions of a query,
    by its id, that are as right as its own; the probability is that of its own alone. A run's name does not depend on
    them, so outcomes that were measured with others are measured anew.
    """
    others = {p.query_id: list(found) for p in prompts if (found := (aliases or {}).get(p.query_id))}
    named = digest_of(others)[:16] if others else None
    if has_part(store, RELATION, run_id) and made_from(store, RELATION, run_id) == named:
        return
    tokenizer, context = load_tokenizer(model), context_length(model)
    worded = [(k, text) for k, p in enumerate(prompts) for text in (p.completion, *others.get(p.query_id, ()))]
    asked = [encode_query(tokenizer, prompts[k].prompt, text, context, prompts[k].query_id) for k, text in worded]
    key = "-".join(["recall", run_id, *([named] if named else [])])
    names = [f"step-{checkpoint.step}" for checkpoint in checkpoints]
    with progress("recall", len(names)) as advance:
        for name, checkpoint in zip(names, checkpoints, strict=True):
            if not has_staged(store, key, RELATION, name):
                said = recall_answers(load_model(checkpoint.path), tokenizer, asked, batch_size)
                outcomes = _best(len(prompts), [k for k, _ in worded], said)
                with staged_writer(store, key, RELATION, name) as part:
                    part.append(
                        {
                            "run_id": [run_id] * len(prompts),
                            "query_id": [prompt.query_id for prompt in prompts],
                            "checkpoint": [checkpoint.step] * len(prompts),
                            "probability": [math.exp(o.log_probability) for o in outcomes],
                            "is_first": [o.is_first for o in outcomes],
                            "is_among_three": [o.is_among_first for o in outcomes],
                        }
                    )
            advance(1)
    batches = [batch for name in names for batch in staged_reader(store, key, RELATION, name)]
    write_part(store, RELATION, run_id, columns=pa.Table.from_batches(batches, SCHEMAS[RELATION]), made_from=named)
    discard(store, key)


def _best(n: int, owners: list[int], said: list[Outcome]) -> list[Outcome]:
    """Of each of n queries the outcome of its own completion, which comes first, with the best place of any name."""
    found: list[list[Outcome]] = [[] for _ in range(n)]
    for owner, outcome in zip(owners, said, strict=True):
        found[owner].append(outcome)
    return [
        Outcome(names[0].log_probability, any(o.is_first for o in names), any(o.is_among_first for o in names))
        for names in found
    ]
