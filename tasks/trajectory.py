"""Checkpoints stage: every pair's gradient products at every checkpoint, and its hidden states, in one pass of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedModel

from storage.checkpoints import context_length, empty_model, load_model, load_tokenizer, model_fingerprint
from storage.database import part_view, query, session
from storage.prompts import Prompt
from storage.sequences import read_tokens
from storage.staging import has_staged, staged_writer
from storage.trajectory import Checkpoint, read_second_moments
from tasks.compute import dtype_of
from tasks.fanout import Workers, fan_out
from tasks.gradient_scores import (
    Block,
    GradientPass,
    candidate_blocks,
    held_bytes,
    is_scored,
    unknown_selves,
    write_block,
)
from tasks.influence.batches import Batch, TokenSequence, batches
from tasks.influence.capture import tracked_calls
from tasks.influence.footprint import FLOAT32
from tasks.influence.modules import select_modules
from tasks.influence.objectives import true_token_gradient
from tasks.influence.parameters import owners, require_autograd, trained_parameters
from tasks.influence.queries import encode_query
from tasks.influence.sweep import States, sweep_uses
from tasks.influence.tracin import Compared, compare, group_products, query_gradients
from tasks.machine import matrix_budget
from tasks.neighbours import mean_over_tokens
from tasks.scoring import Scoring
from tasks.stage import stage


@dataclass(frozen=True)
class CheckpointJob:
    """Some queries and all their candidates at one checkpoint."""

    scoring: Scoring
    checkpoint: Checkpoint
    name: str
    prompts: tuple[Prompt, ...]
    with_states: bool
    blocks: tuple[Block, ...] = ()  # that the gradient methods may be given in this pass


@stage("checkpoints")
def score_checkpoints(scoring: Scoring, workers: Workers) -> None:
    """Stage `checkpoint_influences` and `hidden_similarities` of every candidate."""
    size = sum(parameter.size for parameter in trained_parameters(empty_model(scoring.model)))
    few = max(1, matrix_budget() // (FLOAT32 * size))  # queries whose whole gradients a worker holds
    blocks = [scoring.prompts[at : at + few] for at in range(0, len(scoring.prompts), few)]
    last = scoring.checkpoints[-1]
    jobs = [
        CheckpointJob(scoring, checkpoint, f"{checkpoint.step}-{k}", block, checkpoint == last)
        for checkpoint in scoring.checkpoints
        for k, block in enumerate(blocks)
    ]
    if len(blocks) == 1 and model_fingerprint(last.path) == model_fingerprint(scoring.model):
        jobs[-1] = replace(jobs[-1], blocks=tuple(candidate_blocks(scoring)))
    fan_out(workers.model, score_checkpoint, jobs, "checkpoints", workers.model_resources)


def score_checkpoint(job: CheckpointJob) -> None:
    """Compare the job's queries with their candidates at one checkpoint, in one pass over the candidates.

    Where the checkpoint is the run's model and memory holds both, the gradient methods share the pass: the scores
    stage then finds its blocks.
    """
    scoring, store = job.scoring, job.scoring.store
    # The products appear last and say that the similarities are there.
    if has_staged(store, scoring.run_id, "checkpoint_influences", job.name):
        return
    precision, size = dtype_of(scoring.compute), scoring.compute.batch_size
    model = load_model(job.checkpoint.path)
    moments = read_second_moments(job.checkpoint) if job.checkpoint.second_moments else None
    compared = compare(model, trained_parameters(model), moments)
    encoded = _encode(job)
    require_autograd(model, compared.parameters, min(encoded, key=lambda found: len(found.token_ids)))
    queries = query_gradients(compared, batches(encoded, size, model.device), len(encoded), precision)
    of_queries = queries.norms.cpu().numpy()
    states_of_queries = _query_states(model, encoded, size, precision) if job.with_states else np.empty(0)
    asked = Candidates(job)
    tokens = read_tokens(store, asked.sequence_ids)
    stream = batches([TokenSequence(i, tokens[i]) for i in asked.sequence_ids.tolist()], size, model.device)
    names, beside = owners(compared.parameters), _gradient_pass(job, model, compared)
    with (
        staged_writer(store, scoring.run_id, "checkpoint_influences", job.name) as products_part,
        staged_writer(store, scoring.run_id, "hidden_similarities", job.name) as states_part,
    ):
        for batch, uses, states in sweep_uses(model, names, stream, true_token_gradient, precision, job.with_states):
            pairs = asked.of(batch)
            chosen = torch.from_numpy(pairs.queries).to(model.device)
            products, norms = (
                found.cpu().numpy() for found in group_products(compared, uses, queries, chosen, precision)
            )
            products_part.append_table(_product_rows(job, compared, of_queries, pairs, products, norms))
            if job.with_states:
                states_part.append_table(_state_rows(job, pairs, states_of_queries, _mean_states(states, batch)))
            if beside:
                beside.add(batch, tracked_calls(model, beside.modules, uses))
        if beside:
            found = beside.sums()
            for block in job.blocks:
                write_block(scoring, block, found)


def _gradient_pass(job: CheckpointJob, model: PreTrainedModel, compared: Compared) -> GradientPass | None:
    """What compares the candidates under the gradient methods, where any is left to do and memory holds it too."""
    open_blocks = [block for block in job.blocks if not is_scored(job.scoring, block)]
    if not open_blocks:
        return None
    modules = select_modules(model, job.scoring.modules)
    with_selves = any(len(unknown_selves(job.scoring, block)) for block in open_blocks)
    whole = FLOAT32 * len(job.prompts) * sum(parameter.size for parameter in compared.parameters)
    if whole + sum(held_bytes(job.scoring, modules, with_selves)) > matrix_budget():
        return None
    return GradientPass(job.scoring, model, modules, list(range(len(modules))), with_selves)


def _query_states(
    model: PreTrainedModel, encoded: Sequence[TokenSequence], size: int, precision: torch.dtype
) -> np.ndarray:
    """Mean hidden states of the queries, over all of their tokens: [layer, query, width]."""
    order, found = [], []
    autocast = torch.autocast(model.device.type, precision, enabled=precision != torch.float32)
    whole = [TokenSequence(query.sequence_id, query.token_ids) for query in encoded]
    for batch in batches(whole, size, model.device):
        with autocast, torch.no_grad():
            states = model.base_model(**batch.model_inputs, use_cache=False, output_hidden_states=True).hidden_states
        order.extend(batch.sequence_ids.tolist())
        found.append(_mean_states(states, batch))
    return np.concatenate(found, axis=1)[:, np.argsort(order)]


def _encode(job: CheckpointJob) -> list[TokenSequence]:
    path = job.scoring.model
    tokenizer, context = load_tokenizer(path), context_length(path)
    encoded = (encode_query(tokenizer, p.prompt, p.completion, context, p.query_id) for p in job.prompts)
    return [TokenSequence(k, found.token_ids, found.first_scored) for k, found in enumerate(encoded)]


@dataclass(frozen=True)
class Pairs:
    """The (query, sequence) pairs of one batch, and the queries that occur in them."""

    queries: np.ndarray  # that have any of the batch's sequences, by number
    query: np.ndarray  # of each pair, by number
    place: np.ndarray  # of its query among `queries`
    row: np.ndarray  # of its sequence in the batch
    sequence_ids: np.ndarray


class Candidates:
    """Which of a job's queries have which sequence among their candidates."""

    def __init__(self, job: CheckpointJob) -> None:
        scoring = job.scoring
        with session(scoring.store) as connection:
            part_view(connection, scoring.store, "run_candidates", "candidates", scoring.run_id)
            found = query(connection, "trajectory/pairs", queries=[p.query_id for p in job.prompts])
        self._query, self._sequence = found["query"].to_numpy(), found["sequence_id"].to_numpy()
        self.sequence_ids = np.unique(self._sequence)

    def of(self, batch: Batch) -> Pairs:
        """The pairs of a batch's sequences, which are all among the candidates."""
        ids = batch.sequence_ids.cpu().numpy()
        first, end = np.searchsorted(self._sequence, ids), np.searchsorted(self._sequence, ids, "right")
        at = np.concatenate([np.arange(a, b) for a, b in zip(first, end, strict=True)])
        queries, place = np.unique(self._query[at], return_inverse=True)
        return Pairs(queries, self._query[at], place, np.repeat(np.arange(len(ids)), end - first), self._sequence[at])


