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
from tasks.influence.gradients import scored_positions
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

    inputs: Float[Tensor, "i i"]
    deltas: Float[Tensor, "o o"]
    positions: int = 0
    sequences: int = 0


def covariance_sums(passes: Iterable[tuple[Batch, Calls]], modules: list[TrackedModule]) -> dict[str, CovarianceSums]:
    """Sum the outer products of a sweep, module by module, in float32."""
    sums: dict[str, CovarianceSums] = {}
    for batch, calls in passes:
        for module in modules:
            a, d = scored_positions(calls[module.name], module, batch)
            if module.name not in sums:
                shapes = (module.columns, module.d_out)
                sums[module.name] = CovarianceSums(*(torch.zeros(n, n, device=d.device) for n in shapes))
            total = sums[module.name]
            # Products in float32 whatever the pass: small eigenvalues are differences of large entries.
            _add_upper_gram(total.inputs, a.float())
            _add_upper_gram(total.deltas, d.float())
            total.positions += len(a)
            total.sequences += len(batch.sequence_ids)
    for total in sums.values():
        for matrix in (total.inputs, total.deltas):
            matrix.copy_(matrix.triu() + matrix.triu(1).T)
    return sums


def _add_upper_gram(total: Float[Tensor, "d d"], x: Float[Tensor, "n d"]) -> None:
    """Add xᵀx to `total`, right in its upper triangle only.

    A symmetric product repeats itself: of BLOCKS × BLOCKS tiles only the upper ones are multiplied, which
    costs n·d²·(1 + 1/BLOCKS)/2 multiplications in place of n·d². Small matrices are not worth the cutting.
    """
    d = x.shape[1]
    width = d if d < SMALL else -(-d // BLOCKS)
    for start in range(0, d, width):
        rows = slice(start, min(start + width, d))
        total[rows, start:] += x[:, rows].T @ x[:, start:]


def add_covariances(parts: Iterable[CovarianceSums]) -> CovarianceSums:
    """The sums of several parts of a corpus as one, added in float64 so that the number of parts does not show."""
    parts = list(parts)
    return CovarianceSums(
        torch.stack([p.inputs for p in parts]).double().sum(0),
        torch.stack([p.deltas for p in parts]).double().sum(0),
        sum(p.positions for p in parts),
        sum(p.sequences for p in parts),
    )
