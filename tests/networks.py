"""Tiny problems and dense curvature for the tests of validation: written out with other primitives."""

from __future__ import annotations

import torch
from torch.func import hessian, jacrev

from tasks.evaluation.perceptron import Problem, Weights


def problem(kind: str = "classification", n: int = 24, seed: int = 0) -> Problem:
    """Examples of 3 numbers with one of 4 classes, or 2 numbers, each."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n + 6, 3, generator=generator, dtype=torch.float64)
    if kind == "classification":
        y, outputs = torch.randint(0, 4, (n + 6,), generator=generator), 4
    else:
        y, outputs = torch.randn(n + 6, 2, generator=generator, dtype=torch.float64), 2
    activation = "relu" if kind == "classification" else "tanh"
    return Problem("tiny", kind, x[:n], y[:n], x[n:], y[n:], outputs, activation)


def layered(weights: Weights, x: torch.Tensor, activation: str) -> torch.Tensor:
    """The network by torch's own layers."""
    for k, matrix in enumerate(weights.values()):
        if k:
            x = torch.relu(x) if activation == "relu" else torch.tanh(x)
        x = torch.nn.functional.linear(x, matrix[:, :-1], matrix[:, -1])
    return x


def outputs(flat: torch.Tensor, like: Weights, x: torch.Tensor, activation: str) -> torch.Tensor:
    """Outputs as a function of all weights in one row."""
    weights, at = {}, 0
    for name, matrix in like.items():
        weights[name] = flat[at : at + matrix.numel()].view(matrix.shape)
        at += matrix.numel()
    return layered(weights, x, activation)


def flat(weights: Weights) -> torch.Tensor:
    """All matrices in one row."""
    return torch.cat([matrix.flatten() for matrix in weights.values()])


def gauss_newton(problem: Problem, weights: Weights) -> torch.Tensor:
    """The mean of Jᵀ H J over the examples, H by automatic differentiation of torch's own loss."""
    row = flat(weights)
    total = torch.zeros(len(row), len(row), dtype=torch.float64)
    for x, y in zip(problem.inputs, problem.targets, strict=True):
        jacobian = jacrev(outputs)(row, weights, x, problem.activation)
        h = hessian(loss)(outputs(row, weights, x, problem.activation), y)
        total += jacobian.T @ h @ jacobian
    return total / problem.n


def loss(given: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of a class, or half the squared error."""
    if target.dtype == torch.long:
        return torch.nn.functional.cross_entropy(given, target)
    return torch.nn.functional.mse_loss(given, target, reduction="sum") / 2


def mean_loss(row: torch.Tensor, problem: Problem, like: Weights) -> torch.Tensor:
    """J as a function of all weights in one row."""
    given = outputs(row, like, problem.inputs, problem.activation)
    return torch.stack([loss(o, y) for o, y in zip(given, problem.targets, strict=True)]).mean()


def gradient(row: torch.Tensor, problem: Problem, like: Weights, k: int) -> torch.Tensor:
    """∇L of the k-th example."""
    return jacrev(lambda r: loss(outputs(r, like, problem.inputs[k], problem.activation), problem.targets[k]))(row)
