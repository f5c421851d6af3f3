"""Influences of sequences on one another: inner products of their gradients under one metric.

K_rz = ∇L_rᵀ (G + λI)⁻¹ ∇L_z is symmetric: what z does to r it suffers from r. Rows that are whitened, (G + λI)^−½ ∇L,
need no solving: their products are the influences. All pairs of n sequences with D weights cost n²·D multiplications,
and a pass of the model over all of them for each group of rows that is held.

Letters: r rows that are held, b sequences of a batch, z all sequences.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tasks.influence.batches import Batch
from tasks.influence.ekfac import IdentityMetric, Metric
from tasks.influence.modules import TrackedModule
from tasks.influence.sweep import Calls

if TYPE_CHECKING:
    from jaxtyping import Float

Passes = Iterable[tuple[Batch, Calls]]
Metrics = dict[str, Metric | IdentityMetric]


@dataclass(frozen=True)
class Held:
    """Whitened gradients of some sequences, a row each, by module."""

    sequence_ids: list[int]
    rows: dict[str, Float[Tensor, "r o*i"]]


def hold(passes: Passes, modules: Sequence[TrackedModule], metrics: Metrics) -> Held:
    """Whitened gradients of every sequence of the passes."""
    ids: list[int] = []
    rows: dict[str, list[Tensor]] = {module.name: [] for module in modules}
    for batch, calls in passes:
        ids.extend(batch.sequence_ids.tolist())
        for module in modules:
            rows[module.name].append(metrics[module.name].whitened(calls[module.name], module))
    return Held(ids, {name: torch.cat(found) for name, found in rows.items()})


def pairs(
    passes: Passes, modules: Sequence[TrackedModule], metrics: Metrics, held: Held
) -> Iterator[tuple[list[int], Float[Tensor, "r b"], Float[Tensor, "b"]]]:
    """Of each batch its ids, K of every held row with its sequences, and their self-influences; over these modules."""
    for batch, calls in passes:
        products, squares = [], []
        for module in modules:
            found = metrics[module.name].whitened(calls[module.name], module)
            products.append(held.rows[module.name] @ found.T)
            squares.append(found.square().sum(1))
        yield batch.sequence_ids.tolist(), torch.stack(products).sum(0), torch.stack(squares).sum(0)
