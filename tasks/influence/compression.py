"""Preconditioned query gradients in few numbers: each by its own singular vectors, or all in one shared subspace.

LowRank        V_q = left_q · right_qᵀ            Grosse et al. 2023, section 3.2.2: rank 32 keeps scores
SharedSubspace V_q = out · core_q · inpᵀ          truncated higher-order SVD of the stack of all V_q
                                                  (De Lathauwer et al. 2000, doi 10.1137/S0895479896305696)

Which of them, and how wide the subspace, is chosen by what scoring a training token then costs.

Letters: q queries, t positions, r rank, o output width, i homogeneous input width, s_o and s_i widths of the
subspaces of outputs and of inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from jaxtyping import Float

Gradients = Callable[[], Iterable[Tensor]]  # each call yields the queries' dense V [o, i] anew, one at a time

# A subspace is accepted where no query loses more there than by its own rank-r factors, or less than this share,
# which is below what a bfloat16 product rounds away.
NEGLIGIBLE = 1e-3
CORES = 2**30  # bytes that the cores of one module's queries may take


@dataclass(frozen=True)
class LowRank:
    """Gradients of several queries for one module, V_q = left_q · right_qᵀ."""

    left: Float[Tensor, "q o r"]
    right: Float[Tensor, "q i r"]
    residual: Float[Tensor, "q"]

    @property
    def rank(self) -> int:
        """Number of singular directions kept."""
        return self.left.shape[-1]

    @property
    def dense_shape(self) -> tuple[int, int]:
        """(o, i)."""
        return self.left.shape[1], self.right.shape[1]

    @property
    def dense(self) -> Float[Tensor, "q o i"]:
        """The matrices themselves."""
        return self.left @ self.right.mT

    def tensors(self) -> dict[str, Tensor]:
        """By name, for `restore`."""
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}


@dataclass(frozen=True)
class SharedSubspace:
    """Gradients of several queries for one module, V_q = out · core_q · inpᵀ; a side without a basis is whole."""

    out: Float[Tensor, "o s_o"] | None
    inp: Float[Tensor, "i s_i"] | None
    cores: Float[Tensor, "q s_o s_i"]
    residual: Float[Tensor, "q"]

    @property
    def rank(self) -> int:
        """Width of the smaller side: no V_q has more singular directions."""
        return min(self.cores.shape[1:])

    @property
    def dense(self) -> Float[Tensor, "q o i"]:
        """The matrices themselves."""
        v = self.cores if self.out is None else self.out @ self.cores
        return v if self.inp is None else v @ self.inp.T

    def tensors(self) -> dict[str, Tensor]:
        """By name, for `restore`."""
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}


Compressed = LowRank | SharedSubspace


def restore(tensors: dict[str, Tensor]) -> Compressed:
    """The form that gave these tensors."""
    form = LowRank if "left" in tensors else SharedSubspace
    return form(**{field.name: tensors.get(field.name) for field in fields(form)})


def compress(gradients: Gradients, rank: int, positions: int) -> Compressed:
    """The form in which scoring sequences of `positions` positions costs least; none loses more than rank r does.

    `residual` is ‖V − V̂‖_F / ‖V‖_F of each query, measured. Deterministic: full decompositions, no random projection.
    """
    low = low_rank(gradients, rank)
    q, o, r = low.left.shape
    i = low.right.shape[1]
    contraction = contraction_cost(q, o, i, r)
    # A subspace that loses no more than rank r has at least r directions on a side, or is whole there.
    least = min(subspace_cost(q, s_o, s_i, o, i, positions) for s_o in (min(r, o), o) for s_i in (min(r, i), i))
    if least >= contraction:
        return low
    costs = {
        widths: subspace_cost(q, *widths, o, i, positions)
        for widths in _sufficient_widths(gradients, low)
        if q * widths[0] * widths[1] * 4 <= CORES
    }
    if not costs or min(costs.values()) >= contraction:
        return low
    s_o, s_i = min(costs, key=lambda widths: costs[widths])
    out, inp = (_leading_directions(side, low) for side in (low.left, low.right))
    return project(gradients, out[:, :s_o] if s_o < o else None, inp[:, :s_i] if s_i < i else None)


def contraction_cost(q: int, o: int, i: int, r: int) -> float:
    """Multiplications per training position: both of its vectors with each query's factors."""
    return q * r * (o + i)


