"""EK-FAC: the Gauss-Newton matrix of one weight matrix as Q diag(Λ) Qᵀ, and its damped inverse.

G ≈ (Q_A ⊗ Q_S) diag(Λ) (Q_A ⊗ Q_S)ᵀ with A = Q_A Λ_A Q_Aᵀ, S = Q_S Λ_S Q_Sᵀ and
Λ = E over sequences of (Q_Sᵀ ∇W Q_A)², ∇W the pseudo-gradient of the whole sequence
(George et al. 2018, arXiv 1806.03884; Grosse et al. 2023, Eqs. 18-21 and 26).
(G + λI)⁻¹ vec(V) = vec( Q_S [ (Q_Sᵀ V Q_A) / (Λ + λ) ] Q_Aᵀ ).

A and S are means over positions, so A ⊗ S stands for one position's Fisher; a sequence sums over its
positions, so K-FAC's eigenvalues carry the mean number of positions per sequence to be on Λ's scale.

Letters: b sequences, t positions, i homogeneous input width, o output width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tasks.influence.batches import Batch
from tasks.influence.block_diagonal import BlockDiagonal
from tasks.influence.capture import Call
from tasks.influence.covariance import CovarianceSums
from tasks.influence.errors import InfluenceError
from tasks.influence.gradients import rotated_by_sequence, rotated_gradients, sequence_gradients
from tasks.influence.modules import TrackedModule
from tasks.influence.sweep import Calls

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Eigenbasis:
    """Q_S and Q_A of one module, with K-FAC's eigenvalues of one whole sequence."""

    out: BlockDiagonal  # [o, o]
    inp: BlockDiagonal  # [i, i]
    kfac_eigenvalues: Float[Tensor, "o i"]
    ranks: tuple[int, int]  # of S and of A, up to float32's rounding of their sums

    def to(self, device: torch.device | str) -> Eigenbasis:
        """The same basis on another device."""
        return Eigenbasis(self.out.to(device), self.inp.to(device), self.kfac_eigenvalues.to(device), self.ranks)


@dataclass(frozen=True)
class SquaredNorms:
    """Squared lengths of sequence gradients under a metric, and plainly."""

    metric: Float[Tensor, "b"]
    euclidean: Float[Tensor, "b"]


@dataclass(frozen=True)
class Metric:
    """(G + λI)⁻¹ of one module, G = Q diag(Λ) Qᵀ; every method of the family differs in Q and Λ only."""

    out: BlockDiagonal  # [o, o]
    inp: BlockDiagonal  # [i, i]
    eigenvalues: Float[Tensor, "o i"]
    damping: float

    def precondition(self, gradient: Float[Tensor, "*q o i"]) -> Float[Tensor, "*q o i"]:
        """(G + λI)⁻¹ applied to gradients."""
        rotated = self.out.right(self.inp.right(gradient).mT).mT
        scaled = rotated / (self.eigenvalues + self.damping)
        return self.out.right_transposed(self.inp.right_transposed(scaled).mT).mT

    def solved(self, calls: list[Call], module: TrackedModule) -> Float[Tensor, "b o i"]:
        """Q_outᵀ [(G + λI)⁻¹ ∇W] Q_in of each sequence: the solution in the eigenbasis, cheap for few positions."""
        return rotated_gradients(calls, module, self.out, self.inp).div_(self.eigenvalues + self.damping)

    def whitened(self, calls: list[Call], module: TrackedModule) -> Float[Tensor, "b o*i"]:
        """(Λ + λ)^−½ Q_outᵀ ∇W Q_in of each sequence: inner products of such rows are influences."""
        rotated = rotated_gradients(calls, module, self.out, self.inp)
        return rotated.div_((self.eigenvalues + self.damping).sqrt()).flatten(1)

    def squared_norms(self, calls: list[Call], module: TrackedModule) -> SquaredNorms:
        """∇W_zᵀ (G + λI)⁻¹ ∇W_z and ‖∇W_z‖² of each sequence; a rotation keeps the latter."""
        inverse = (self.eigenvalues + self.damping).reciprocal().flatten()
        metric, euclidean = [], []
        for some in rotated_by_sequence(calls, module, self.out, self.inp):
            squares = some.square_().flatten(1)
            metric.append(squares @ inverse)
            euclidean.append(squares.sum(1))
        return SquaredNorms(torch.cat(metric), torch.cat(euclidean))

    def to(self, device: torch.device | str) -> Metric:
        """The same metric on another device."""
        return replace(self, out=self.out.to(device), inp=self.inp.to(device), eigenvalues=self.eigenvalues.to(device))


