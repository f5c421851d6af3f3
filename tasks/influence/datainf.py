"""DataInf: the inverse of a mean of rank-one matrices taken as the mean of their inverses.

Per weight matrix, with training gradients g_i of n sequences (Kwon et al. 2024, arXiv 2310.00902, Eq. 5):

    (1/n Σ_i g_i g_iᵀ + λI)⁻¹ v  ≈  1/(n λ) Σ_i [ v − ⟨g_i, v⟩ / (λ + ‖g_i‖²) g_i ]

Exact for one sequence (Sherman & Morrison 1950); the exchange of mean and inverse is coarse where gradients are large
against √λ. Made for the small matrices of LoRA adapters, which are linear modules like any other.

Letters: q vectors, b sequences, o output width, i homogeneous input width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from tasks.influence.batches import Batch
from tasks.influence.errors import InfluenceError
from tasks.influence.gradients import sequence_gradients
from tasks.influence.modules import TrackedModule
from tasks.influence.sweep import Calls
from tasks.influence.vectors import Vectors


def datainf(
    passes: Iterable[tuple[Batch, Calls]], modules: list[TrackedModule], vectors: Vectors, damping: Mapping[str, float]
) -> Vectors:
    """The approximate inverse applied to each vector [q, o, i], matrix by matrix, in one pass over the sequences."""
    if not min(damping.values()) > 0:
        raise InfluenceError("DataInf: expected a damping above zero, which it divides by. Give one.")
    sums = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in vectors.items()}
    n = 0
    for batch, calls in passes:
        n += len(batch.sequence_ids)
        for module in modules:
            gradients = sequence_gradients(calls[module.name], module).flatten(1).double()
            rows = vectors[module.name].flatten(1).double()
            shares = rows @ gradients.T / (damping[module.name] + gradients.square().sum(1))
            sums[module.name] += (shares @ gradients).view(sums[module.name].shape)
    return {
        name: ((value.double() - sums[name] / n) / damping[name]).to(value.dtype) for name, value in vectors.items()
    }


def mean_squares(passes: Iterable[tuple[Batch, Calls]], modules: list[TrackedModule]) -> dict[str, torch.Tensor]:
    """The mean over sequences of (∇W)², entry by entry: the Fisher matrix's diagonal where labels were drawn for it."""
    sums: dict[str, torch.Tensor] = {}
    n = 0
    for batch, calls in passes:
        n += len(batch.sequence_ids)
        for module in modules:
            squares = sequence_gradients(calls[module.name], module).double().square().sum(0)
            sums[module.name] = sums.get(module.name, 0) + squares
    return {name: total / n for name, total in sums.items()}
