"""(G + λI)⁻¹ v of small networks by every method, for several λ, with the seconds that each takes.

What a method needs whatever λ is (factors, a largest eigenvalue, a matrix written out) is made once and its seconds
count with each λ: a method's time is what it takes alone.

Letters: q vectors.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from torch.func import vmap

from tasks.evaluation.perceptron import Problem, Weights, curvature, fisher_passes, modules_of
from tasks.influence.conjugate_gradients import conjugate_gradients
from tasks.influence.covariance import covariance_sums
from tasks.influence.ekfac import Eigenbasis, Metric, eigenbasis, eigenvalue_sums
from tasks.influence.exact import explicit_matrix, solve_exactly
from tasks.influence.lissa import choose_series, koh_liang, largest_eigenvalue, lissa
from tasks.influence.vectors import Product, Vectors, combine, damped, norm

Inverse = Literal["identity", "kfac", "ekfac", "lissa", "cg", "exact_blocks", "exact", "hessian"]
EXPLICIT: tuple[Inverse, ...] = ("exact_blocks", "exact", "hessian")  # those that write a matrix out
POWER = 30  # products that the largest eigenvalue is estimated from
TIGHT = 1e-8  # residual at which a solution stands for the true one


class EffortParameters(BaseModel):
    """How far the iterative methods go."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    iterations: int = Field(20, ge=1, le=100_000, description="of cg, at most, each a pass over the examples")
    tolerance: float = Field(0.01, gt=0, lt=1, description="of cg: residual relative to the gradient, where it stops")
    depth: int = Field(2000, ge=1, le=1_000_000, description="of lissa: terms of the series, at most")
    rounds: int = Field(2, ge=1, le=1000, description="of lissa: series whose mean is taken")
    batch: int = Field(256, ge=1, le=1_000_000, description="of lissa: examples of the random batch of a term")
    alpha: float | None = Field(None, gt=0, description="of lissa: its step; none: from the largest eigenvalue")
    scale: float | None = Field(
        None,
        gt=0,
        description="of lissa, instead: the scale 1 / alpha of Koh & Liang, whose damping is λ / scale",
    )

    @model_validator(mode="after")
    def _one_step(self) -> EffortParameters:
        if self.alpha is not None and self.scale is not None:
            raise ValueError("lissa: expected either alpha or scale, which is 1 / alpha, found both. Give one.")
        return self


@dataclass(frozen=True)
class Solution:
    """What a method found for one λ, and what it took."""

    vectors: Vectors
    residuals: Tensor  # [q]: ‖v − (G + λI) x‖ / ‖v‖
    seconds: float


@dataclass(frozen=True, eq=False)
class System:
    """G of one trained network, with what solvers need of it."""

    problem: Problem
    weights: Weights
    effort: EffortParameters = field(default_factory=EffortParameters)
    seed: int = 0

    @cached_property
    def product(self) -> Product:
        """v ↦ G v over all examples."""
        return self._over(torch.arange(self.problem.n))

    @cached_property
    def bases(self) -> dict[str, Eigenbasis]:
        """Eigenbases of A and S of each matrix, from every example and every label."""
        sums = covariance_sums(fisher_passes(self.problem, self.weights), modules_of(self.weights))
        return {name: eigenbasis(total) for name, total in sums.items()}

    @cached_property
    def eigenvalues(self) -> dict[str, Tensor]:
        """EK-FAC's Λ of each matrix."""
        passes = fisher_passes(self.problem, self.weights)
        sums = eigenvalue_sums(passes, modules_of(self.weights), self.bases)
        return {name: total / (self.problem.n * self.problem.outputs) for name, total in sums.items()}

    @cached_property
    def matrix(self) -> Tensor:
        """G written out."""
        return explicit_matrix(self.product, self._like)

    @cached_property
    def hessian(self) -> Tensor:
        """The Hessian of the mean loss written out: G and what the loss's own curvature adds, which may be negative."""
        product = curvature(self.problem, self.weights, torch.arange(self.problem.n)).hessian
        return explicit_matrix(_side_by_side(product), self._like)

    @cached_property
    def largest(self) -> float:
        """G's largest eigenvalue."""
        return largest_eigenvalue(self.product, self._like, POWER)

    def metrics(self, damping: float) -> dict[str, Metric]:
        """EK-FAC's damped inverse of each matrix."""
        return {n: Metric(b.out, b.inp, self.eigenvalues[n], damping) for n, b in self.bases.items()}

    def solve(self, method: Inverse, vectors: Vectors, dampings: Sequence[float]) -> dict[float, Solution]:
        """x of every vector, by λ; the identity's x is v."""
        began = time.perf_counter()
        alone = System(self.problem, self.weights, self.effort, self.seed)  # shares nothing with another method
        prepare, invert = SOLVERS[method]
        prepare(alone)
        prepared, found = time.perf_counter() - began, {}
        for damping in dampings:
            began = time.perf_counter()
            solved = invert(alone, vectors, damping)
            seconds = prepared + time.perf_counter() - began
            found[damping] = Solution(solved, self.residuals(solved, vectors, damping), seconds)
        return found

    def converged(self, vectors: Vectors, damping: float, iterations: int = 10_000) -> Solution:
        """x to all digits that matter, whatever it takes: by conjugate gradients."""
        began = time.perf_counter()
        solved = conjugate_gradients(
            damped(self.product, self.equal(damping)), vectors, lambda v: v, iterations, TIGHT
        ).vectors
        return Solution(solved, self.residuals(solved, vectors, damping), time.perf_counter() - began)

    def residuals(self, solved: Vectors, vectors: Vectors, damping: float) -> Tensor:
        """How far x is from solving the system, relative to v."""
        rest = combine(vectors, -1.0, damped(self.product, self.equal(damping))(solved))
        return norm(rest) / norm(vectors).clamp_min(torch.finfo(torch.float64).tiny)

    def batch_product(self, j: int) -> Product:
        """v ↦ G v over the j-th random batch."""
        generator = np.random.default_rng([self.seed, j])
        size = min(self.effort.batch, self.problem.n)
        return self._over(torch.from_numpy(generator.choice(self.problem.n, size, replace=False)))

    def equal(self, damping: float) -> dict[str, float]:
        """One λ for every matrix."""
        return dict.fromkeys(self.weights, damping)

    @property
    def _like(self) -> Vectors:
        return {name: matrix[None] for name, matrix in self.weights.items()}

    def _over(self, rows: Tensor) -> Product:
        return _side_by_side(curvature(self.problem, self.weights, rows).gauss_newton)


