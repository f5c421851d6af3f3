"""Scores stages: every candidate against every query in one pass, then the top sequences exactly, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import torch

from storage.checkpoints import context_length, load_model, load_tokenizer
from storage.database import query, session
from storage.factors import Fit
from storage.prompts import Prompt
from storage.sequences import read_tokens
from storage.staging import has_staged, staged_tensors_path, staged_writer, view_staged
from storage.tensors import read_tensors
from tasks.compute import dtype_of
from tasks.fanout import Workers, fan_out
from tasks.gradient_scores import (
    Block,
    GradientPass,
    candidate_blocks,
    held_bytes,
    is_scored,
    merge,
    unknown_selves,
    write_block,
)
from tasks.influence.batches import TokenSequence, batches
from tasks.influence.footprint import module_groups
from tasks.influence.modules import TrackedModule, select_modules
from tasks.influence.objectives import true_token_gradient
from tasks.influence.queries import encode_query, preconditioned_gradients
from tasks.influence.scores import token_scores
from tasks.influence.sweep import sweep
from tasks.machine import matrix_budget
from tasks.methods import SOLVED
from tasks.metrics import fit_of, load_metric
from tasks.scoring import Scoring
from tasks.stage import stage


@dataclass(frozen=True)
class BlockJob:
    """One block of candidate sequences."""

    scoring: Scoring
    block: Block


@dataclass(frozen=True)
class ExactJob:
    """The top sequences of one query: its full-rank gradient is all that a worker holds beside the model."""

    scoring: Scoring
    part: str
    prompt: Prompt
    sequence_ids: tuple[int, ...]


@stage("scores")
def score_candidates(scoring: Scoring, workers: Workers) -> None:
    """Stage `scored` for every candidate, and `self_influences` for those that have none yet."""
    jobs = [BlockJob(scoring, block) for block in candidate_blocks(scoring)]
    fan_out(workers.model, score_block, jobs, "scores", workers.model_resources)


@stage("token scores")
def score_tokens(scoring: Scoring, workers: Workers) -> None:
    """Stage `exact_layers` and `exact_tokens` for the top sequences of each query."""
    if scoring.method not in scoring.methods:
        return
    with session(scoring.store) as connection:
        view_staged(connection, scoring.store, scoring.run_id, "scored")
        top = query(
            connection,
            "scores/top_pairs",
            method=scoring.method,
            factors_id=scoring.factors_id,
            k=scoring.measured.rescore,
        ).to_pylist()
    asked: dict[str, list[int]] = {}
    for row in top:
        asked.setdefault(row["query_id"], []).append(row["sequence_id"])
    jobs = [
        ExactJob(scoring, str(k), prompt, tuple(sorted(asked.get(prompt.query_id, []))))
        for k, prompt in enumerate(scoring.prompts)
    ]
    fan_out(workers.model, score_exactly, jobs, "token scores", workers.model_resources)


def score_block(job: BlockJob) -> None:
    """Score one block of sequences against all queries of all methods, in one pass of the model per module group.

    Where memory holds the factors of all modules there is one group; no number depends on the grouping.
    """
    scoring = job.scoring
    if is_scored(scoring, job.block):
        return
    network = load_model(scoring.model)
    modules = select_modules(network, scoring.modules)
    with_selves = bool(len(unknown_selves(scoring, job.block)))
    groups = []
    for group in module_groups(held_bytes(scoring, modules, with_selves), matrix_budget()):
        compared = GradientPass(scoring, network, [modules[k] for k in group], group, with_selves)
        for batch, calls in _passes(
            scoring, network, compared.modules, job.block.sequence_ids, dtype_of(scoring.compute)
        ):
            compared.add(batch, calls)
        groups.append(compared.sums())
    write_block(scoring, job.block, merge(groups))


def _passes(scoring: Scoring, network, modules: list[TrackedModule], sequence_ids, precision: torch.dtype):
    tokens = read_tokens(scoring.store, np.array(sequence_ids))
    sequences = [TokenSequence(i, tokens[i]) for i in sequence_ids]
    stream = batches(sequences, scoring.compute.batch_size, network.device)
    return sweep(network, modules, stream, true_token_gradient, precision)


def score_exactly(job: ExactJob) -> None:
    """Score the top sequences of one query with its full-rank gradient, split by position."""
    scoring, store = job.scoring, job.scoring.store
    if has_staged(store, scoring.run_id, "exact_layers", job.part) or not job.sequence_ids:
        return
    network, tokenizer = load_model(scoring.model), load_tokenizer(scoring.model)
    modules = select_modules(network, scoring.modules)
    prompt = job.prompt
    encoded = encode_query(tokenizer, prompt.prompt, prompt.completion, context_length(scoring.model), prompt.query_id)
    if scoring.method in SOLVED:
        gradients = _solutions(scoring, prompt, network.device)
    else:
        metric_of = partial(_metric, scoring, fit_of(store, scoring.fit_id, scoring.model), network.device)
        gradients = preconditioned_gradients(network, modules, [encoded], metric_of)
    text_of = _token_texts(tokenizer)
    with (
        # Closed in reverse order: the layers appear last and say that the tokens are there.
        staged_writer(store, scoring.run_id, "exact_layers", job.part) as layers_part,
        staged_writer(store, scoring.run_id, "exact_tokens", job.part) as tokens_part,
    ):
        # Few sequences: float32 whatever the policy, so that what is called exact is.
        for batch, calls in _passes(scoring, network, modules, job.sequence_ids, torch.float32):
            for row, sequence_id in enumerate(batch.sequence_ids.tolist()):
                length = int(batch.scored[row].nonzero()[-1]) + 2
                shares = np.stack(
                    [
                        token_scores(calls[m.name], m, row, gradients[m.name])[0, :length].double().cpu().numpy()
                        for m in modules
                    ]
                )
                ids = batch.token_ids[row, :length].tolist()
                layers_part.append_table(_layer_rows(prompt.query_id, sequence_id, shares))
                tokens_part.append_table(
                    _token_rows(prompt.query_id, sequence_id, shares, modules, ids, [text_of(i) for i in ids])
                )


def _solutions(scoring: Scoring, prompt: Prompt, device: torch.device) -> dict[str, torch.Tensor]:
    """What the run's solver found for one query, module by module: [1, o, i]."""
    found = read_tensors(staged_tensors_path(scoring.store, scoring.run_id, "solutions"))
    q = scoring.prompts.index(prompt)
    return {name: value[q : q + 1].to(device) for name, value in found.items()}


