"""Inspections: how soon what is wrong is found, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.evaluation.inspection import found_curve, inspection_places


def test_places_are_the_shares_that_were_looked_at():
    scores, wrong = np.array([5.0, 1.0, 4.0, 3.0, 2.0]), np.array([False, True, True, False, False])
    assert inspection_places(scores, wrong, list("abcde")) == pytest.approx([2 / 5, 5 / 5])


def test_the_curve_rises_by_one_for_each_that_is_found():
    places = np.array([0.4, 1.0])
    assert found_curve(places, np.array([0.0, 0.39, 0.4, 0.9, 1.0])).tolist() == [0.0, 0.0, 0.5, 0.5, 1.0]


def test_equal_scores_favour_nobody():
    n = 2000
    wrong = np.arange(n) < 200  # all at the beginning, where a stable sort would leave them
    places = inspection_places(np.zeros(n), wrong, [f"d{k}" for k in range(n)])
    assert np.mean(places <= 0.2) == pytest.approx(0.2, abs=0.08)