def _product_rows(
    job: CheckpointJob,
    compared: Compared,
    of_queries: np.ndarray,
    pairs: Pairs,
    products: np.ndarray,
    norms: np.ndarray,
) -> pa.Table:
    """A row per pair and group: products [k, g, u, b], lengths [k, g, q] of the queries and [k, g, b] of the batch."""
    n_groups, n = len(compared.groups), len(pairs.query)
    columns = _pair_columns(job, pairs, n_groups) | {
        "checkpoint": np.full(n_groups * n, job.checkpoint.step, np.int32),
        "learning_rate": pa.array([job.checkpoint.learning_rate] * (n_groups * n), pa.float64()),
        "parameter_group": np.repeat(np.array(compared.groups, dtype=object), n),
    }
    for form, prefix in enumerate(("", "scaled_")):
        if form < compared.forms:
            found = (
                products[form][:, pairs.place, pairs.row],
                of_queries[form][:, pairs.query],
                norms[form][:, pairs.row],
            )
            values = [pa.array(numbers.ravel()) for numbers in found]
        else:
            values = [pa.nulls(n_groups * n, pa.float64())] * 3
        names = ("dot", "query_norm", "sequence_norm")
        columns |= {prefix + name: value for name, value in zip(names, values, strict=True)}
    return pa.table(columns)


def _state_rows(job: CheckpointJob, pairs: Pairs, of_queries: np.ndarray, of_sequences: np.ndarray) -> pa.Table:
    """A row per pair and layer, from mean hidden states [layer, query, width] and [layer, b, width]."""
    n_layers, n = len(of_queries), len(pairs.query)
    left, right = of_queries[:, pairs.query], of_sequences[:, pairs.row]
    return pa.table(
        _pair_columns(job, pairs, n_layers)
        | {
            "layer": np.repeat(np.arange(n_layers, dtype=np.int32), n),
            "dot": np.einsum("lpd,lpd->lp", left, right).ravel(),
            "query_norm": np.linalg.norm(left, axis=2).ravel(),
            "sequence_norm": np.linalg.norm(right, axis=2).ravel(),
        }
    )


def _pair_columns(job: CheckpointJob, pairs: Pairs, times: int) -> dict[str, pa.Array]:
    names = pa.array([prompt.query_id for prompt in job.prompts])
    return {
        "run_id": pa.array([job.scoring.run_id] * (times * len(pairs.query))),
        "query_id": names.take(pa.array(np.tile(pairs.query, times))),
        "sequence_id": pa.array(np.tile(pairs.sequence_ids, times)),
    }


def _mean_states(states: States, batch: Batch) -> np.ndarray:
    """Mean hidden states of a batch, layer by layer, in float64: [layer, b, width]."""
    return torch.stack([mean_over_tokens(state, batch) for state in states]).double().cpu().numpy()
