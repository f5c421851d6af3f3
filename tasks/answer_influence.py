"""Answers stage: what the gradient of a document's answer says of itself, and what other documents' answers say of it.

Only −log p of the answer's tokens counts, each with the text before it, as of a query. K_dz is the influence of the
answer of z on that of d. z contradicts d as far as K_dz is negative; divided by √K_zz, as the relative influence of
Barshan et al. 2020 (arXiv 2003.11630) is, no odd answer speaks louder than the others:
contradiction(d) = Σ_z max(0, −K_dz / √K_zz) over the sequences of other documents.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedModel

from storage.checkpoints import load_model
from storage.sequences import all_sequence_ids, corpus_parts
from storage.tables import has_part, write_part
from tasks.answers import Answer, read_answers
from tasks.compute import dtype_of
from tasks.fanout import Workers
from tasks.influence.batches import TokenSequence, batches
from tasks.influence.footprint import FLOAT32, module_groups
from tasks.influence.gradients import products_in
from tasks.influence.modules import select_modules
from tasks.influence.objectives import true_token_gradient
from tasks.influence.pairs import hold, pairs
from tasks.influence.sweep import sweep
from tasks.losses import sequence_losses
from tasks.machine import matrix_budget
from tasks.selves import Curvature, SelfJob, load_metrics, metric_sizes, self_jobs, sequence_norms, survey
from tasks.stage import stage

OPPONENTS = 10  # kept of each answer
ANSWERS, OPPOSED = "answer_influences", "answer_opponents"


@stage("answers")
def measure_answers(curvature: Curvature, workers: Workers) -> int:
    """Write `answer_influences` and `answer_opponents` where they are missing; returns how many were measured."""
    return survey(curvature, workers, measure_block, self_jobs(curvature), "answers")


def measure_block(job: SelfJob) -> int:
    """Measure the answers of one block against those of the whole corpus, unless that was done before."""
    curvature = job.curvature
    if has_part(curvature.store, ANSWERS, curvature.factors_id, job.name):  # written last
        return 0
    ids = all_sequence_ids(corpus_parts(curvature.store))
    everyone = read_answers(curvature.store, curvature.model, int(ids[0]), int(ids[-1]))
    wanted = set(job.sequence_ids)
    rows = [answer for answer in everyone if answer.sequence.sequence_id in wanted]
    network = load_model(curvature.model)
    influences, squares = _influences(curvature, network, rows, everyone)
    columns = _measured(curvature, network, rows)
    against = influences / np.sqrt(np.where(squares > 0, squares, np.inf))
    documents = np.array([answer.document_id for answer in everyone])
    against[np.array([answer.document_id for answer in rows])[:, None] == documents] = 0.0
    columns["contradiction"] = -np.minimum(against, 0).sum(1)
    columns["support"] = np.maximum(against, 0).sum(1)
    write_part(
        curvature.store, OPPOSED, curvature.factors_id, job.name,
        columns=_opponents(curvature, rows, everyone, influences, against),
    )  # fmt: skip
    write_part(curvature.store, ANSWERS, curvature.factors_id, job.name, columns=columns)
    return len(rows)


def _measured(curvature: Curvature, network: PreTrainedModel, rows: list[Answer]) -> dict:
    """What an answer says of itself, in the order of the rows."""
    sequences = [answer.sequence for answer in rows]
    norms = sequence_norms(curvature, network, sequences)
    return {
        "factors_id": [curvature.factors_id] * len(rows),
        "sequence_id": [sequence.sequence_id for sequence in sequences],
        "n_tokens": [sum(position > 0 for position in sequence.counted or ()) for sequence in sequences],
        "loss": sequence_losses(network, sequences),
        "self_influence": norms[0],
        "gradient_norm": np.sqrt(norms[1]),
    }


def _opponents(
    curvature: Curvature, rows: list[Answer], everyone: list[Answer], influences: np.ndarray, against: np.ndarray
) -> dict:
    """The answers that speak most against each, by relative influence."""
    first = np.argsort(against, axis=1, kind="stable")[:, :OPPONENTS]
    found = [(r, z, rank) for r, of in enumerate(first) for rank, z in enumerate(of, start=1) if against[r, z] < 0]
    return {
        "factors_id": [curvature.factors_id] * len(found),
        "sequence_id": [rows[r].sequence.sequence_id for r, _, _ in found],
        "opponent_id": [everyone[z].sequence.sequence_id for _, z, _ in found],
        "influence": [influences[r, z] for r, z, _ in found],
        "relative_influence": [against[r, z] for r, z, _ in found],
        "opponent_rank": [rank for _, _, rank in found],
    }


def _influences(
    curvature: Curvature, network: PreTrainedModel, rows: list[Answer], everyone: list[Answer]
) -> tuple[np.ndarray, np.ndarray]:
    """K of the rows with everyone [r, z], and everyone's self-influences [z]: as many rows at once as memory holds."""
    modules = select_modules(network, curvature.modules)
    weights = [FLOAT32 * module.d_out * module.columns for module in modules]
    size = max(1, min(len(rows), matrix_budget() // (2 * max(weights))))
    column = {answer.sequence.sequence_id: z for z, answer in enumerate(everyone)}
    row = {answer.sequence.sequence_id: r for r, answer in enumerate(rows)}
    found, squares = np.zeros((len(rows), len(everyone))), np.zeros(len(everyone))
    for start in range(0, len(rows), size):
        tile = [answer.sequence for answer in rows[start : start + size]]
        sizes = [w * len(tile) + m for w, m in zip(weights, metric_sizes(curvature, modules), strict=True)]
        squares[:] = 0.0
        for group in module_groups(sizes, matrix_budget()):
            chosen = [modules[k] for k in group]
            metrics = load_metrics(curvature, chosen, network.device)

            def passes(some: list[TokenSequence], chosen=chosen):
                stream = batches(some, curvature.compute.batch_size, network.device)
                return sweep(network, chosen, stream, true_token_gradient, dtype_of(curvature.compute))

            with torch.no_grad(), products_in(dtype_of(curvature.compute)):
                held = hold(passes(tile), chosen, metrics)
                at = np.array([row[i] for i in held.sequence_ids])
                for ids, products, of_batch in pairs(passes([a.sequence for a in everyone]), chosen, metrics, held):
                    columns = np.array([column[i] for i in ids])
                    found[at[:, None], columns] += products.double().cpu().numpy()
                    squares[columns] += of_batch.double().cpu().numpy()
    return found, squares
