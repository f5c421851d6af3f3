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
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from tasks.influence.block_diagonal import BlockDiagonal

if TYPE_CHECKING:
    from jaxtyping import Float

Gradients = Callable[[], Iterable[Tensor]]  # each call yields the queries' dense V [o, i], one at a time

# A subspace is accepted where no query loses more there than by its own rank-r factors, or less than this share,
# which is below what a bfloat16 product rounds away.
NEGLIGIBLE = 1e-3
ROOM = 2**30  # bytes that the cores of one module's queries may take
OVERSAMPLING, ITERATIONS = 8, 2  # of the subspace iteration
ALIGNED = 16  # products are quicker when their widths are whole vector registers


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
    def dense(self) -> Float[Tensor, "q o i"]:
        """The matrices themselves."""
        return self.left @ self.right.mT

    def rotated_back(self, q_out: BlockDiagonal, q_in: BlockDiagonal) -> LowRank:
        """The factors of Q_out V Q_inᵀ."""
        return replace(self, left=_turned(q_out, self.left), right=_turned(q_in, self.right))


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

    def rotated_back(self, q_out: BlockDiagonal, q_in: BlockDiagonal) -> SharedSubspace:
        """The subspace of Q_out V Q_inᵀ: its bases turn, or its cores on a side that has none."""
        out, inp, cores = self.out, self.inp, self.cores
        cores = _turned(q_out, cores) if out is None else cores
        cores = q_in.right_transposed(cores) if inp is None else cores
        out, inp = (None if basis is None else _turned(q, basis) for basis, q in ((out, q_out), (inp, q_in)))
        return SharedSubspace(out, inp, cores, self.residual)


Compressed = LowRank | SharedSubspace


def tensors_of(form: Compressed) -> dict[str, Tensor]:
    """Its tensors by name, for `restore`."""
    return {name: tensor for name, tensor in vars(form).items() if tensor is not None}


def restore(tensors: dict[str, Tensor]) -> Compressed:
    """The form that gave these tensors."""
    form = LowRank if "left" in tensors else SharedSubspace
    return form(**{field.name: tensors.get(field.name) for field in fields(form)})


def compress(gradients: Gradients, rank: int, positions: int, room: int = ROOM) -> Compressed:
    """The form in which scoring sequences of `positions` positions costs least.

    No query loses more than by its own rank-r factors, or than NEGLIGIBLE; at full rank nothing is dropped.

    `residual` is ‖V − V̂‖_F / ‖V‖_F of each query, measured. The same gradients give the same form.
    """
    low = low_rank(gradients, rank)
    q, o, r = low.left.shape
    i = low.right.shape[1]
    contraction = contraction_cost(q, o, i, r)
    # A subspace that loses no more than rank r has at least r directions on a side, or is whole there.
    least = min(subspace_cost(q, s_o, s_i, o, i, positions) for s_o in (min(r, o), o) for s_i in (min(r, i), i))
    if least >= contraction:
        return low
    out, inp = (_leading_directions(side) for side in (low.left, low.right))
    costs = {
        (s_o, s_i): subspace_cost(q, s_o, s_i, o, i, positions)
        for s_o, s_i in _sufficient_widths(gradients, low, out, inp)
        if q * s_o * s_i * 4 <= room
    }
    if not costs or min(costs.values()) >= contraction:
        return low
    s_o, s_i = min(costs, key=lambda widths: costs[widths])
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
    """A rank-r approximation of each query, an orthogonal projection of V, its singular values split evenly."""
    lefts, rights, residuals = [], [], []
    for v in gradients():
        tall = v.shape[0] > v.shape[1]
        v = v.mT if tall else v
        u = leading_vectors(v, rank)
        w = v.T @ u
        root = w.norm(dim=0).sqrt()
        left, right = u * root, w / _nonzero(root)
        lefts.append((right if tall else left).float())
        rights.append((left if tall else right).float())
        residuals.append(_relative(v - u @ w.T, v))
    return LowRank(torch.stack(lefts), torch.stack(rights), torch.stack(residuals))


