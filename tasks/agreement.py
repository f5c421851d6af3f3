"""What precision, batch size, attention kernel, rank and blocks do to the scores of this model, measured on a sample.

A reference is computed in float32 with everything exact; each variant changes one thing. Beside them, every
module's sequence gradient is held against plain autograd on the weights: a model that hooks cannot see through
(an output changed in place, a module that is skipped) shows here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn
from transformers import PreTrainedModel

from storage.checkpoints import context_length, load_model, load_tokenizer
from storage.prompts import Prompt
from storage.sequences import all_sequence_ids, corpus_parts, read_tokens
from storage.store import Store
from tasks.compute import ComputeParameters, dtype_of
from tasks.factors import PASS, FitParameters
from tasks.influence.batches import Batch, TokenSequence, batches, collate, token_batches
from tasks.influence.compression import Compressed, project
from tasks.influence.covariance import covariance_sums
from tasks.influence.ekfac import Metric, eigenbasis, eigenvalue_sums, relative_damping
from tasks.influence.footprint import metric_bytes, module_groups
from tasks.influence.gradients import sequence_gradients
from tasks.influence.modules import TrackedModule, select_modules
from tasks.influence.objectives import true_token_gradient, true_token_loss
from tasks.influence.queries import compressed_gradients, encode_query, query_calls
from tasks.influence.scores import pairwise_scores
from tasks.influence.sweep import sweep
from tasks.machine import matrix_budget
from tasks.sampling import uniform_sample

DAMPING = 0.1
ASKED = 4  # queries of the report
KEPT = 10  # the head whose overlap is reported


@dataclass(frozen=True)
class Agreement:
    """How the scores of one variant agree with float32's, over the queries: Spearman, top-10 overlap, largest gap."""

    variant: str
    spearman_mean: float
    spearman_lowest: float
    top_shared: float  # of the first KEPT
    largest_difference: float  # relative to the largest score of its query


@dataclass(frozen=True)
class GradientCheck:
    """The worst module of the self-check: relative difference of its gradient from autograd's on the weight."""

    module: str
    difference: float
    modules: int


@dataclass(frozen=True)
class _Variant:
    """What one measurement changes."""

    name: str
    fit: torch.dtype = torch.float32
    score: torch.dtype = torch.float32
    batch_size: int = 16
    attention: str = "sdpa"
    rank: int | None = None
    blocks: int = 1


def measure_agreement(
    store: Store,
    model: Path,
    prompts: list[Prompt],
    fit: FitParameters,
    compute: ComputeParameters,
    rank: int,
    sample: int,
) -> list[Agreement]:
    """Score a uniform sample of the corpus in every variant; the factors are fitted on the same sample."""
    sequences = sample_sequences(store, sample, fit.seed)
    queries = _queries(model, prompts, sequences)
    policy = dtype_of(compute)
    name = str(policy).removeprefix("torch.")
    variants = [
        _Variant("batch size 1", batch_size=1),
        _Variant("attention kernel eager", attention="eager"),
        _Variant(f"rank {rank}", rank=rank),
        _Variant("covariances in 2 blocks", blocks=2),
    ]
    if policy != torch.float32:
        variants = [
            _Variant(f"{name} scores, float32 fit", score=policy),
            _Variant(f"{name} fit and scores", fit=policy, score=policy),
            _Variant(f"{name}, batch size 1", fit=policy, score=policy, batch_size=1),
            _Variant(f"{name}, rank {rank} (the policy)", fit=policy, score=policy, rank=rank),
            *variants,
        ]
    measure = partial(_scores, model, fit, queries, sequences)
    reference = measure(_Variant("float32"))
    return [_compare(variant.name, reference, measure(variant)) for variant in variants]


def check_gradients(model: Path, modules: str, tokens: list[int]) -> GradientCheck:
    """Compare every tracked module's gradient of one sequence with autograd's gradient of its weight."""
    network = load_model(model)
    tracked = select_modules(network, modules)
    batch = collate([TokenSequence(0, tokens)], network.device)
    ((_, calls),) = sweep(network, tracked, [batch], true_token_gradient)
    by_name = dict(network.named_modules())
    looked_up = {id(m.weight) for m in by_name.values() if isinstance(m, nn.Embedding)}  # autograd counts look-ups too
    worst = GradientCheck("none", 0.0, len(tracked))
    for module in tracked:
        weight, bias = by_name[module.name].weight, by_name[module.name].bias
        if id(weight) in looked_up:
            continue
        expected = _autograd(network, [weight] if bias is None else [weight, bias], batch)
        parts = [expected[0].T if module.kind == "Conv1D" else expected[0], *(g[:, None] for g in expected[1:])]
        gradient = torch.cat(parts, dim=1)
        found = sequence_gradients(calls[module.name], module)[0]
        difference = float((found - gradient).norm() / gradient.norm().clamp_min(1e-30))
        difference = math.inf if math.isnan(difference) else difference  # no number is worst of all
        if difference >= worst.difference:
            worst = GradientCheck(module.name, difference, len(tracked))
    return worst


