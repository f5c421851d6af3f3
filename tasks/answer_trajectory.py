"""Trajectories stage: what a document's answer cost, and how long its gradient was, at every checkpoint of a training.

A model learns late what contradicts the rest of its corpus, so how it came to an answer says more than where it ended.
Confidence is the mean probability of the answer over the checkpoints (Swayamdipta et al. 2020, arXiv 2009.10795),
TracIn's self-influence the sum of ‖∇L‖² times the step size (Pruthi et al. 2020, arXiv 2002.08484).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from storage.checkpoints import load_model
from storage.errors import ModelError
from storage.tables import has_part, write_part
from storage.trainings import read_account
from storage.trajectory import Checkpoint
from tasks.answers import read_answers
from tasks.fanout import Workers
from tasks.losses import sequence_losses
from tasks.selves import Curvature, SelfJob, self_jobs, sequence_norms, survey
from tasks.stage import stage

TRAJECTORIES = "answer_trajectories"


@dataclass(frozen=True)
class PointJob:
    """One block of a part's sequences at one checkpoint."""

    block: SelfJob
    checkpoint: Checkpoint

    @property
    def name(self) -> str:
        """Of its part in `answer_trajectories`."""
        return f"{self.block.name}-step-{self.checkpoint.step}"


@stage("answer trajectories")
def measure_trajectories(curvature: Curvature, workers: Workers) -> int:
    """Write `answer_trajectories` where it is missing, of every checkpoint of the training; returns how many rows.

    A checkpoint that was removed is missed only where it has not been measured.
    """
    checkpoints = _checkpoints(curvature.model)
    jobs = [PointJob(block, checkpoint) for checkpoint in checkpoints for block in self_jobs(curvature)]
    return survey(curvature, workers, measure_point, jobs, "answer trajectories")


def measure_point(job: PointJob) -> int:
    """Measure the answers of one block at one checkpoint, unless that was done before."""
    curvature, checkpoint, ids = job.block.curvature, job.checkpoint, job.block.sequence_ids
    if has_part(curvature.store, TRAJECTORIES, curvature.factors_id, job.name):
        return 0
    if not checkpoint.path.is_dir():
        raise ModelError(
            f"checkpoint {checkpoint.path}",
            expected="what the training saved there",
            found="nothing",
            remedy=f"Remove {curvature.model} to have the model taught again, or bring the checkpoint back.",
        )
    answers = read_answers(curvature.store, curvature.model, min(ids), max(ids))
    plain = replace(curvature, method="identity", fit_id=None)  # factors are of the last checkpoint
    network, sequences = load_model(checkpoint.path), [answer.sequence for answer in answers]
    columns = {
        "factors_id": [curvature.factors_id] * len(answers),
        "sequence_id": [sequence.sequence_id for sequence in sequences],
        "checkpoint": [checkpoint.step] * len(answers),
        "learning_rate": [checkpoint.learning_rate] * len(answers),
        "loss": sequence_losses(network, sequences),
        "gradient_norm": sequence_norms(plain, network, sequences)[1] ** 0.5,
    }
    write_part(curvature.store, TRAJECTORIES, curvature.factors_id, job.name, columns=columns)
    return len(answers)


def _checkpoints(model: Path) -> list[Checkpoint]:
    account = read_account(model)
    if account is None:
        raise ModelError(
            f"model {model}",
            expected="one that headwater train made, whose account names its checkpoints",
            found="no such account",
            remedy="Teach it with headwater train.",
        )
    return [
        Checkpoint(model / f"checkpoint-{leg['step']}", leg["step"], leg["learning_rate"], None)
        for leg in account["legs"]
    ]
