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
    """(M + λI)⁻¹ v of each vector, with a λ of its own for each weight matrix."""
    sizes = {name: value[0].numel() for name, value in vectors.items()}
    diagonal = torch.cat([matrix.new_full((size,), damping[name]) for name, size in sizes.items()])
    solution, info = torch.linalg.solve_ex(matrix + torch.diag(diagonal), flatten(vectors).to(matrix).T)
    if int(info) or not torch.isfinite(solution).all():
        raise InfluenceError(
            "explicit matrix: expected one that can be inverted, found a singular one. Give a damping above zero."
        )
    return unflatten(solution.T.to(next(iter(vectors.values())).dtype), vectors)
