"""Scores stages: every candidate against every query in one pass, then the top sequences exactly, token by token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from storage.checkpoints import context_length, load_model, load_tokenizer
from storage.database import part_view, query, session
from storage.factors import read_fit
from storage.prompts import Prompt
from storage.sequences import read_tokens
from storage.staging import has_staged, staged_tensors_path, staged_writer, view_staged
from storage.tables import write_part
from storage.tensors import read_tensors
from tasks.compute import dtype_of
from tasks.fanout import Workers, fan_out
from tasks.influence.batches import TokenSequence, batches
from tasks.influence.compression import LowRank
from tasks.influence.modules import TrackedModule, select_modules
from tasks.influence.objectives import true_token_loss
from tasks.influence.queries import encode_query, preconditioned_gradients
from tasks.influence.scores import pairwise_scores, token_scores
from tasks.influence.sweep import sweep
from tasks.metrics import load_metrics
from tasks.scoring import Scoring
from tasks.stage import stage

BLOCK = 512  # candidate sequences per job: the unit of resumption
QUERIES = 8  # queries per exact job: bounds the full-rank query gradients in memory


@dataclass(frozen=True)
class BlockJob:
    """One block of candidate sequences."""

    scoring: Scoring
    block: int
    sequence_ids: tuple[int, ...]


@dataclass(frozen=True)
class ExactJob:
    """The top sequences of a few queries."""

    scoring: Scoring
    block: int
    prompts: tuple[Prompt, ...]
    pairs: tuple[tuple[str, int], ...]  # (query_id, sequence_id)


@stage("scores")
def score_candidates(scoring: Scoring, workers: Workers) -> None:
    """Stage `scored` for every candidate, and `self_influences` for those that have none yet."""
    with session(scoring.store) as connection:
        part_view(connection, scoring.store, "run_candidates", "candidates", scoring.run_id)
        ids = query(connection, "scores/candidate_sequences")["sequence_id"].to_numpy()
    blocks = np.array_split(ids, range(BLOCK, len(ids), BLOCK))
    jobs = [BlockJob(scoring, k, tuple(block.tolist())) for k, block in enumerate(blocks) if len(block)]
    fan_out(workers.model, score_block, jobs, "scores", workers.model_resources)


@stage("token scores")
def score_tokens(scoring: Scoring, workers: Workers) -> None:
    """Stage `exact_layers` and `exact_tokens` for the top sequences of each query."""
    with session(scoring.store) as connection:
        view_staged(connection, scoring.store, scoring.run_id, "scored")
        top = query(
            connection,
            "scores/top_pairs",
            method=scoring.method,
            factors_id=scoring.factors_id,
            k=scoring.rescore,
        ).to_pylist()
    jobs = []
    for start in range(0, len(scoring.prompts), QUERIES):
        prompts = scoring.prompts[start : start + QUERIES]
        ids = {prompt.query_id for prompt in prompts}
        pairs = tuple((row["query_id"], row["sequence_id"]) for row in top if row["query_id"] in ids)
        jobs.append(ExactJob(scoring, len(jobs), prompts, pairs))
    fan_out(workers.model, score_exactly, jobs, "token scores", workers.model_resources)


def score_block(job: BlockJob) -> None:
    """Score one block of sequences against all queries of all methods, in one pass of the model."""
    scoring, store = job.scoring, job.scoring.store
    if has_staged(store, scoring.run_id, "scored", str(job.block)):
        return
    network = load_model(scoring.model)
    modules = select_modules(network, scoring.modules)
    queries = _stacked_queries(scoring, len(modules), network.device)
    unknown = _without_self_influence(job)
    metrics = (
        _metrics(scoring, modules, network.device) if len(unknown) else {}
    )  # a pass over known sequences needs no factors
    scores, selves, order = [], [], []
    for batch, calls in _passes(scoring, network, modules, job.sequence_ids, dtype_of(scoring.compute)):
        order.extend(batch.sequence_ids.tolist())
        uses = [(calls[module.name], module) for module in modules]
        scores.append(torch.stack([pairwise_scores(c, m, q) for (c, m), q in zip(uses, queries, strict=True)]).cpu())
        if metrics:
            norms = [metrics[m.name].squared_norms(c, m) for c, m in uses]
            both = torch.stack([sum(n.metric for n in norms), sum(n.euclidean for n in norms)])
            selves.append(both.cpu())
    sequence_ids = np.array(order)
    if selves:
        _write_selves(job, sequence_ids, torch.cat(selves, dim=1).double().numpy(), unknown)
    _write_scores(job, sequence_ids, torch.cat(scores, dim=2).numpy())


def _passes(scoring: Scoring, network, modules: list[TrackedModule], sequence_ids, precision: torch.dtype):
    tokens = read_tokens(scoring.store, np.array(sequence_ids))
    sequences = [TokenSequence(i, tokens[i]) for i in sequence_ids]
    stream = batches(sequences, scoring.compute.batch_size, network.device)
    return sweep(network, modules, stream, true_token_loss, precision)


def _stacked_queries(scoring: Scoring, n_modules: int, device: torch.device) -> list[LowRank]:
    """Per module, the queries of all methods one after another."""
    tensors = read_tensors(staged_tensors_path(scoring.store, scoring.run_id, "query_gradients"))
    sides = {
        side: [
            torch.cat([tensors[f"{method}.{k}.{side}"] for method in scoring.methods]).to(device)
            for k in range(n_modules)
        ]
        for side in ("left", "right")
    }
    return [
        LowRank(left, right, left.new_zeros(len(left)))
        for left, right in zip(sides["left"], sides["right"], strict=True)
    ]


def _metrics(scoring: Scoring, modules: list[TrackedModule], device: torch.device):
    fit = read_fit(scoring.store, scoring.fit_id) if scoring.fit_id else None
    return load_metrics(scoring.store, fit, scoring.model, modules, scoring.method, scoring.damping, device)


def _without_self_influence(job: BlockJob) -> np.ndarray:
    with session(job.scoring.store) as connection:
        known = query(
            connection,
            "scores/known_self_influences",
            factors_id=job.scoring.factors_id,
            first=min(job.sequence_ids),
            last=max(job.sequence_ids),
        )
    return np.setdiff1d(np.array(job.sequence_ids), known["sequence_id"].to_numpy())


def _write_selves(job: BlockJob, sequence_ids: np.ndarray, norms: np.ndarray, unknown: np.ndarray) -> None:
    new = np.isin(sequence_ids, unknown)
    columns = {
        "factors_id": [job.scoring.factors_id] * int(new.sum()),
        "sequence_id": sequence_ids[new],
        "self_influence": norms[0, new],
        "gradient_norm": np.sqrt(norms[1, new]),
    }
    write_part(
        job.scoring.store,
        "self_influences",
        job.scoring.factors_id,
        f"{job.scoring.run_id}-{job.block}",
        columns=columns,
    )


def _write_scores(job: BlockJob, sequence_ids: np.ndarray, scores: np.ndarray) -> None:
    """Keep the (query, sequence) pairs that are candidates; scores are [module, method × query, sequence]."""
    scoring = job.scoring
    with session(scoring.store) as connection:
        part_view(connection, scoring.store, "run_candidates", "candidates", scoring.run_id)
        wanted = query(
            connection, "scores/candidate_pairs", first=int(sequence_ids.min()), last=int(sequence_ids.max())
        )
    rows_of = {prompt.query_id: q for q, prompt in enumerate(scoring.prompts)}
    names = pa.array([prompt.query_id for prompt in scoring.prompts])
    q = np.array([rows_of[name] for name in wanted["query_id"].to_pylist()])
    order = np.argsort(sequence_ids)
    ids = wanted["sequence_id"].to_numpy()
    column = order[np.searchsorted(sequence_ids[order], ids)]
    n_modules, n = scores.shape[0], len(ids)
    with staged_writer(scoring.store, scoring.run_id, "scored", str(job.block)) as part:
        for m, method in enumerate(scoring.methods):
            kept = scores[:, m * len(scoring.prompts) + q, column]
            part.append_table(
                pa.table(
                    {
                        "query_id": names.take(pa.array(np.tile(q, n_modules))),
                        "method": pa.repeat(method, n_modules * n),
                        "sequence_id": np.tile(ids, n_modules),
                        "module": np.repeat(np.arange(n_modules, dtype=np.int16), n),
                        "influence": kept.ravel(),
                    }
                )
            )


def score_exactly(job: ExactJob) -> None:
    """Score the top sequences of a few queries with full-rank query gradients, split by position."""
    scoring, store = job.scoring, job.scoring.store
    if has_staged(store, scoring.run_id, "exact_layers", str(job.block)) or not job.pairs:
        return
    network, tokenizer = load_model(scoring.model), load_tokenizer(scoring.model)
    modules = select_modules(network, scoring.modules)
    context = context_length(scoring.model)
    encoded = [encode_query(tokenizer, p.prompt, p.completion, context, p.query_id) for p in job.prompts]
    gradients = preconditioned_gradients(network, modules, encoded, _metrics(scoring, modules, network.device))
    wanted: dict[int, list[int]] = {}
    position = {prompt.query_id: q for q, prompt in enumerate(job.prompts)}
    for query_id, sequence_id in job.pairs:
        wanted.setdefault(sequence_id, []).append(position[query_id])
    text_of = _token_texts(tokenizer)
    with (
        # Closed in reverse order: the layers appear last and say that the tokens are there.
        staged_writer(store, scoring.run_id, "exact_layers", str(job.block)) as layers_part,
        staged_writer(store, scoring.run_id, "exact_tokens", str(job.block)) as tokens_part,
    ):
        # Few sequences: float32 whatever the policy, so that what is called exact is.
        for batch, calls in _passes(scoring, network, modules, sorted(wanted), torch.float32):
            for row, sequence_id in enumerate(batch.sequence_ids.tolist()):
                asked = wanted[sequence_id]
                length = int(batch.scored[row].nonzero()[-1]) + 2
                shares = np.stack(
                    [
                        token_scores(calls[m.name], m, row, gradients[m.name][asked])[:, :length]
                        .double().cpu().numpy()
                        for m in modules
                    ]
                )  # fmt: skip
                names = [job.prompts[q].query_id for q in asked]
                ids = batch.token_ids[row, :length].tolist()
                layers_part.append_table(_layer_rows(names, sequence_id, shares))
                tokens_part.append_table(
                    _token_rows(names, sequence_id, shares, modules, ids, [text_of(i) for i in ids])
                )


def _layer_rows(names: list[str], sequence_id: int, shares: np.ndarray) -> pa.Table:
    m, q, _ = shares.shape
    return pa.table(
        {
            "query_id": names * m,
            "sequence_id": np.full(m * q, sequence_id),
            "module": np.repeat(np.arange(m, dtype=np.int16), q),
            "influence": shares.sum(-1).ravel(),
        }
    )


def _token_rows(
    names: list[str],
    sequence_id: int,
    shares: np.ndarray,
    modules: list[TrackedModule],
    ids: list[int],
    texts: list[str],
) -> pa.Table:
    """Rows by (query, layer, position); the modules of one layer are summed."""
    layers = sorted({module.layer for module in modules})
    by_layer = np.stack(
        [shares[[k for k, module in enumerate(modules) if module.layer == layer]].sum(0) for layer in layers],
        axis=1,
    )
    q, n_layers, t = by_layer.shape
    return pa.table(
        {
            "query_id": pa.array(np.repeat(np.array(names, dtype=object), n_layers * t)),
            "sequence_id": np.full(q * n_layers * t, sequence_id),
            "layer": np.tile(np.repeat(np.array(layers, dtype=np.int32), t), q),
            "position": np.tile(np.arange(t, dtype=np.int32), q * n_layers),
            "token_id": np.tile(np.array(ids, dtype=np.int32), q * n_layers),
            "token": texts * (q * n_layers),
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
