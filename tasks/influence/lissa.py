"""LiSSA: a damped inverse as a truncated Neumann series over batches, averaged over rounds.

    h_0 = v,  h_j = v + (I − α (G_B + λI)) h_{j−1},  x = α h_J        (Agarwal, Bullins & Hazan 2017, arXiv 1602.03943)

The series converges where α < 2 / (σ_max + λ), to (G + λI)⁻¹ v. A direction whose eigenvalue is σ has converged up to
(1 − α (σ + λ))^J: small ones ask for J ≫ 1 / (α λ), and stopping early acts like a damping of about 1 / (α J).

Koh & Liang 2017 (arXiv 1703.04730) and FastIF write the same with a scale s and a damping d:
    h = v + (1 − d) h − G_B h / s,  x = h / s
that is α = 1/s and λ = d·s: what they call damping is multiplied by the scale.

Letters: q vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from tasks.influence.errors import InfluenceError
from tasks.influence.vectors import Product, Vectors, combine, damped, inner, norm, scale

SAFETY = 0.9  # over σ_max + λ: not quite half of the largest α that converges, as a batch's σ_max may be larger
CONVERGED = 3.0  # J α λ: the flattest direction is then within e⁻³, 5 %, of its limit
GROWN = 100.0  # times the largest that h can be where the series converges


@dataclass(frozen=True)
class Series:
    """α, how many terms J a round has, and how many rounds are averaged."""

    alpha: float
    depth: int
    rounds: int = 1


def koh_liang(damping: float, scale_: float) -> tuple[float, float]:
    """(α, λ_eff) of Koh & Liang's damping and scale."""
    return 1 / scale_, damping * scale_


def largest_eigenvalue(product: Product, like: Vectors, iterations: int = 20, seed: int = 0) -> float:
    """σ_max of a positive semidefinite matrix by power iteration from a random start, from below."""
    generator = torch.Generator().manual_seed(seed)
    vector = {name: torch.randn(1, *value.shape[1:], generator=generator).to(value) for name, value in like.items()}
    found = 0.0
    for _ in range(iterations):
        vector = scale(vector, 1 / norm(vector))
        image = product(vector)
        found = float(inner(vector, image))
        if not float(norm(image)) > 0:
            return 0.0
        vector = image
    return found


def choose_series(
    largest: float, damping: Mapping[str, float], most: int, rounds: int = 1, alpha: float | None = None
) -> Series:
    """α from the largest eigenvalue, and the depth at which the flattest direction has converged, at most `most`.

    A given α has that depth; one with which the series diverges is refused, and a safe one named.
    """
    least = min(damping.values())
    if not least > 0:
        raise InfluenceError(
            f"LiSSA: expected a damping above zero, found {least:g}: flat directions would never converge. "
            "Give a relative or absolute damping."
        )
    steepest = largest + max(damping.values())
    if alpha is not None and not 0 < alpha < 2 / steepest:
        raise InfluenceError(
            f"LiSSA: expected an α above zero and below 2 / (σ_max + λ) = {2 / steepest:.3g}, where the series "
            f"converges, found α = {alpha:.3g}. Use {SAFETY / steepest:.2g}, or let it be chosen."
        )
    alpha = SAFETY / steepest if alpha is None else alpha
    return Series(alpha, max(1, min(most, math.ceil(CONVERGED / (alpha * least)))), rounds)


def lissa(
    batch_product: Callable[[int], Product], vectors: Vectors, damping: Mapping[str, float], series: Series
) -> Vectors:
    """(G + λI)⁻¹ v of each of the vectors; `batch_product(j)` is G over the j-th random batch, counted over rounds."""
    total: Vectors | None = None
    for r in range(series.rounds):
        h = vectors
        for j in range(series.depth):
            product = damped(batch_product(r * series.depth + j), damping)
            h = combine(combine(vectors, 1.0, h), -series.alpha, product(h))
            _require_convergence(h, vectors, damping, series, j)
        total = h if total is None else combine(total, 1.0, h)
    assert total is not None  # a series has one round or more
    return scale(total, series.alpha / series.rounds)


def _require_convergence(h: Vectors, vectors: Vectors, damping: Mapping[str, float], series: Series, j: int) -> None:
    """Where the series converges, ‖h_j‖ ≤ (j + 1) ‖v‖ and ≤ ‖v‖ / (α λ)."""
    largest = min(j + 2.0, 1 / (series.alpha * min(damping.values())))
    grown = norm(h) / norm(vectors).clamp_min(torch.finfo(torch.float64).tiny)
    if not bool((grown <= GROWN * max(1.0, largest)).all()):
        raise InfluenceError(
            f"LiSSA: expected a series that converges, found that {j + 1} of its terms have grown "
            f"{float(grown.max()):.1e} times with α = {series.alpha:.3g}: the batches have larger eigenvalues than the "
            "whole sample. Use larger batches, or a smaller α."
        )
