"""The Gauss-Newton matrix by its products: G v = mean over sequences of Σ_t J_tᵀ H_t J_t v, never written out.

J_t is the Jacobian of the outputs at a scored position, H_t the Hessian of the loss in those outputs: diag(p) − p pᵀ
for the softmax, I for half the squared error. G is positive semidefinite, and for the softmax it is the Fisher matrix
with labels drawn from the model: what EK-FAC approximates, on the same scale (a sequence sums over its positions).
J v comes from a forward pass that carries the direction along, Jᵀ u from a backward pass: together about four forward
passes for each vector (Martens 2010; Schraudolph 2002, doi 10.1162/08997660260028683).

Letters: q vectors, n scored positions of a batch, v outputs, o output width, i homogeneous input width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from tasks.influence.batches import Batch
from tasks.influence.modules import TrackedModule
from tasks.influence.vectors import Vectors
from tasks.influence.weights import Weights, logits_under, weights_of

if TYPE_CHECKING:
    from jaxtyping import Float

Given = TypeVar("Given")


def softmax_curvature(outputs: Float[Tensor, "n v"], tangents: Float[Tensor, "n v"]) -> Float[Tensor, "n v"]:
    """(diag p − p pᵀ) w of −log softmax(outputs)[label], whatever the label."""
    p = torch.softmax(outputs, -1)
    weighted = p * tangents
    return weighted - p * weighted.sum(-1, keepdim=True)


def squared_curvature(outputs: Float[Tensor, "n v"], tangents: Float[Tensor, "n v"]) -> Float[Tensor, "n v"]:
    """w: the Hessian of half the squared error is the identity."""
    return tangents


@dataclass(frozen=True)
class Curvature(Generic[Given]):
    """What G or H is made of: outputs as a function of the weights, and the loss in the outputs."""

    weights: Weights  # matrices [o, i], as the vectors have them
    outputs: Callable[[Weights, Given], Tensor]  # of a batch, [n, v]
    curvature: Callable[[Tensor, Tensor], Tensor]
    loss: Callable[[Tensor, Given], Tensor]  # of the outputs of a batch, summed
    batches: Callable[[], Iterable[Given]]
    n_sequences: int

    def gauss_newton(self, vectors: Vectors) -> Vectors:
        """G v for each of the vectors."""
        total = {name: torch.zeros_like(value) for name, value in vectors.items()}
        for batch in self.batches():
            forward = partial(self._outputs_of, batch)
            outputs, back = vjp(forward, self.weights)
            for q in range(_count(vectors)):
                direction = {name: value[q] for name, value in vectors.items()}
                _, tangents = jvp(forward, (self.weights,), (direction,))
                [found] = back(self.curvature(outputs, tangents))
                for name, value in found.items():
                    total[name][q] += value
        return {name: value / self.n_sequences for name, value in total.items()}

    def hessian(self, vectors: Vectors) -> Vectors:
        """H v for each of the vectors: the Hessian of the mean loss, which need not be positive."""
        total = {name: torch.zeros_like(value) for name, value in vectors.items()}
        for batch in self.batches():
            gradient = grad(partial(self._loss_of, batch))
            for q in range(_count(vectors)):
                direction = {name: value[q] for name, value in vectors.items()}
                _, found = jvp(gradient, (self.weights,), (direction,))
                for name, value in found.items():
                    total[name][q] += value
        return {name: value / self.n_sequences for name, value in total.items()}

    def _outputs_of(self, batch: Given, weights: Weights) -> Tensor:
        return self.outputs(weights, batch)

    def _loss_of(self, batch: Given, weights: Weights) -> Tensor:
        return self.loss(self.outputs(weights, batch), batch)


def language_model_curvature(
    model: PreTrainedModel, modules: Sequence[TrackedModule], batches: Callable[[], Iterable[Batch]], n_sequences: int
) -> Curvature[Batch]:
    """The curvature of a causal model's mean loss in the weights of its tracked modules, bias as the last column."""
    weights = weights_of(model, modules)

    def outputs(weights: Weights, batch: Batch) -> Tensor:
        logits = logits_under(model, modules, weights, batch.model_inputs)
        return logits.flatten(0, 1)[batch.scored.flatten()]

    def loss(outputs: Tensor, batch: Batch) -> Tensor:
        return cross_entropy(outputs, batch.next_tokens[batch.scored], reduction="sum")

    return Curvature(weights, outputs, softmax_curvature, loss, batches, n_sequences)


def _count(vectors: Vectors) -> int:
    return len(next(iter(vectors.values())))
