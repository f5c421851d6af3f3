from __future__ import annotations

import numpy as np
import pytest

from tasks.evaluation.ranking import bootstrap_mean, precision_at, reciprocal_rank


def test_precision_and_reciprocal_rank_of_a_hand_worked_list():
    assert precision_at(10, [2, 5, 11]) == pytest.approx(0.2)
    assert reciprocal_rank([5, 2, 11]) == pytest.approx(0.5)
    assert reciprocal_rank([]) == 0.0


def test_the_bootstrap_interval_covers_the_mean_of_a_normal_sample_as_theory_says():
    x = np.random.default_rng(1).normal(3.0, 1.0, 400)
    estimate = bootstrap_mean(x.tolist())
    half = 1.96 * x.std() / np.sqrt(len(x))
    assert estimate.value == pytest.approx(x.mean())
    assert estimate.ci_low == pytest.approx(x.mean() - half, abs=0.01)
    assert estimate.ci_high == pytest.approx(x.mean() + half, abs=0.01)
    assert estimate.n == 400
