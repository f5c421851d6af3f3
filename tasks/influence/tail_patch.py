"""Tail-patch: what one training step on one sequence does to the probability of an answer.

The step is plain gradient descent on the sequence's own loss, θ′ = θ − η ∇L(z)/T, the mean over its T predicted tokens
in nats, as trainers take it: so a step is of one size however long the sequence is. The change is
log p(answer | prompt; θ′) − log p(answer | prompt; θ), to first order (η/T) ⟨∇ log p(answer | prompt), −∇L(z)⟩, the
inner product that `identity` and TracIn rank by. So "contains the fact" and "teaches the fact" are two things that
can be told apart. The measure is that of Chang et al. 2024 (arXiv 2410.17413), who took the step with the optimizer of
the model's own training; a step without an optimizer's state needs nothing but the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from tasks.influence.batches import TokenSequence, batches, collate
from tasks.influence.objectives import log_probabilities, true_token_loss


@dataclass(frozen=True)
class Patch:
    """One (query, sequence): log p(answer | prompt) in nats before and after a step on the sequence."""

    query: int
    sequence: int
    before: float
    after: float


def tail_patches(
    model: PreTrainedModel,
    queries: Mapping[int, TokenSequence],
    sequences: Mapping[int, TokenSequence],
    asked_of: Mapping[int, Sequence[int]],
    learning_rate: float,
    batch_size: int,
) -> Iterator[Patch]:
    """A patch for each query in asked_of[sequence]; one step per sequence, and its queries share their passes.

    Weights are those of before whenever a patch is handed out. Costs one forward and backward pass per sequence and a
    forward pass per pair.
    """
    named = {q: TokenSequence(q, query.token_ids, query.first_scored) for q, query in queries.items()}
    before = _answers(model, list(named.values()), batch_size)
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    for sequence, asked in asked_of.items():
        with _stepped(model, sequences[sequence], learning_rate, weights):
            after = _answers(model, [named[q] for q in asked], batch_size)
        yield from (Patch(q, sequence, before[q], after[q]) for q in asked)


@torch.no_grad()
def _answers(model: PreTrainedModel, queries: list[TokenSequence], batch_size: int) -> dict[int, float]:
    found: dict[int, float] = {}
    for batch in batches(queries, batch_size, model.device):
        logits = model(**batch.model_inputs, use_cache=False).logits
        found.update(zip(batch.sequence_ids.tolist(), log_probabilities(logits, batch).tolist(), strict=True))
    return found


@contextmanager
def _stepped(
    model: PreTrainedModel, sequence: TokenSequence, learning_rate: float, weights: list[torch.Tensor]
) -> Iterator[None]:
    """The model after a step on the sequence; `weights`, those of before, come back when the block ends."""
    parameters = list(model.parameters())
    trainable = [parameter.requires_grad for parameter in parameters]
    try:
        model.requires_grad_(True)
        batch = collate([sequence], model.device)
        loss = true_token_loss(model(**batch.model_inputs, use_cache=False).logits, batch)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        with torch.no_grad():
            step = learning_rate / max(1, int(batch.scored.sum()))
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.sub_(gradient, alpha=step)
        yield
    finally:
        with torch.no_grad():
            for parameter, before, was_trainable in zip(parameters, weights, trainable, strict=True):
                parameter.copy_(before)
                parameter.requires_grad_(was_trainable)
