"""Self-influence stage: every sequence of the corpus that has none yet under these factors, part by part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from storage.catalog import ensure_catalog
from storage.checkpoints import load_model
from storage.locks import locked
from storage.sequences import corpus_parts, read_tokens
from tasks.compute import dtype_of
from tasks.fanout import Workers, fan_out
from tasks.influence.batches import TokenSequence, batches
from tasks.influence.footprint import module_groups
from tasks.influence.modules import select_modules
from tasks.influence.objectives import true_token_gradient
from tasks.influence.sweep import sweep
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


@dataclass(frozen=True)
class SelfJob:
    """One block of a part's sequences."""

    curvature: Curvature
    name: str
    sequence_ids: tuple[int, ...]


@stage("self-influences")
def measure_self_influences(curvature: Curvature, workers: Workers) -> int:
    """Write `self_influences` where they are missing; returns how many sequences were measured."""
    jobs = []
    for part in corpus_parts(curvature.store):
        for start in range(part.first_sequence_id, part.end_sequence_id, BLOCK):
            ids = tuple(range(start, min(start + BLOCK, part.end_sequence_id)))
            jobs.append(SelfJob(curvature, f"{part.name}-{start}", ids))
    with locked(curvature.store, f"selves-{curvature.factors_id}"):
        measured = fan_out(workers.model, measure_block, jobs, "self-influences", workers.model_resources)
    ensure_catalog(curvature.store)
    return sum(measured)


def measure_block(job: SelfJob) -> int:
    """Measure the unknown sequences of one block, in one pass of the model per module group."""
    curvature = job.curvature
    unknown = unknown_sequences(curvature, job.sequence_ids)
    if not len(unknown):
        return 0
    network = load_model(curvature.model)
    modules = select_modules(network, curvature.modules)
    tokens = read_tokens(curvature.store, unknown)
    sequences = [TokenSequence(i, tokens[i]) for i in unknown.tolist()]
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
    write_self_influences(curvature, f"{job.name}-{len(unknown)}", np.array(order), norms)
    return len(unknown)
