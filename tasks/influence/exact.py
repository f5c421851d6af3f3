"""The damped matrix written out and solved: the truth that every solver is held against, for models of a few weights.

d² numbers and d³/3 multiplications for d weights; making it takes d products.

Letters: q vectors, d weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tasks.influence.errors import InfluenceError
from tasks.influence.vectors import Product, Vectors, flatten, unflatten

if TYPE_CHECKING:
    from jaxtyping import Float

LARGEST = 8192  # weights whose matrix, in float64, takes half a gibibyte
AT_ONCE = 64  # columns that are asked for together
CORNERS = 5  # that an estimated condition number looks at


def explicit_matrix(product: Product, like: Vectors) -> Float[Tensor, "d d"]:
    """The symmetric matrix whose products these are, in float64."""
    first = next(iter(like.values()))
    d = sum(value[0].numel() for value in like.values())
    if d > LARGEST:
        raise InfluenceError(
            f"explicit matrix: expected at most {LARGEST:,} weights, found {d:,}. "
            "Track fewer modules with --modules, or use the method cg."
        )
    eye = torch.eye(d, dtype=first.dtype, device=first.device)
    rows = torch.cat([flatten(product(unflatten(some, like))) for some in eye.split(AT_ONCE)]).double()
    return (rows + rows.T) / 2


def solve_exactly(matrix: Float[Tensor, "d d"], vectors: Vectors, damping: Mapping[str, float]) -> Vectors:
    """(M + λI)⁻¹ v of each vector, with a λ of its own for each weight matrix; M is symmetric."""
    sizes = {name: value[0].numel() for name, value in vectors.items()}
    diagonal = torch.cat([matrix.new_full((size,), damping[name]) for name, size in sizes.items()])
    shifted = matrix + torch.diag(diagonal)
    factors, pivots, info = torch.linalg.lu_factor_ex(shifted)
    condition = 0.0 if int(info) else _reciprocal_condition(shifted, factors, pivots)
    if not condition > len(matrix) * torch.finfo(matrix.dtype).eps:
        raise InfluenceError(
            "explicit matrix: expected one that can be inverted, found a singular one, whose condition number is "
            f"1 / {condition:.1g}. Give a damping above zero."
        )
    solution = torch.linalg.lu_solve(factors, pivots, flatten(vectors).to(matrix).T)
    return unflatten(solution.T.to(next(iter(vectors.values())).dtype), vectors)


def _reciprocal_condition(matrix: Float[Tensor, "d d"], factors: Tensor, pivots: Tensor) -> float:
    """1 / (‖M‖₁ ‖M⁻¹‖₁) of a symmetric matrix, estimated from above in a few solves.

    ‖M⁻¹x‖₁ is largest in a corner of the ball ‖x‖₁ ≤ 1, and its gradient points to one (Hager 1984,
    doi 10.1137/0905023; LAPACK's condition estimates are made so).
    """
    d, largest = len(matrix), 0.0
    x = matrix.new_full((d, 1), 1 / d)
    for _ in range(CORNERS):
        image = torch.linalg.lu_solve(factors, pivots, x)
        largest = max(largest, float(image.abs().sum()))
        gradient = torch.linalg.lu_solve(factors, pivots, image.sign())
        corner = int(gradient.abs().argmax())
        if float(gradient[corner].abs()) <= float(gradient.T @ x):
            break
        x = torch.zeros_like(x).index_fill_(0, torch.tensor([corner], device=x.device), 1.0)
    norms = largest * float(matrix.abs().sum(0).max())
    return 1 / norms if norms > 0 else 0.0