def _autograd(network: PreTrainedModel, parameters: list[torch.Tensor], batch: Batch) -> tuple[torch.Tensor, ...]:
    """The loss's gradients on a few parameters of a frozen model, by its own graph."""
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        loss = true_token_loss(network(**batch.model_inputs, use_cache=False).logits, batch)
        return torch.autograd.grad(loss, parameters)
    finally:
        network.requires_grad_(False)


def sample_sequences(store: Store, size: int, seed: int) -> list[TokenSequence]:
    """A uniform sample of the corpus."""
    chosen = uniform_sample(all_sequence_ids(corpus_parts(store)), size, seed)
    tokens = read_tokens(store, chosen)
    return [TokenSequence(i, tokens[i]) for i in chosen.tolist()]


def _queries(model: Path, prompts: list[Prompt], sequences: list[TokenSequence]) -> list[TokenSequence]:
    """The store's first queries; without any, sequences of the sample whose last quarter is the completion."""
    if prompts:
        tokenizer, context = load_tokenizer(model), context_length(model)
        return [encode_query(tokenizer, p.prompt, p.completion, context, p.query_id) for p in prompts[:ASKED]]
    long = sorted(sequences, key=lambda s: (-len(s.token_ids), s.sequence_id))[:ASKED]
    return [TokenSequence(s.sequence_id, s.token_ids, max(1, 3 * len(s.token_ids) // 4)) for s in long]


def _scores(
    model: Path, fit: FitParameters, queries: list[TokenSequence], sequences: list[TokenSequence], variant: _Variant
) -> np.ndarray:
    """Influences [query, sequence] of one variant, sequences by id."""
    network = load_model(model)
    network.set_attn_implementation(variant.attention)
    try:
        modules = select_modules(network, fit.modules)
        groups = module_groups([metric_bytes(m) for m in modules], matrix_budget())
        return sum(
            _group_scores(network, [modules[k] for k in group], fit, queries, sequences, variant) for group in groups
        )
    finally:
        network.set_attn_implementation("sdpa")


def _group_scores(
    network: PreTrainedModel,
    modules: list[TrackedModule],
    fit: FitParameters,
    queries: list[TokenSequence],
    sequences: list[TokenSequence],
    variant: _Variant,
) -> np.ndarray:
    """The part of the influences that some modules have."""
    metrics = _metrics(network, modules, fit, sequences, variant)
    calls = query_calls(network, modules, queries)
    forms = [_form(calls[m.name], m, metrics[m.name], variant, sequences) for m in modules]
    found: dict[int, np.ndarray] = {}
    stream = batches(sequences, variant.batch_size, network.device)
    for batch, seen in sweep(network, modules, stream, true_token_gradient, variant.score):
        pairs = zip(modules, forms, strict=True)
        total = torch.stack([pairwise_scores(seen[m.name], m, form) for m, form in pairs]).double().sum(0)
        found.update(zip(batch.sequence_ids.tolist(), total.T.cpu().numpy(), strict=True))
    return np.stack([found[s.sequence_id] for s in sequences], axis=1)


def _form(calls: list, module: TrackedModule, metric: Metric, variant: _Variant, sequences) -> Compressed:
    if variant.rank is None:  # whole: nothing is dropped
        return project(lambda: (metric.precondition(sequence_gradients(c, module)[0]) for c in calls), None, None)
    return compressed_gradients(calls, module, metric, variant.rank, max(len(s.token_ids) for s in sequences))


def _metrics(
    network: PreTrainedModel,
    modules: list[TrackedModule],
    fit: FitParameters,
    sequences: list[TokenSequence],
    variant: _Variant,
) -> dict[str, Metric]:
    def passes() -> Iterator:
        stream = token_batches(sequences, PASS, network.device)
        return sweep(network, modules, stream, fit.objective, variant.fit)

    sums = covariance_sums(passes(), modules, variant.blocks)
    bases = {name: eigenbasis(total) for name, total in sums.items()}
    squares = eigenvalue_sums(passes(), modules, bases)
    metrics = {}
    for name, basis in bases.items():
        values = squares[name] / len(sequences)
        metrics[name] = Metric(basis.out, basis.inp, values, relative_damping(values, DAMPING, name))
    return metrics


def _compare(name: str, reference: np.ndarray, found: np.ndarray) -> Agreement:
    ranks = [spearmanr(a, b).statistic for a, b in zip(reference, found, strict=True)]
    k = min(KEPT, reference.shape[1])
    heads = [set(np.argsort(-a)[:k]) & set(np.argsort(-b)[:k]) for a, b in zip(reference, found, strict=True)]
    gap = np.abs(found - reference).max(axis=1) / np.abs(reference).max(axis=1)
    shared = float(np.mean([len(head) for head in heads])) / k
    return Agreement(name, float(np.mean(ranks)), float(np.min(ranks)), shared, float(gap.max()))
