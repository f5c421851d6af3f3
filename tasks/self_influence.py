"""Self-influence stage: every sequence of the corpus that has none yet under these factors, part by part."""

from __future__ import annotations

from storage.catalog import ensure_catalog
from storage.checkpoints import load_model
from storage.locks import locked
from storage.sequences import read_tokens
from tasks.fanout import Workers, fan_out
from tasks.influence.batches import TokenSequence
from tasks.selves import (
    Curvature,
    SelfJob,
    self_jobs,
    sequence_norms,
    unknown_sequences,
    write_self_influences,
)
from tasks.stage import stage

BLOCK = 1024  # sequences per job: the unit of resumption


@stage("self-influences")
def measure_self_influences(curvature: Curvature, workers: Workers) -> int:
    """Write `self_influences` where they are missing; returns how many sequences were measured."""
    jobs = self_jobs(curvature, BLOCK)
    with locked(curvature.store, f"selves-{curvature.factors_id}"):
        measured = fan_out(workers.model, measure_block, jobs, "self-influences", workers.model_resources)
    ensure_catalog(curvature.store)
    return sum(measured)


def measure_block(job: SelfJob) -> int:
    """Measure the unknown sequences of one block."""
    curvature = job.curvature
    unknown = unknown_sequences(curvature, job.sequence_ids)
    if not len(unknown):
        return 0
    tokens = read_tokens(curvature.store, unknown)
    sequences = [TokenSequence(i, tokens[i]) for i in unknown.tolist()]
    order, norms = sequence_norms(curvature, load_model(curvature.model), sequences)
    write_self_influences(curvature, f"{job.name}-{len(unknown)}", order, norms)
    return len(unknown)
