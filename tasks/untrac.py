"""Unlearning stage: a trained model unlearns each dataset, or each group of queries, and its losses are measured.

    UnTrac          unlearn a dataset, measure the queries       L(queries; θ_T) − L(queries; θ_0)
    UnTrac-Inverse  unlearn queries, measure every dataset       L(dataset; θ'_T) − L(dataset; θ_0)

Isonuma & Titov 2024 (arXiv 2401.15241). An unlearning is one job and one file of `unlearnings`: what is there is not
done again. The models themselves are not kept.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
from transformers import PreTrainedModel

from storage.checkpoints import device, read_model
from storage.digests import digest_of
from storage.errors import ModelError
from storage.locks import locked
from storage.sequences import read_tokens
from storage.tables import has_part, write_part
from storage.text import printable
from tasks.fanout import Workers, fan_out
from tasks.influence.batches import TokenSequence
from tasks.learning.ascent import ascend
from tasks.losses import sequence_losses
from tasks.mixtures import Unlearning
from tasks.sampling import uniform_sample
from tasks.stage import stage
from tasks.subsets import encode

Row = tuple[str, str, float, int]  # what kind of thing was measured, its name, its loss in nats, its scored tokens


@dataclass(frozen=True)
class UnlearningJob:
    """One unlearning: the unit of resumption. `none` measures the model as it is."""

    study: Unlearning
    kind: Literal["none", "dataset", "queries"]
    name: str = ""


@stage("unlearning")
def unlearn(study: Unlearning, workers: Workers) -> int:
    """Fill `unlearnings` with what is missing, a job each; returns how many there were."""
    if study.of == "datasets":
        jobs = [UnlearningJob(study, "dataset", name) for name in study.mixture.datasets]
    else:
        jobs = [UnlearningJob(study, "queries", name) for name in study.mixture.groups]
    with locked(study.store, study.study_id):
        every = [UnlearningJob(study, "none"), *jobs]
        missing = [job for job in every if not has_part(study.store, "unlearnings", *_names(job))]
        fan_out(workers.model, carry_out, missing, "unlearning", workers.model_resources)
    return len(missing)


def carry_out(job: UnlearningJob) -> None:
    """Unlearn one thing and keep what the others cost afterwards."""
    study, began = job.study, time.monotonic()
    model = read_model(study.model).to(str(device()))
    queries = dict(zip((p.query_id for p in study.prompts), encode(study.model, study.prompts), strict=True))
    if job.kind == "dataset":
        ascend(model, _sequences(study, job.name), study.ascent)
    elif job.kind == "queries":
        ascend(model, [queries[name] for name in study.mixture.groups[job.name]], study.ascent)
    measured = _query_rows(model, queries) if study.of == "datasets" else _dataset_rows(model, study)
    _require_finite(job, measured)
    _keep(job, measured, time.monotonic() - began)


def _query_rows(model: PreTrainedModel, queries: dict[str, TokenSequence]) -> list[Row]:
    losses = sequence_losses(model, list(queries.values())).tolist()
    return [("query", name, loss, _scored(q)) for (name, q), loss in zip(queries.items(), losses, strict=True)]


def _dataset_rows(model: PreTrainedModel, study: Unlearning) -> list[Row]:
    measured = []
    for name in study.mixture.datasets:
        sequences = _sequences(study, name)
        loss = float(sequence_losses(model, sequences).sum())
        measured.append(("dataset", name, loss, sum(map(_scored, sequences))))
    return measured


def _sequences(study: Unlearning, dataset: str) -> list[TokenSequence]:
    """The sequences of a dataset, or a uniform sample of so many as the study wants."""
    ids = np.array(study.mixture.datasets[dataset])
    chosen = ids if study.most is None else uniform_sample(ids, study.most, study.ascent.seed)
    tokens = read_tokens(study.store, chosen)
    return [TokenSequence(i, tokens[i]) for i in chosen.tolist()]


def _scored(sequence: TokenSequence) -> int:
    return len(sequence.token_ids) - sequence.first_scored


def _require_finite(job: UnlearningJob, measured: list[Row]) -> None:
    bad = [name for _, name, loss, _ in measured if not np.isfinite(loss)]
    if bad:
        raise ModelError(
            f"model {job.study.model} after unlearning {printable(job.name)!r}",
            expected="finite losses",
            found=f"NaN or infinity for {printable(bad[0])!r} at a learning rate of {job.study.ascent.learning_rate:g}",
            remedy="Lower the learning rate of the unlearning, or its epochs.",
        )


def _keep(job: UnlearningJob, measured: list[Row], seconds: float) -> None:
    n = len(measured)
    kinds, names, losses, tokens = zip(*measured, strict=True)
    columns = {
        "study_id": [job.study.study_id] * n,
        "kind": [job.kind] * n,
        "unlearned": [job.name] * n,
        "measured": kinds,
        "name": names,
        "loss": losses,
        "n_tokens": tokens,
        "seconds": [seconds] * n,
    }
    write_part(job.study.store, "unlearnings", *_names(job), columns=columns)


def _names(job: UnlearningJob) -> tuple[str, str]:
    """Where an unlearning's rows lie; a dataset's name never forms a path."""
    return job.study.study_id, digest_of([job.kind, job.name])[:24]
