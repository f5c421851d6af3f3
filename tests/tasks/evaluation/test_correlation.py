"""Correlations and intervals, against numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.evaluation.correlation import correlations, mean_correlation, over_seeds
from tasks.influence.errors import InfluenceError


def test_correlations_are_over_the_examples_of_each_test_example():
    measured = np.array([[1.0, 3.0, 0.0], [2.0, 2.0, 0.0], [3.0, 1.0, 0.0], [10.0, 0.0, 0.0]])
    predicted = np.array([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [3.0, 3.0, 3.0], [4.0, 4.0, 4.0]])
    found = correlations(measured, predicted)
    # Of the first: deviations (−3, −2, −1, 6) and (−1.5, −.5, .5, 1.5), products 14, squares 50 and 5.
    np.testing.assert_allclose(found["pearson"], [14 / np.sqrt(250), -1, np.nan])
    np.testing.assert_allclose(found["spearman"], [1, -1, np.nan])
    assert mean_correlation(found["spearman"], "pbrf") == 0
    with pytest.raises(InfluenceError, match="pbrf.*change when an example is left out"):
        mean_correlation(found["pearson"][2:], "pbrf")


def test_a_prediction_that_is_the_same_for_all_foresees_nothing():
    measured = np.array([[1.0, 5.0], [2.0, 5.0], [4.0, 5.0]])
    found = correlations(measured, np.full((3, 2), 7.0))
    np.testing.assert_array_equal(found["pearson"], [0, np.nan])
    np.testing.assert_array_equal(found["spearman"], [0, np.nan])


def test_an_interval_over_seeds_is_students_and_stays_within_what_the_figure_can_be():
    found = over_seeds([1.0, 2.0, 3.0])
    half = 4.302653 / np.sqrt(3)  # t at 97.5 % with 2 degrees of freedom; the standard deviation is 1
    assert (found.value, found.n) == (2.0, 3)
    assert (found.ci_low, found.ci_high) == pytest.approx((2 - half, 2 + half))
    assert over_seeds([0.8, 0.9, 1.0], -1, 1).ci_high == 1
    with pytest.raises(InfluenceError, match="at least 3 seeds, found 2"):
        over_seeds([1.0, 2.0])
