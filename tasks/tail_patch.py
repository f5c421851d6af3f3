"""Tail-patch stage: how much one training step on a sequence teaches the answers that a run traced to it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from storage.checkpoints import context_length, load_model, load_tokenizer
from storage.digests import digest_of
from storage.prompts import Prompt
from storage.schemas import SCHEMAS
from storage.sequences import read_tokens
from storage.staging import discard, has_staged, staged_reader, staged_writer
from storage.store import Store
from storage.tables import has_part, read_part, write_part
from tasks.influence.batches import TokenSequence
from tasks.influence.queries import encode_query
from tasks.influence.tail_patch import tail_patches
from tasks.progress import progress
from tasks.stage import stage

RELATION = "tail_patches"
BLOCK = 512  # sequences whose patches are kept together before all are done
# stories260K, 3 epochs on docred's documents, 40 queries: a step on a proponent, and one on any document, changed
# log p(answer) by +.46 and −.03 nats on average at η = .01, by +1.2 and −.06 at .03, by +2.8 and −.8 at .1, by −1.7 and
# −10.9 at .3, where it destroys more than it teaches.
LEARNING_RATE = 0.03


class TailPatchParameters(BaseModel):
    """The training step whose effect is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: float = Field(
        LEARNING_RATE,
        gt=0,
        le=1,
        description="η of plain gradient descent on a sequence's mean loss per token, in 1 / nats",
    )
    batch_size: int = Field(64, ge=1, le=4096, description="queries per pass after a step")


@stage("tail-patch")
def measure_tail_patches(
    store: Store,
    run_id: str,
    model: Path,
    prompts: Sequence[Prompt],
    pairs: Sequence[tuple[str, int]],
    parameters: TailPatchParameters,
) -> None:
    """Fill `tail_patches` with the (query, sequence) pairs of a run that are not in it yet at this learning rate."""
    known = _known(store, run_id, parameters.learning_rate)
    there = set(zip(known["query_id"].to_pylist(), known["sequence_id"].to_pylist(), strict=True))
    missing = sorted(set(pairs) - there, key=lambda pair: (pair[1], pair[0]))
    if not missing:
        return
    key = f"tail-patch-{digest_of([run_id, missing, parameters.learning_rate])[:16]}"
    names = _patch(store, key, run_id, model, prompts, missing, parameters)
    batches = [batch for name in names for batch in staged_reader(store, key, RELATION, name)]
    fresh = pa.Table.from_batches(batches, SCHEMAS[RELATION])
    write_part(store, RELATION, run_id, columns=pa.concat_tables([known, fresh]))
    discard(store, key)


def _known(store: Store, run_id: str, learning_rate: float) -> pa.Table:
    if not has_part(store, RELATION, run_id):
        return SCHEMAS[RELATION].empty_table()
    return read_part(store, RELATION, run_id, where=pc.field("learning_rate") == learning_rate)


def _patch(
    store: Store,
    key: str,
    run_id: str,
    model: Path,
    prompts: Sequence[Prompt],
    pairs: list[tuple[str, int]],
    parameters: TailPatchParameters,
) -> list[str]:
    """Stage the patches of BLOCK sequences at a time; returns the names of the staged parts."""
    tokenizer, context = load_tokenizer(model), context_length(model)
    places = {prompt.query_id: k for k, prompt in enumerate(prompts)}
    asked = {q: prompts[places[q]] for q, _ in pairs}
    queries = {places[q]: encode_query(tokenizer, p.prompt, p.completion, context, q) for q, p in asked.items()}
    asked_of: dict[int, list[int]] = {}
    for query_id, sequence_id in pairs:
        asked_of.setdefault(sequence_id, []).append(places[query_id])
    names, rest = [], iter(asked_of.items())
    with progress("tail-patch", len(asked_of)) as advance:
        while block := dict(islice(rest, BLOCK)):
            names.append(name := f"block-{len(names)}")
            if not has_staged(store, key, RELATION, name):
                tokens = read_tokens(store, np.array(list(block)))
                sequences = {s: TokenSequence(s, tokens[s]) for s in block}
                network = load_model(model)
                rate, size = parameters.learning_rate, parameters.batch_size
                found = list(tail_patches(network, queries, sequences, block, rate, size))
                with staged_writer(store, key, RELATION, name) as part:
                    before, after = (np.array([getattr(f, end) for f in found]) for end in ("before", "after"))
                    part.append(
                        {
                            "run_id": [run_id] * len(found),
                            "query_id": [prompts[f.query].query_id for f in found],
                            "sequence_id": [f.sequence for f in found],
                            "learning_rate": [rate] * len(found),
                            "probability_before": np.exp(before).tolist(),
                            "probability_after": np.exp(after).tolist(),
                            "log_probability_change": (after - before).tolist(),
                        }
                    )
            advance(len(block))
    return names
