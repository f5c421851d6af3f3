"""Predicted against measured changes: correlations over the examples left out, and intervals over seeds.

Letters: m examples left out, t test examples.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
from scipy import stats

from tasks.evaluation.ranking import Estimate
from tasks.influence.errors import InfluenceError

POINTS = 5  # examples left out, below which a correlation says nothing
SEEDS = 3  # below which there is no interval to speak of


def correlations(measured: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray]:
    """Pearson and Spearman over the examples left out [m, t], by test example [t].

    NaN where no measured change differs from another, 0 where only the predictions are alike: they foresee nothing.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        pearson = stats.pearsonr(measured, predicted, axis=0).statistic
        ranks = [stats.rankdata(side, axis=0) for side in (measured, predicted)]
        spearman = stats.pearsonr(*ranks, axis=0).statistic
    blind = (np.ptp(predicted, axis=0) == 0) & (np.ptp(measured, axis=0) > 0)
    return {"pearson": np.where(blind, 0.0, pearson), "spearman": np.where(blind, 0.0, spearman)}


def mean_correlation(values: np.ndarray, of: str) -> float:
    """The mean over the test examples whose loss changed at all."""
    if np.isnan(values).all():
        raise InfluenceError(
            f"correlation with {of}: expected losses that change when an example is left out, found that none does. "
            "Leave out more examples, or train for fewer epochs."
        )
    return float(np.nanmean(values))


def over_seeds(values: Sequence[float], low: float = -math.inf, high: float = math.inf) -> Estimate:
    """The mean over seeds with its 95 % t-interval, within what the figure can be; n counts seeds."""
    n, mean = len(values), float(np.mean(values))
    if n < SEEDS:
        raise InfluenceError(f"interval over seeds: expected at least {SEEDS} seeds, found {n}. Use more seeds.")
    half = float(stats.t.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Estimate(mean, max(low, mean - half), min(high, mean + half), n)