@dataclass(frozen=True)
class IdentityMetric:
    """The metric of the gradient dot product: I in place of (G + λI)⁻¹."""

    damping: float = 0.0

    def precondition(self, gradient: Float[Tensor, "*q o i"]) -> Float[Tensor, "*q o i"]:
        """The gradients themselves."""
        return gradient

    def whitened(self, calls: list[Call], module: TrackedModule) -> Float[Tensor, "b o*i"]:
        """The gradients themselves, a row each."""
        return sequence_gradients(calls, module).flatten(1)

    def squared_norms(self, calls: list[Call], module: TrackedModule) -> SquaredNorms:
        """‖∇W_z‖² of each sequence, twice."""
        squares = sequence_gradients(calls, module).square_().sum((1, 2))
        return SquaredNorms(squares, squares)

    def to(self, device: torch.device | str) -> IdentityMetric:
        """Itself: it holds no tensor."""
        return self


def eigenbasis(sums: CovarianceSums) -> Eigenbasis:
    """Eigendecompose A and S in float64, because small eigenvalues are differences of large sums."""
    if sums.positions == 0:
        raise InfluenceError("covariances: expected at least one scored position, found none. Fit on more sequences.")
    values_in, q_in = _eigh(sums.inputs, sums.positions)
    values_out, q_out = _eigh(sums.deltas, sums.positions)
    values = torch.outer(values_out, values_in) * (sums.positions / sums.sequences)
    return Eigenbasis(q_out, q_in, values.float(), (_rank(values_out), _rank(values_in)))


def _eigh(total: BlockDiagonal, positions: int) -> tuple[Float[Tensor, "d"], BlockDiagonal]:
    """Eigenvalues of the mean, none below zero, and the eigenvectors as columns, block by block."""
    values, vectors = [], []
    for block in total.blocks:
        if not torch.isfinite(block).all():
            raise InfluenceError(
                "covariances: expected finite sums, found NaN or infinity: inputs or output gradients pass what "
                "float32 holds. Check the model's weights, or leave the module out of --modules."
            )
        found, q = torch.linalg.eigh(block.double() / positions)
        values.append(found.clamp_min(0))
        vectors.append(q.float())
    return torch.cat(values), BlockDiagonal(tuple(vectors))


def _rank(values: Float[Tensor, "d"]) -> int:
    """How many eigenvalues stand above the rounding of float32 sums."""
    return int((values > values.max() * len(values) * torch.finfo(torch.float32).eps).sum())


def eigenvalue_sums(
    passes: Iterable[tuple[Batch, Calls]], modules: list[TrackedModule], bases: dict[str, Eigenbasis]
) -> dict[str, Float[Tensor, "o i"]]:
    """Σ over sequences of (Q_Sᵀ ∇W Q_A)², the numerator of Λ."""
    sums: dict[str, Tensor] = {}
    for _, calls in passes:
        for module in modules:
            basis = bases[module.name]
            for some in rotated_by_sequence(calls[module.name], module, basis.out, basis.inp):
                if module.name not in sums:
                    sums[module.name] = torch.zeros_like(some[0])
                for gradient in some:
                    sums[module.name].addcmul_(gradient, gradient)
    return sums


def relative_damping(eigenvalues: Float[Tensor, "o i"], factor: float, module: str = "of the fit") -> float:
    """λ = factor · mean(Λ); Grosse et al. 2023 take .1."""
    mean = float(eigenvalues.double().mean())
    if not mean > 0:
        raise InfluenceError(
            f"damping of module {module}: expected mean(Λ) > 0 to scale {factor} by, found {mean}: no fitted sequence "
            "has a usable gradient there. Leave the module out of --modules, or give an absolute damping."
        )
    return factor * mean
