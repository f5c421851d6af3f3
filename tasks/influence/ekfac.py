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
from tasks.influence.capture import Call
from tasks.influence.covariance import CovarianceSums
from tasks.influence.errors import InfluenceError
from tasks.influence.gradients import rotated_gradients, sequence_gradients
from tasks.influence.modules import TrackedModule
from tasks.influence.sweep import Calls

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Eigenbasis:
    """Q_S and Q_A of one module, with K-FAC's eigenvalues of one whole sequence."""

    out: Float[Tensor, "o o"]
    inp: Float[Tensor, "i i"]
    kfac_eigenvalues: Float[Tensor, "o i"]


@dataclass(frozen=True)
class SquaredNorms:
    """Squared lengths of sequence gradients under a metric, and plainly."""

    metric: Float[Tensor, "b"]
    euclidean: Float[Tensor, "b"]


@dataclass(frozen=True)
class Metric:
    """(G + λI)⁻¹ of one module, G = Q diag(Λ) Qᵀ; every method of the family differs in Q and Λ only."""

    out: Float[Tensor, "o o"]
    inp: Float[Tensor, "i i"]
    eigenvalues: Float[Tensor, "o i"]
    damping: float

    def precondition(self, gradient: Float[Tensor, "*q o i"]) -> Float[Tensor, "*q o i"]:
        """(G + λI)⁻¹ applied to gradients."""
        rotated = self.out.T @ gradient @ self.inp
        return self.out @ (rotated / (self.eigenvalues + self.damping)) @ self.inp.T

    def squared_norms(self, calls: list[Call], module: TrackedModule) -> SquaredNorms:
        """∇W_zᵀ (G + λI)⁻¹ ∇W_z and ‖∇W_z‖² of each sequence; a rotation keeps the latter."""
        squares = rotated_gradients(calls, module, self.out, self.inp).square_().flatten(1)
        inverse = (self.eigenvalues + self.damping).reciprocal().flatten()
        return SquaredNorms(squares @ inverse, squares.sum(1))

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
    values_in, q_in = torch.linalg.eigh(sums.inputs.double() / sums.positions)
    values_out, q_out = torch.linalg.eigh(sums.deltas.double() / sums.positions)
    per_sequence = sums.positions / sums.sequences
    values = torch.outer(values_out.clamp_min(0), values_in.clamp_min(0)) * per_sequence
    return Eigenbasis(q_out.float(), q_in.float(), values.float())


def eigenvalue_sums(
    passes: Iterable[tuple[Batch, Calls]], modules: list[TrackedModule], bases: dict[str, Eigenbasis]
) -> dict[str, Float[Tensor, "o i"]]:
    """Σ over sequences of (Q_Sᵀ ∇W Q_A)², the numerator of Λ."""
    sums: dict[str, Tensor] = {}
    for _, calls in passes:
        for module in modules:
            basis = bases[module.name]
            squares = rotated_gradients(calls[module.name], module, basis.out, basis.inp).square_().sum(0)
            sums[module.name] = sums[module.name].add_(squares) if module.name in sums else squares
    return sums


def relative_damping(eigenvalues: Float[Tensor, "o i"], factor: float) -> float:
    """λ = factor · mean(Λ); Grosse et al. 2023 take .1."""
    damping = factor * float(eigenvalues.double().mean())
    if not damping > 0:
        raise InfluenceError(
            f"damping: expected mean(Λ) > 0 to scale {factor} by, found {damping / factor if factor else 0}. "
            "The fitted gradients vanish: check the model, or give an absolute damping."
        )
    return damping