def leading_vectors(v: Float[Tensor, "d n"], rank: int) -> Float[Tensor, "d r"]:
    """Orthonormal columns that span the leading left singular vectors of V.

    Where many are wanted, exactly, from the Gram matrix: d²·n + 9·d³. Where few are, by subspace iteration from a
    fixed start (Halko, Martinsson & Tropp 2011, Alg. 4.4): 2·(ITERATIONS + 1)·r·d·n, which is the truncated
    decomposition up to a fraction of a percent of the residual and takes a hundredth of the time at d = 4,096.
    """
    d, n = v.shape
    width = rank + OVERSAMPLING
    if 2 * width >= d:
        return torch.linalg.eigh(v.double() @ v.double().T)[1].flip(1)[:, :rank].to(v.dtype)
    start = torch.randn(n, width, dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    y = torch.linalg.qr(v @ start.to(v))[0]
    for _ in range(ITERATIONS):
        y = torch.linalg.qr(v @ torch.linalg.qr(v.T @ y)[0])[0]
    # Ritz vectors: the leading directions within the span that was found.
    inside = (y.T @ v).double()
    return y @ torch.linalg.eigh(inside @ inside.T)[1].flip(1)[:, :rank].to(v.dtype)


def project(gradients: Gradients, out: Tensor | None, inp: Tensor | None) -> SharedSubspace:
    """The queries' coordinates in given orthonormal bases; what lies outside is dropped and measured."""
    cores, residuals = [], []
    for v in gradients():
        core = v if out is None else out.T @ v
        core = core if inp is None else core @ inp
        back = core if out is None else out @ core
        back = back if inp is None else back @ inp.T
        cores.append(core)
        residuals.append(_relative(v - back, v))
    return SharedSubspace(out, inp, torch.stack(cores), torch.stack(residuals))


def _sufficient_widths(gradients: Gradients, low: LowRank, out: Tensor, inp: Tensor) -> set[tuple[int, int]]:
    """Widths (s_o, s_i) that lose no more than rank r, or NEGLIGIBLE, for any query: both sides cut, either, none.

    They exist: the span of all rank-r factors loses at most what each query's own factors lose.
    """
    o, i = low.left.shape[1], low.right.shape[1]
    both = s_o = s_i = 0  # in steps of ALIGNED
    if low.rank >= min(o, i):  # full rank means exact: nothing may be dropped
        return {(o, i)}
    for v, residual in zip(gradients(), low.residual.tolist(), strict=True):
        wanted = (1 - max(residual, NEGLIGIBLE) ** 2) * v.square().sum(dtype=torch.float64)
        rows, columns = out.T @ v, v @ inp
        corner = _tiles(rows @ inp).cumsum(0).cumsum(1)
        steps = torch.arange(max(corner.shape), device=v.device)
        diagonal = corner[steps.clamp_max(corner.shape[0] - 1), steps.clamp_max(corner.shape[1] - 1)]
        both = max(both, _enough(diagonal, wanted))
        s_o = max(s_o, _enough(_tiles(rows).sum(1).cumsum(0), wanted))
        s_i = max(s_i, _enough(_tiles(columns).sum(0).cumsum(0), wanted))

    def width(steps: int, basis: Tensor) -> int:
        return min(steps * ALIGNED, basis.shape[1])

    return {(width(both, out), width(both, inp)), (width(s_o, out), i), (o, width(s_i, inp)), (o, i)}


def _tiles(x: Float[Tensor, "m n"]) -> Float[Tensor, "j k"]:
    """Sums of squares over tiles of ALIGNED rows and columns, in float64."""
    m, n = x.shape
    padded = functional.pad(x, (0, -n % ALIGNED, 0, -m % ALIGNED))
    tiles = padded.view(-(-m // ALIGNED), ALIGNED, -(-n // ALIGNED), ALIGNED)
    return tiles.square().sum((1, 3), dtype=torch.float64)


def _enough(energies: Float[Tensor, "j"], wanted: Tensor) -> int:
    """How many leading steps hold what is wanted; all of them where rounding leaves a hair's breadth."""
    return min(int((energies < wanted).sum()) + 1, len(energies))


def _leading_directions(side: Float[Tensor, "q d r"]) -> Float[Tensor, "d m"]:
    """The orthonormal basis of one side of all queries together, most energetic direction first, each query alike."""
    q, d, r = side.shape
    # Columns of a side are singular vectors times √σ; times √σ again they are V_q's own, which HOSVD stacks.
    scaled = side.double() * side.double().norm(dim=1, keepdim=True)
    scaled = scaled / _nonzero(scaled.norm(dim=(1, 2), keepdim=True))
    x = scaled.transpose(0, 1).reshape(d, q * r)
    if d <= q * r:
        values, u = torch.linalg.eigh(x @ x.T)
    else:  # from the smaller Gram matrix
        values, small = torch.linalg.eigh(x.T @ x)
        u = x @ small / _nonzero(values.clamp_min(0).sqrt())
    values, u = values.flip(0), u.flip(1)
    return u[:, values > values[0] * 1e-12].to(side.dtype)


def _turned(q: BlockDiagonal, x: Float[Tensor, "*n d r"]) -> Float[Tensor, "*n d r"]:
    """Q x."""
    return q.right_transposed(x.mT).mT.contiguous()


def _relative(dropped: Tensor, v: Tensor) -> Tensor:
    share = dropped.double().norm() / _nonzero(v.double().norm())
    return torch.where(share < 2e-6, 0.0, share)  # under float32's rounding of a product there is nothing


def _nonzero(x: Tensor) -> Tensor:
    return x.clamp_min(torch.finfo(x.dtype).tiny)
