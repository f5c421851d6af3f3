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


@dataclass
class CovarianceSums:
    """Σ ā āᵀ and Σ δ δᵀ over scored positions of one module, with how many positions and sequences they hold."""

    inputs: Float[Tensor, "i i"]
    deltas: Float[Tensor, "o o"]
    positions: int = 0
    sequences: int = 0


def covariance_sums(
    passes: Iterable[tuple[Batch, Calls]], modules: list[TrackedModule]
) -> dict[str, CovarianceSums]:
    """Sum the outer products of a sweep, module by module, in float32."""
    sums: dict[str, CovarianceSums] = {}
    for batch, calls in passes:
        for module in modules:
            a, d = scored_positions(calls[module.name], module, batch)
            if module.name not in sums:
                sums[module.name] = CovarianceSums(
                    a.new_zeros(module.columns, module.columns), d.new_zeros(module.d_out, module.d_out)
                )
            total = sums[module.name]
            total.inputs.addmm_(a.T, a)
            total.deltas.addmm_(d.T, d)
            total.positions += len(a) // len(calls[module.name])
            total.sequences += len(batch.sequence_ids)
    return sums


def add_covariances(parts: Iterable[CovarianceSums]) -> CovarianceSums:
    """The sums of several parts of a corpus as one, added in float64 so that the number of parts does not show."""
    parts = list(parts)
    return CovarianceSums(
        torch.stack([p.inputs for p in parts]).double().sum(0),
        torch.stack([p.deltas for p in parts]).double().sum(0),
        sum(p.positions for p in parts),
        sum(p.sequences for p in parts),
    )
