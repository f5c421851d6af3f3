"""Low-rank query gradients: V ≈ U Wᵀ with rank r, and what that drops.

Grosse et al. 2023, section 3.2.2 ("query batching"): rank 32 keeps scores while many queries share one pass.

Letters: q queries, r rank, o output width, i homogeneous input width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class LowRank:
    """Preconditioned gradients of several queries for one module, V_q = left_q · right_qᵀ."""

    left: Float[Tensor, "q o r"]
    right: Float[Tensor, "q i r"]
    residual: Float[Tensor, "q"]

    @property
    def rank(self) -> int:
        """Number of singular directions kept."""
        return self.left.shape[-1]

    @cached_property
    def dense(self) -> Float[Tensor, "q o i"]:
        """The matrices themselves, multiplied out once and kept."""
        return self.left @ self.right.transpose(1, 2)


def compress(gradients: Float[Tensor, "q o i"], rank: int) -> LowRank:
    """The best rank-r approximation in the Frobenius norm, singular values split evenly over both sides.

    `residual` is ‖V − UWᵀ‖_F / ‖V‖_F. Full SVD, no random projection: the same input gives the same factors.
    """
    u, s, wh = torch.linalg.svd(gradients.double(), full_matrices=False)
    keep = min(rank, s.shape[-1])
    dropped = s[:, keep:].square().sum(-1)
    residual = (dropped / s.square().sum(-1).clamp_min(torch.finfo(s.dtype).tiny)).sqrt()
    root = s[:, None, :keep].sqrt()
    left = (u[:, :, :keep] * root).float().contiguous()
    right = (wh[:, :keep].transpose(1, 2) * root).float().contiguous()
    return LowRank(left, right, residual)
