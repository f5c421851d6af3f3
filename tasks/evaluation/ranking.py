"""How well a ranked list finds the true sources of a query: precision, reciprocal rank, and their uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """What n observations say, between the ends of its 95 % interval."""

    value: float
    ci_low: float
    ci_high: float
    n: int


def precision_at(k: int, true_ranks: Sequence[int]) -> float:
    """Share of the first k places that hold a true source; ranks count from 1."""
    return sum(rank <= k for rank in true_ranks) / k


def reciprocal_rank(true_ranks: Sequence[int]) -> float:
    """1 / the best place of a true source, 0 where there is none."""
    return 1 / min(true_ranks) if true_ranks else 0.0


def bootstrap_mean(values: Sequence[float], seed: int = 0, rounds: int = 10_000) -> Estimate:
    """The mean with the 2.5 and 97.5 percentiles of means over resampled queries (percentile bootstrap)."""
    x = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(0, len(x), size=(rounds, len(x)))
    low, high = np.percentile(x[draws].mean(axis=1), [2.5, 97.5])
    return Estimate(float(x.mean()), float(low), float(high), len(x))
