"""Small multilayer perceptrons as functions of their weight matrices: what validation against retraining runs on.

A network is a dictionary of matrices [o, i] in float64, bias as the last column, in order: one example less moves a
loss by parts in a million. Its curvature comes from the same code as a language model's: an example is a sequence of
one position.

Letters: n examples, m test examples, o output width, i homogeneous input width, v outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional

from tasks.influence.batches import Batch
from tasks.influence.capture import Call
from tasks.influence.gauss_newton import Curvature, softmax_curvature, squared_curvature
from tasks.influence.modules import TrackedModule
from tasks.influence.sweep import Calls

if TYPE_CHECKING:
    from jaxtyping import Float

Weights = dict[str, Tensor]
Kind = Literal["classification", "regression"]
Activation = Literal["tanh", "relu"]


@dataclass(frozen=True, eq=False)
class Problem:
    """Examples to learn and examples to ask about; targets are class numbers, or rows of numbers.

    With them stands what bends the hidden layers of their networks: with tanh an objective has a minimum that is
    found, while the kinks of relu hold a descent where no gradient vanishes.
    """

    name: str
    kind: Kind
    inputs: Float[Tensor, "n d"]
    targets: Tensor
    test_inputs: Float[Tensor, "m d"]
    test_targets: Tensor
    outputs: int  # numbers that a network gives for an example
    activation: Activation = "tanh"  # of hidden layers

    @property
    def n(self) -> int:
        """Training examples."""
        return len(self.inputs)

    def losses(self, outputs: Float[Tensor, "n v"], targets: Tensor) -> Float[Tensor, "n"]:
        """−log p of the class in nats, or half the squared error."""
        if self.kind == "classification":
            return functional.cross_entropy(outputs, targets, reduction="none")
        return (outputs - targets).square().sum(-1) / 2

    def divergences(self, outputs: Float[Tensor, "n v"], before: Float[Tensor, "n v"]) -> Float[Tensor, "n"]:
        """The Bregman divergence of the loss in the outputs, D_L(outputs, before): zero where they agree.

        Of the softmax it is KL(softmax(before) ‖ softmax(outputs)), of half the squared error itself.
        """
        if self.kind == "classification":
            logs, logs_before = torch.log_softmax(outputs, -1), torch.log_softmax(before, -1)
            return (logs_before.exp() * (logs_before - logs)).sum(-1)
        return (outputs - before).square().sum(-1) / 2

    def output_roots(self, outputs: Float[Tensor, "n v"]) -> Float[Tensor, "v n v"]:
        """v gradients r_k in the outputs of each example with Σ_k r_k r_kᵀ = H, the loss's Hessian in the outputs.

        Of the softmax √p_k (p − e_k): the gradients of all labels, each by the root of its probability. Labels drawn
        from the network would give the same on average, but where it is sure the rare ones decide, and are too few.
        """
        v = outputs.shape[-1]
        eye = torch.eye(v, dtype=outputs.dtype)[:, None]
        if self.kind == "regression":
            return eye.expand(v, *outputs.shape)
        p = torch.softmax(outputs, -1)
        return p.T.sqrt()[..., None] * (p - eye)


def new_weights(problem: Problem, hidden: Sequence[int], seed: int) -> Weights:
    """Untrained matrices; weights of a layer are uniform within 1/√fan_in, as torch.nn.Linear has them."""
    generator = torch.Generator().manual_seed(seed)
    widths = [problem.inputs.shape[1], *hidden, problem.outputs]
    weights = {}
    for k, (d_in, d_out) in enumerate(pairwise(widths)):
        spread = 2 * torch.rand(d_out, d_in + 1, generator=generator, dtype=torch.float64) - 1
        weights[f"layer {k}"] = spread / math.sqrt(d_in)
    return weights


def network(weights: Weights, inputs: Float[Tensor, "n d"], activation: Activation) -> Float[Tensor, "n v"]:
    """Outputs; the last layer is linear."""
    *hidden, last = weights.values()
    for matrix in hidden:
        inputs = _bend(_linear(matrix, inputs), activation)
    return _linear(last, inputs)


def loss_gradients(problem: Problem, weights: Weights, inputs: Float[Tensor, "n d"], targets: Tensor) -> Weights:
    """∇L of each example, [n, o, i] by matrix."""

    def loss(weights: Weights, given: Tensor, target: Tensor) -> Tensor:
        return problem.losses(network(weights, given[None], problem.activation), target[None])[0]

    return vmap(grad(loss), in_dims=(None, 0, 0))(weights, inputs, targets)


def curvature(problem: Problem, weights: Weights, rows: Tensor) -> Curvature[Tensor]:
    """The exact Gauss-Newton matrix of the mean loss over the examples with these numbers."""
    return Curvature(
        weights,
        lambda some, batch: network(some, problem.inputs[batch], problem.activation),
        softmax_curvature if problem.kind == "classification" else squared_curvature,
        lambda outputs, batch: problem.losses(outputs, problem.targets[batch]).sum(),
        lambda: [rows],
        len(rows),
    )


def modules_of(weights: Weights) -> list[TrackedModule]:
    """The matrices as the mathematics of attribution knows them."""
    return [
        TrackedModule(name, k, "Linear", matrix.shape[0], matrix.shape[1] - 1, True, matrix.numel())
        for k, (name, matrix) in enumerate(weights.items())
    ]


def fisher_passes(problem: Problem, weights: Weights) -> Iterator[tuple[Batch, Calls]]:
    """Inputs and output gradients of every matrix, one pass per output: their second moment is that of the Fisher.

    A mean over all v · n gradients is the mean over examples of a sum over outputs, hence the √v.
    """
    weights = {name: matrix.float() for name, matrix in weights.items()}
    given, befores, outputs = _recorded(problem, weights)
    roots = problem.output_roots(outputs.detach()) * math.sqrt(problem.outputs)
    for root in roots:
        deltas = torch.autograd.grad(outputs, list(befores.values()), root, retain_graph=True)
        yield _batch(problem), _calls(given, dict(zip(befores, deltas, strict=True)))


def _recorded(problem: Problem, weights: Weights) -> tuple[Weights, Weights, Tensor]:
    """What goes into each matrix and what comes out of it, and the outputs."""
    inputs = problem.inputs.to(next(iter(weights.values())).dtype)
    given, befores, last = {}, {}, next(reversed(weights))
    for name, matrix in weights.items():
        given[name], befores[name] = inputs.detach(), _linear(matrix, inputs).requires_grad_()
        inputs = befores[name] if name == last else _bend(befores[name], problem.activation)
    return given, befores, inputs


def _calls(given: Weights, deltas: Weights) -> Calls:
    return {name: [Call(given[name][:, None], delta[:, None])] for name, delta in deltas.items()}


def _batch(problem: Problem) -> Batch:
    scored = torch.ones(problem.n, 1, dtype=torch.bool)
    return Batch(torch.arange(problem.n), torch.zeros(problem.n, 1, dtype=torch.long), scored)


def _linear(matrix: Float[Tensor, "o i"], inputs: Float[Tensor, "n d"]) -> Float[Tensor, "n o"]:
    return inputs @ matrix[:, :-1].T + matrix[:, -1]


def _bend(values: Tensor, activation: Activation) -> Tensor:
    return functional.relu(values) if activation == "relu" else torch.tanh(values)