def _side_by_side(product: Product) -> Product:
    """The product with all vectors at once: one after another, products of small matrices are mostly overhead."""

    def one(vector: Weights) -> Weights:
        return {name: value[0] for name, value in product({n: v[None] for n, v in vector.items()}).items()}

    return vmap(one)


def _identity(system: System, vectors: Vectors, damping: float) -> Vectors:
    return {name: value.clone() for name, value in vectors.items()}


def _kfac(system: System, vectors: Vectors, damping: float) -> Vectors:
    return _by_metric({n: Metric(b.out, b.inp, b.kfac_eigenvalues, damping) for n, b in system.bases.items()}, vectors)


def _ekfac(system: System, vectors: Vectors, damping: float) -> Vectors:
    return _by_metric(system.metrics(damping), vectors)


def _by_metric(metrics: dict[str, Metric], vectors: Vectors) -> Vectors:
    return {name: metrics[name].precondition(value.float()).to(value.dtype) for name, value in vectors.items()}


def _cg(system: System, vectors: Vectors, damping: float) -> Vectors:
    effort, metrics = system.effort, system.metrics(damping)
    product = damped(system.product, system.equal(damping))
    precondition = partial(_by_metric, metrics)
    return conjugate_gradients(product, vectors, precondition, effort.iterations, effort.tolerance).vectors


def _lissa(system: System, vectors: Vectors, damping: float) -> Vectors:
    effort, alpha = system.effort, system.effort.alpha
    if effort.scale is not None:
        alpha, damping = koh_liang(damping / effort.scale, effort.scale)
    series = choose_series(system.largest, system.equal(damping), effort.depth, effort.rounds, alpha)
    return lissa(system.batch_product, vectors, system.equal(damping), series)


def _exact(system: System, vectors: Vectors, damping: float) -> Vectors:
    return solve_exactly(system.matrix, vectors, system.equal(damping))


def _exact_blocks(system: System, vectors: Vectors, damping: float) -> Vectors:
    """Without what the matrices of two layers have in common: what EK-FAC approximates."""
    sizes = [value[0].numel() for value in vectors.values()]
    blocks = [rows.split(sizes, dim=1)[k] for k, rows in enumerate(system.matrix.split(sizes))]
    return solve_exactly(torch.block_diag(*blocks), vectors, system.equal(damping))


def _hessian(system: System, vectors: Vectors, damping: float) -> Vectors:
    return solve_exactly(system.hessian, vectors, system.equal(damping))


Prepare = Callable[[System], object]
Invert = Callable[[System, Vectors, float], Vectors]
SOLVERS: dict[Inverse, tuple[Prepare, Invert]] = {
    "identity": (lambda system: None, _identity),
    "kfac": (lambda system: system.bases, _kfac),
    "ekfac": (lambda system: system.eigenvalues, _ekfac),
    "lissa": (lambda system: system.largest, _lissa),
    "cg": (lambda system: system.eigenvalues, _cg),
    "exact_blocks": (lambda system: system.matrix, _exact_blocks),
    "exact": (lambda system: system.matrix, _exact),
    "hessian": (lambda system: system.hessian, _hessian),
}
