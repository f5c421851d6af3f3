"""Predicted against measured worth of whole datasets: correlations over the datasets of a corpus, by group of queries.

Letters: s seeds, d datasets, g groups of queries, b resamples.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tasks.evaluation.correlation import correlations
from tasks.evaluation.datamodels import ENOUGH, ROUNDS
from tasks.evaluation.ranking import Estimate, bootstrap_means

if TYPE_CHECKING:
    from jaxtyping import Float

GROUPS = 5  # below which an interval over groups would be one of a few coincidences
METRICS = ("pearson", "spearman", "finds_first")


def dataset_scores(predicted: Float[np.ndarray, "s d g"], measured: Float[np.ndarray, "s d g"]) -> dict[str, Estimate]:
    """Pearson and Spearman over datasets, and how often the method's first dataset is the first; means over groups.

    A prediction that is the same for all datasets predicts nothing: 0. The interval is of 2.5 and 97.5 percentiles over
    resampled groups, each with its values under all seeds, and n counts groups; with fewer than GROUPS of them over
    resampled datasets, and n counts datasets; with fewer than ENOUGH of those too there is none: NaN.
    """
    n_seeds, n_datasets, n_groups = measured.shape
    values = np.stack([_scores(p, m) for p, m in zip(predicted, measured, strict=True)])  # s, metric, g
    flat = values.transpose(0, 2, 1).reshape(n_seeds * n_groups, len(METRICS))
    if n_groups >= GROUPS:
        return dict(zip(METRICS, bootstrap_means(flat, np.tile(np.arange(n_groups), n_seeds)), strict=True))
    low = high = np.full(len(METRICS), math.nan)
    n = n_groups
    if n_datasets >= ENOUGH:
        low, high = np.percentile(_resampled(predicted, measured), [2.5, 97.5], axis=0)
        n = n_datasets
    means = flat.mean(axis=0)
    return {name: Estimate(float(means[k]), float(low[k]), float(high[k]), n) for k, name in enumerate(METRICS)}


def _scores(predicted: Float[np.ndarray, "d g"], measured: Float[np.ndarray, "d g"]) -> Float[np.ndarray, "metric g"]:
    found = correlations(measured, predicted)
    constant = np.ptp(predicted, axis=0) == 0
    first = (predicted.argmax(axis=0) == measured.argmax(axis=0)) & ~constant
    return np.nan_to_num(np.stack([found["pearson"], found["spearman"], first.astype(np.float64)]))


def _resampled(
    predicted: Float[np.ndarray, "s d g"], measured: Float[np.ndarray, "s d g"]
) -> Float[np.ndarray, "b metric"]:
    """The means over seeds and groups on datasets drawn with replacement, the same ones for all seeds and groups."""
    n = measured.shape[1]
    draws = np.random.default_rng(0).integers(0, n, size=(ROUNDS, n))
    drawn = np.sort(draws, axis=1)  # so that of equal firsts it is the same one on either side
    p, m = (np.moveaxis(side[:, drawn], 2, 1) for side in (predicted, measured))  # s, d, b, g
    p, m = (side.transpose(1, 0, 3, 2).reshape(n, -1, ROUNDS) for side in (p, m))  # d, s·g, b
    return np.mean([_scores(p[:, k], m[:, k]) for k in range(p.shape[1])], axis=0).T