def subspace_cost(q: int, s_o: int, s_i: int, o: int, i: int, t: int) -> float:
    """Multiplications per training position: two projections, one outer product, and its share of q inner products.

    A side that keeps its whole width is not projected. With both sides whole this is the cost of materialising
    the sequence's gradient, o·i per position, and of its inner products with dense queries, q·o·i per sequence.
    """
    return (s_o < o) * s_o * o + (s_i < i) * s_i * i + s_o * s_i * (1 + q / t)


def low_rank(gradients: Gradients, rank: int) -> LowRank:
    """The best rank-r approximation of each query in the Frobenius norm, its singular values split evenly."""
    lefts, rights, residuals = [], [], []
    for gradient in gradients():
        v = gradient.double()
        wide = v.shape[0] <= v.shape[1]
        v = v if wide else v.T
        # Singular vectors of the narrower side from its Gram matrix, which costs a fraction of an SVD; the other
        # factor is Vᵀu, so that what is kept is an orthogonal projection of V and rounding adds nothing to it.
        u = torch.linalg.eigh(v @ v.T)[1].flip(1)[:, :rank]
        w = v.T @ u
        root = w.norm(dim=0).sqrt()
        left, right = u * root, w / _nonzero(root)
        lefts.append((left if wide else right).float())
        rights.append((right if wide else left).float())
        residuals.append(_residual(v, w))
    return LowRank(torch.stack(lefts), torch.stack(rights), torch.stack(residuals))


def project(gradients: Gradients, out: Tensor | None, inp: Tensor | None) -> SharedSubspace:
    """The queries' coordinates in given orthonormal bases; what lies outside is dropped and measured."""
    cores, residuals = [], []
    for gradient in gradients():
        v = gradient.double()
        core = v if out is None else out.double().T @ v
        core = core if inp is None else core @ inp.double()
        back = core if out is None else out.double() @ core
        back = back if inp is None else back @ inp.double().T
        cores.append(core.float())
        residuals.append((v - back).norm() / _nonzero(v.norm()))
    return SharedSubspace(out, inp, torch.stack(cores), torch.stack(residuals))


def _sufficient_widths(gradients: Gradients, low: LowRank) -> set[tuple[int, int]]:
    """Widths (s_o, s_i) that lose no more than rank r does for any query: both sides cut, either one, none.

    They exist: the span of all rank-r factors loses at most what each query's own factors lose.
    """
    (o, i), (out, inp) = low.dense_shape, (_leading_directions(side, low) for side in (low.left, low.right))
    enough = {"both": 0, "out": 0, "inp": 0}
    for gradient, residual in zip(gradients(), low.residual.tolist(), strict=True):
        v = gradient.double()
        rows, columns = out.double().T @ v, v @ inp.double()
        core = (rows @ inp.double()).square()
        m_o, m_i = core.shape
        # Energy of the leading s × s corner is the running sum of what each step of s adds: its row and its column.
        square = functional.pad(core, (0, max(m_o - m_i, 0), 0, max(m_i - m_o, 0)))
        corner = square.tril().sum(1) + square.triu(1).sum(0)
        energies = {"both": corner, "out": rows.square().sum(1), "inp": columns.square().sum(0)}
        wanted = (1 - max(residual, NEGLIGIBLE) ** 2) * v.square().sum()
        for side, energy in energies.items():
            short = int((energy.cumsum(0) < wanted).sum()) + 1
            enough[side] = max(enough[side], min(short, len(energy)))
    both, s_o, s_i = enough["both"], enough["out"], enough["inp"]
    return {(min(both, o), min(both, i)), (s_o, i), (o, s_i), (o, i)}


def _leading_directions(side: Float[Tensor, "q d r"], low: LowRank) -> Float[Tensor, "d m"]:
    """The orthonormal basis of one side of all queries together, most energetic direction first, each query alike."""
    q, d, r = side.shape
    # Columns of a side are orthogonal with lengths √σ; times √σ they are V_q's singular vectors times σ.
    scaled = side * side.norm(dim=1, keepdim=True)
    scaled = scaled / _nonzero(scaled.norm(dim=(1, 2), keepdim=True))
    u, s, _ = torch.linalg.svd(scaled.transpose(0, 1).reshape(d, q * r).double(), full_matrices=False)
    return u[:, s > s[0] * 1e-7].float()


def _residual(v: Tensor, kept: Tensor) -> Tensor:
    # An orthogonal projection: the squares of what is kept and of what is dropped add up.
    total, left = v.square().sum(), kept.square().sum()
    share = (total - left).clamp_min(0) / _nonzero(total)
    return torch.where(share < 1e-14, 0.0, share).sqrt()  # under float64's rounding of a sum there is nothing


def _nonzero(x: Tensor) -> Tensor:
    return x.clamp_min(torch.finfo(x.dtype).tiny)