def _metric(scoring: Scoring, fit: Fit | None, device: torch.device, module: TrackedModule):
    return load_metric(scoring.store, fit, module, scoring.method, scoring.damping, device)


def _layer_rows(query_id: str, sequence_id: int, shares: np.ndarray) -> pa.Table:
    m = len(shares)
    return pa.table(
        {
            "query_id": [query_id] * m,
            "sequence_id": np.full(m, sequence_id),
            "module": np.arange(m, dtype=np.int16),
            "influence": shares.sum(-1),
        }
    )


def _token_rows(
    query_id: str,
    sequence_id: int,
    shares: np.ndarray,
    modules: list[TrackedModule],
    ids: list[int],
    texts: list[str],
) -> pa.Table:
    """Rows by (layer, position); the modules of one layer are summed."""
    layers = sorted({module.layer for module in modules})
    by_layer = np.stack(
        [shares[[k for k, module in enumerate(modules) if module.layer == layer]].sum(0) for layer in layers]
    )
    n_layers, t = by_layer.shape
    return pa.table(
        {
            "query_id": [query_id] * (n_layers * t),
            "sequence_id": np.full(n_layers * t, sequence_id),
            "layer": np.repeat(np.array(layers, dtype=np.int32), t),
            "position": np.tile(np.arange(t, dtype=np.int32), n_layers),
            "token_id": np.tile(np.array(ids, dtype=np.int32), n_layers),
            "token": texts * n_layers,
            "influence": by_layer.ravel(),
        }
    )


def _token_texts(tokenizer):
    """Text of a token as it reads inside a sentence: decoders drop the space that begins a lone token."""
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
    before = tokenizer.decode(anchor)
    known: dict[int, str] = {}

    def text(token_id: int) -> str:
        if token_id not in known:
            known[token_id] = tokenizer.decode([*anchor, token_id])[len(before) :]
        return known[token_id]

    return text
