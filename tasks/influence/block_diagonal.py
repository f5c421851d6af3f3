"""Square matrices that are zero outside diagonal blocks: covariances and their eigenvectors.

One block is the ordinary matrix. For its 52-billion-parameter model Grosse et al. 2023 (section 3.1.2, Fig. 30)
keep A and S block-diagonal with two blocks, which halves their memory and quarters an eigendecomposition.

Letters: d width of the matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class BlockDiagonal:
    """M [d, d] by the blocks on its diagonal, first rows first."""

    blocks: tuple[Tensor, ...]

    @property
    def dense(self) -> Float[Tensor, "d d"]:
        """The matrix with its zeros written out."""
        return self.blocks[0] if len(self.blocks) == 1 else torch.block_diag(*self.blocks)

    def right(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """x M, for d² / blocks multiplications per row of x."""
        return self._apply(x, lambda part, block: part @ block)

    def right_transposed(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """x Mᵀ."""
        return self._apply(x, lambda part, block: part @ block.T)

    def _apply(self, x: Tensor, product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        if len(self.blocks) == 1:
            return product(x, self.blocks[0])
        parts = x.split([len(block) for block in self.blocks], dim=-1)
        return torch.cat([product(part, block) for part, block in zip(parts, self.blocks, strict=True)], dim=-1)

    def to(self, target: torch.device | str | torch.dtype) -> BlockDiagonal:
        """The same matrix on another device, or in another precision."""
        return BlockDiagonal(tuple(block.to(target) for block in self.blocks))


def widths(d: int, blocks: int) -> list[int]:
    """Widths of `blocks` blocks of a d × d matrix, as equal as d allows; never an empty one."""
    blocks = min(blocks, d)
    return [d // blocks + (k < d % blocks) for k in range(blocks)]


def zeros(d: int, blocks: int, device: torch.device) -> BlockDiagonal:
    """The zero matrix in blocks, float32."""
    return BlockDiagonal(tuple(torch.zeros(width, width, device=device) for width in widths(d, blocks)))
