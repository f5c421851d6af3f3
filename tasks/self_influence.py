"""Self-influence stages: every sequence of the corpus that has none yet under these factors, part by part.

Of the whole sequence, and of the answer that its document gives: −log p of the answer's tokens alone, each with the
text before it, as of a query.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from storage.catalog import ensure_catalog
from storage.checkpoints import load_model
from storage.locks import locked
from storage.sequences import corpus_parts, read_tokens
from storage.tables import has_part, write_part
from tasks.answers import answer_sequences
from tasks.compute import dtype_of
from tasks.fanout import Workers, fan_out
from tasks.influence.batches import TokenSequence, batches
from tasks.influence.footprint import module_groups
from tasks.influence.modules import select_modules
from tasks.influence.objectives import true_token_gradient
from tasks.influence.sweep import sweep
from tasks.losses import sequence_losses
from tasks.machine import matrix_budget
from tasks.selves import (
    Curvature,
    load_metrics,
    metric_sizes,
    squared_norms,
    unknown_sequences,
    write_self_influences,
)
from tasks.stage import stage

BLOCK = 1024  # sequences per job: the unit of resumption
ANSWERS = "answer_self_influences"


@dataclass(frozen=True)
class SelfJob:
    """One block of a part's sequences."""

    curvature: Curvature
    name: str
    sequence_ids: tuple[int, ...]


@stage("self-influences")
def measure_self_influences(curvature: Curvature, workers: Workers) -> int:
    """Write `self_influences` where they are missing; returns how many sequences were measured."""
    return _measure(curvature, workers, measure_block, "self-influences")


@stage("answers' self-influences")
def measure_answers(curvature: Curvature, workers: Workers) -> int:
    """Write `answer_self_influences` where they are missing; returns how many sequences were measured."""
    return _measure(curvature, workers, measure_answers_of_block, "answers")


def _measure(curvature: Curvature, workers: Workers, measure: Callable[[SelfJob], int], label: str) -> int:
    jobs = []
    for part in corpus_parts(curvature.store):
        for start in range(part.first_sequence_id, part.end_sequence_id, BLOCK):
            ids = tuple(range(start, min(start + BLOCK, part.end_sequence_id)))
            jobs.append(SelfJob(curvature, f"{part.name}-{start}", ids))
    with locked(curvature.store, f"selves-{curvature.factors_id}"):
        measured = fan_out(workers.model, measure, jobs, label, workers.model_resources)
    ensure_catalog(curvature.store)
    return sum(measured)


def measure_block(job: SelfJob) -> int:
    """Measure the unknown sequences of one block."""
    unknown = unknown_sequences(job.curvature, job.sequence_ids)
    if not len(unknown):
        return 0
    tokens = read_tokens(job.curvature.store, unknown)
    network = load_model(job.curvature.model)
    order, norms = _norms(job.curvature, network, [TokenSequence(i, tokens[i]) for i in unknown.tolist()])
    write_self_influences(job.curvature, f"{job.name}-{len(unknown)}", order, norms)
    return len(unknown)


def measure_answers_of_block(job: SelfJob) -> int:
    """Measure the answers of one block, unless a run that was killed has done so."""
    curvature, ids = job.curvature, job.sequence_ids
    if has_part(curvature.store, ANSWERS, curvature.factors_id, job.name):
        return 0
    sequences = answer_sequences(curvature.store, curvature.model, min(ids), max(ids))
    network = load_model(curvature.model)
    losses = dict(zip(ids, sequence_losses(network, sequences).tolist(), strict=True))
    counts = {s.sequence_id: sum(position > 0 for position in s.counted or ()) for s in sequences}
    order, norms = _norms(curvature, network, sequences)
    columns = {
        "factors_id": [curvature.factors_id] * len(order),
        "sequence_id": order,
        "n_tokens": [counts[i] for i in order.tolist()],
        "loss": [losses[i] for i in order.tolist()],
        "self_influence": norms[0],
        "gradient_norm": np.sqrt(norms[1]),
    }
    write_part(curvature.store, ANSWERS, curvature.factors_id, job.name, columns=columns)
    return len(order)


def _norms(
    curvature: Curvature, network: PreTrainedModel, sequences: list[TokenSequence]
) -> tuple[np.ndarray, np.ndarray]:
    """Ids in the order of the passes, and their `squared_norms`: one pass of the model per module group."""
    modules = select_modules(network, curvature.modules)
    order: list[int] = []
    norms: np.ndarray | float = 0.0
    for group in module_groups(metric_sizes(curvature, modules), matrix_budget()):
        chosen = [modules[k] for k in group]
        metrics = load_metrics(curvature, chosen, network.device)
        stream = batches(sequences, curvature.compute.batch_size, network.device)
        passes = sweep(network, chosen, stream, true_token_gradient, dtype_of(curvature.compute))
        order, found = [], []
        for batch, calls in passes:
            order.extend(batch.sequence_ids.tolist())
            found.append(squared_norms(metrics, calls, chosen))
        norms = norms + torch.cat(found, dim=1).numpy()
    return np.array(order), np.asarray(norms)
