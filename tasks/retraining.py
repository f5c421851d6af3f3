"""Retraining stage: models taught the corpus less some of its sequences, and what each completion costs them.

    subsets, other orders, all but first sequences ──▶ one job each ──▶ `retrainings`, `removals`

A retraining is one file of losses, named by its study: what is there is not done again, however a study was stopped or
grew. The retrained models themselves are not kept.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from storage.checkpoints import load_tokenizer, read_model
from storage.digests import digest_of
from storage.locks import locked
from storage.scratch import temporary_directory
from storage.sequences import all_sequence_ids, corpus_parts, read_tokens
from storage.tables import has_part, write_part
from tasks.fanout import Workers, fan_out
from tasks.learning.loop import train
from tasks.losses import sequence_losses
from tasks.stage import stage
from tasks.subsets import Retraining, Study, encode


@dataclass(frozen=True)
class RetrainingJob:
    """One retraining: the unit of resumption."""

    study: Study
    retraining: Retraining


@stage("retraining")
def retrain(study: Study, planned: Sequence[Retraining], workers: Workers) -> int:
    """Fill `retrainings` and `removals` with what is missing, a job each; returns how many models were trained."""
    with locked(study.store, study.study_id):
        jobs = [RetrainingJob(study, r) for r in planned if not has_part(study.store, "retrainings", *_names(study, r))]
        fan_out(workers.model, carry_out, jobs, "retraining", workers.model_resources)
    return len(jobs)


def carry_out(job: RetrainingJob) -> None:
    """Train one model and keep what the queries cost it."""
    study, retraining, began = job.study, job.retraining, time.monotonic()
    tokenizer, model = load_tokenizer(study.start), read_model(study.start)
    ids = all_sequence_ids(corpus_parts(study.store))
    tokens = read_tokens(study.store, ids)
    place = {sequence: k for k, sequence in enumerate(ids.tolist())}
    with temporary_directory("retraining") as scratch:
        train(
            model,
            tokenizer,
            [tokens[i] for i in ids.tolist()],
            study.training.model_copy(update={"seed": retraining.seed}),
            scratch,
            left_out=[place[i] for i in retraining.left_out],
        )
    losses = sequence_losses(model, encode(study.start, study.prompts))
    _keep(study, retraining, losses, time.monotonic() - began)


def _keep(study: Study, retraining: Retraining, losses: np.ndarray, seconds: float) -> None:
    """Write what is left out first: a retraining counts as done by its losses."""
    folder, name = _names(study, retraining)
    left_out = retraining.left_out
    columns = {"study_id": [study.study_id] * len(left_out), "retraining": [retraining.name] * len(left_out)}
    if left_out:
        write_part(study.store, "removals", folder, name, columns=columns | {"sequence_id": list(left_out)})
    n = len(losses)
    write_part(
        study.store,
        "retrainings",
        folder,
        name,
        columns={
            "study_id": [study.study_id] * n,
            "retraining": [retraining.name] * n,
            "kind": [retraining.kind] * n,
            "seed": [retraining.seed] * n,
            "query_id": [prompt.query_id for prompt in study.prompts],
            "loss": losses,
            "seconds": [seconds] * n,
        },
    )


def _names(study: Study, retraining: Retraining) -> tuple[str, str]:
    """Where a retraining's rows lie; a query's id, which may be part of its name, never forms a path."""
    return study.study_id, digest_of([retraining.name, retraining.seed])[:24]
