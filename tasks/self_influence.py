"""Self-influence stage: every sequence of the corpus that has none yet under these factors, part by part."""

from __future__ import annotations

from storage.checkpoints import load_model
from storage.sequences import read_tokens
from tasks.fanout import Workers
from tasks.influence.batches import TokenSequence
from tasks.selves import (
    Curvature,
    SelfJob,
    self_jobs,
    sequence_norms,
    survey,
    unknown_sequences,
    write_self_influences,
)
from tasks.stage import stage


@stage("self-influences")
def measure_self_influences(curvature: Curvature, workers: Workers) -> int:
    """Write `self_influences` where they are missing; returns how many sequences were measured."""
    return survey(curvature, workers, measure_block, self_jobs(curvature), "self-influences")


def measure_block(job: SelfJob) -> int:
    """Measure the unknown sequences of one block."""
    curvature = job.curvature
    unknown = unknown_sequences(curvature, job.sequence_ids)
    if not len(unknown):
        return 0
    tokens = read_tokens(curvature.store, unknown)
    sequences = [TokenSequence(i, tokens[i]) for i in unknown.tolist()]
    norms = sequence_norms(curvature, load_model(curvature.model), sequences)
    write_self_influences(curvature, f"{job.name}-{len(unknown)}", unknown, norms)
    return len(unknown)
