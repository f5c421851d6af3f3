"""Self-influences: ∇L_zᵀ (G + λI)⁻¹ ∇L_z of training sequences, computed once per corpus and factors.

The θ-relative influence of Barshan et al. 2020 (arXiv 2003.11630) divides by their root. Whatever pass meets a
sequence first, a trace or a survey of the whole corpus, writes its row; no later pass computes it again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from storage.catalog import ensure_catalog
from storage.database import query, session
from storage.locks import locked
from storage.sequences import corpus_parts
from storage.store import Store
from storage.tables import write_part
from tasks.compute import ComputeParameters, dtype_of
from tasks.fanout import Job, Workers, fan_out
from tasks.influence.batches import TokenSequence, batches
from tasks.influence.capture import Call
from tasks.influence.ekfac import IdentityMetric, Metric
from tasks.influence.footprint import metric_bytes, module_groups
from tasks.influence.modules import TrackedModule, select_modules
from tasks.influence.objectives import true_token_gradient
from tasks.influence.sweep import sweep
from tasks.machine import matrix_budget
from tasks.metrics import CURVED, Damping, fit_of, load_metric

BLOCK = 1024  # sequences per job of a survey: the unit of resumption


@dataclass(frozen=True)
class Curvature:
    """What a self-influence depends on besides the sequence."""

    store: Store
    model: Path
    modules: str
    fit_id: str | None
    factors_id: str
    method: str
    damping: Damping
    compute: ComputeParameters


@dataclass(frozen=True)
class SelfJob:
    """One block of a part's sequences."""

    curvature: Curvature
    name: str
    sequence_ids: tuple[int, ...]


Metrics = dict[str, Metric | IdentityMetric]


def self_jobs(curvature: Curvature) -> list[SelfJob]:
    """The sequences of the corpus, part by part, BLOCK to a job."""
    jobs = []
    for part in corpus_parts(curvature.store):
        for start in range(part.first_sequence_id, part.end_sequence_id, BLOCK):
            ids = tuple(range(start, min(start + BLOCK, part.end_sequence_id)))
            jobs.append(SelfJob(curvature, f"{part.name}-{start}", ids))
    return jobs


def load_metrics(curvature: Curvature, modules: list[TrackedModule], device: torch.device) -> Metrics:
    """The metric of each of these modules."""
    fit = fit_of(curvature.store, curvature.fit_id, curvature.model)
    return {m.name: load_metric(curvature.store, fit, m, curvature.method, curvature.damping, device) for m in modules}


def metric_sizes(curvature: Curvature, modules: list[TrackedModule]) -> list[int]:
    """Bytes of each module's metric; a method without curvature has none."""
    fit = fit_of(curvature.store, curvature.fit_id, curvature.model)
    if curvature.method not in CURVED or fit is None:
        return [0] * len(modules)
    return [metric_bytes(m, fit.made_from["parameters"]["blocks"]) for m in modules]


def unknown_sequences(curvature: Curvature, sequence_ids: tuple[int, ...]) -> np.ndarray:
    """Those whose self-influence under these factors is not stored yet."""
    first, last = min(sequence_ids), max(sequence_ids)
    with session(curvature.store) as connection:
        known = query(
            connection, "scores/known_self_influences", factors_id=curvature.factors_id, first=first, last=last
        )
    return np.setdiff1d(np.array(sequence_ids), known["sequence_id"].to_numpy())


def squared_norms(metrics: Metrics, calls: dict[str, list[Call]], modules: list[TrackedModule]) -> torch.Tensor:
    """Self-influence and squared gradient length of each sequence of a batch, summed over modules: [2, b]."""
    norms = [metrics[m.name].squared_norms(calls[m.name], m) for m in modules]
    # In float64, so that it does not show in which groups the modules came.
    return torch.stack([torch.stack([n.metric, n.euclidean]) for n in norms]).double().sum(0).cpu()


def survey(
    curvature: Curvature, workers: Workers, measure: Callable[[Job], int], jobs: Sequence[Job], label: str
) -> int:
    """Run the jobs that measure what is missing, those of one curvature in one process; how many rows were new."""
    with locked(curvature.store, f"{label.replace(' ', '-')}-{curvature.factors_id}"):
        measured = fan_out(workers.model, measure, jobs, label, workers.model_resources)
    ensure_catalog(curvature.store)
    return sum(measured)


def sequence_norms(curvature: Curvature, network: PreTrainedModel, sequences: list[TokenSequence]) -> np.ndarray:
    """`squared_norms` [2, n] of the sequences, in their order: one pass of the model per module group."""
    modules = select_modules(network, curvature.modules)
    column = {sequence.sequence_id: k for k, sequence in enumerate(sequences)}
    norms = np.zeros((2, len(sequences)))
    for group in module_groups(metric_sizes(curvature, modules), matrix_budget()):
        chosen = [modules[k] for k in group]
        metrics = load_metrics(curvature, chosen, network.device)
        stream = batches(sequences, curvature.compute.batch_size, network.device)
        passes = sweep(network, chosen, stream, true_token_gradient, dtype_of(curvature.compute))
        for batch, calls in passes:
            norms[:, [column[i] for i in batch.sequence_ids.tolist()]] += squared_norms(metrics, calls, chosen).numpy()
    return norms


def write_self_influences(curvature: Curvature, name: str, sequence_ids: np.ndarray, norms: np.ndarray) -> None:
    """Add a part to `self_influences`; norms are those of `squared_norms`."""
    columns = {
        "factors_id": [curvature.factors_id] * len(sequence_ids),
        "sequence_id": sequence_ids,
        "self_influence": norms[0],
        "gradient_norm": np.sqrt(norms[1]),
    }
    write_part(curvature.store, "self_influences", curvature.factors_id, name, columns=columns)
