"""The Kronecker factors A = E[ā āᵀ] and S = E[δ δᵀ] as sums that add up over batches, parts and workers.

Source: Martens & Grosse 2015 (arXiv 1503.05671); for language models Grosse et al. 2023, section 2.2.
δ must come from sampled labels for the true Fisher, from true labels for the empirical one.

Letters: i homogeneous input width, o output width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tasks.influence.batches import Batch
from tasks.influence.block_diagonal import BlockDiagonal, zeros
from tasks.influence.gradients import products_in, scored_positions
from tasks.influence.modules import TrackedModule
from tasks.influence.sweep import Calls

if TYPE_CHECKING:
    from jaxtyping import Float


BLOCKS = 4  # tiles per side of a symmetric product
SMALL = 256  # columns under which one product is quicker than ten


@dataclass
class CovarianceSums:
    """Σ ā āᵀ and Σ δ δᵀ over scored positions of one module, with how many positions and sequences they hold.

    A module that is called twice in a pass has every position twice.
    """

    inputs: BlockDiagonal  # [i, i]
    deltas: BlockDiagonal  # [o, o]
    positions: int = 0
    sequences: int = 0


def covariance_sums(
    passes: Iterable[tuple[Batch, Calls]], modules: list[TrackedModule], blocks: int = 1
) -> dict[str, CovarianceSums]:
    """Sum the outer products of a sweep, module by module, in float32; `blocks` diagonal blocks of each matrix."""
    sums: dict[str, CovarianceSums] = {}
    for batch, calls in passes:
        for module in modules:
            a, d = scored_positions(calls[module.name], module, batch)
            if module.name not in sums:
                sums[module.name] = CovarianceSums(
                    zeros(module.columns, blocks, d.device), zeros(module.d_out, blocks, d.device)
                )
            total = sums[module.name]
            for matrix, x in ((total.inputs, a), (total.deltas, d)):
                for block, part in zip(matrix.blocks, x.split([len(b) for b in matrix.blocks], dim=1), strict=True):
                    _add_upper_gram(block, part)
            total.positions += len(a)
            total.sequences += len(batch.sequence_ids)
    for total in sums.values():
        for block in (*total.inputs.blocks, *total.deltas.blocks):
            block.copy_(block.triu() + block.triu(1).T)
    return sums


def _add_upper_gram(total: Float[Tensor, "d d"], x: Float[Tensor, "n d"]) -> None:
    """Add xᵀx to `total`, right in its upper triangle only, in float32 whatever the pass.

    Small eigenvalues are differences of large entries: float32 copies of bfloat16 numbers are multiplied exactly.

    A symmetric product repeats itself: of BLOCKS × BLOCKS tiles only the upper ones are multiplied, which
    costs n·d²·(1 + 1/BLOCKS)/2 multiplications in place of n·d². Small matrices are not worth the cutting.
    """
    d = x.shape[1]
    width = d if d < SMALL else -(-d // BLOCKS)
    with products_in(x.dtype):
        x = x.float()
        for start in range(0, d, width):
            rows = slice(start, min(start + width, d))
            total[rows, start:] += x[:, rows].T @ x[:, start:]


def add_covariances(parts: Iterable[CovarianceSums]) -> CovarianceSums:
    """The sums of several parts of a corpus as one, added in float64 so that the number of parts does not show."""
    total: CovarianceSums | None = None
    for part in parts:
        if total is None:
            total = CovarianceSums(
                part.inputs.to(torch.float64), part.deltas.to(torch.float64), part.positions, part.sequences
            )
        else:
            for mine, theirs in ((total.inputs, part.inputs), (total.deltas, part.deltas)):
                for block, other in zip(mine.blocks, theirs.blocks, strict=True):
                    block.add_(other)
            total.positions += part.positions
            total.sequences += part.sequences
        del part  # one part beside the total in memory, however many there are
    assert total is not None  # a corpus has at least one part
    return total
