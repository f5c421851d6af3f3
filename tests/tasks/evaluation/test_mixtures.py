"""Scores of whole datasets: correlations worked by hand, SciPy's own, and what an interval is made of."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from tasks.evaluation.mixtures import dataset_scores

TRUTH = np.array([[[3.0], [1.0], [2.0], [0.0]]])  # one seed, four datasets, one group


def test_scores_of_four_datasets_worked_by_hand():
    found = dataset_scores(np.array([[[2.0], [1.0], [3.0], [0.0]]]), TRUTH)
    assert found["spearman"].value == pytest.approx(1 - 6 * 2 / (4 * 15))  # two ranks differ by one
    assert found["pearson"].value == pytest.approx(4 / 5)  # covariance 4, both variances 5
    assert found["finds_first"].value == 0.0
    assert dataset_scores(TRUTH * 7 - 1, TRUTH)["finds_first"].value == 1.0


def test_a_method_that_says_the_same_of_all_datasets_says_nothing():
    found = dataset_scores(np.ones_like(TRUTH), TRUTH)
    assert {name: e.value for name, e in found.items()} == {"pearson": 0.0, "spearman": 0.0, "finds_first": 0.0}


def test_means_over_groups_and_seeds_are_those_of_scipy_one_by_one():
    random = np.random.default_rng(0)
    predicted, measured = random.normal(size=(2, 3, 7, 6))
    found = dataset_scores(predicted, measured)
    pairs = [(predicted[s, :, g], measured[s, :, g]) for s in range(3) for g in range(6)]
    assert found["pearson"].value == pytest.approx(np.mean([stats.pearsonr(*pair).statistic for pair in pairs]))
    assert found["spearman"].value == pytest.approx(np.mean([stats.spearmanr(*pair).statistic for pair in pairs]))


def test_an_interval_is_over_groups_else_over_datasets_else_there_is_none():
    random = np.random.default_rng(1)
    many_groups = random.normal(size=(2, 4, 6))
    assert dataset_scores(many_groups, many_groups + 0.5 * random.normal(size=(2, 4, 6)))["pearson"].n == 6
    measured = random.normal(size=(1, 12, 2))
    predicted = measured + random.normal(size=(1, 12, 2))
    over_datasets = dataset_scores(predicted, measured)["pearson"]
    assert over_datasets.n == 12
    assert over_datasets.ci_low < over_datasets.value < over_datasets.ci_high
    few = dataset_scores(TRUTH, TRUTH)["pearson"]
    assert (few.value, few.n) == (pytest.approx(1.0), 1)
    assert math.isnan(few.ci_low)
    assert math.isnan(few.ci_high)


def test_an_interval_over_datasets_is_the_one_of_resamples_drawn_one_by_one():
    random = np.random.default_rng(2)
    measured, predicted = random.normal(size=(2, 1, 11, 1))
    draws = np.random.default_rng(0).integers(0, 11, size=(2000, 11))
    values = [stats.spearmanr(predicted[0, d, 0], measured[0, d, 0]).statistic for d in draws]
    found = dataset_scores(predicted, measured)["spearman"]
    low, high = np.percentile(values, [2.5, 97.5])
    assert (found.ci_low, found.ci_high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))


def test_a_perfect_method_stays_perfect_on_every_resample():
    truth = np.random.default_rng(3).normal(size=(1, 12, 1))
    for estimate in dataset_scores(truth, truth).values():
        assert (estimate.value, estimate.ci_low, estimate.ci_high) == pytest.approx((1.0, 1.0, 1.0))
