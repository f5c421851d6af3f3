"""Datamodelling scores against scipy's correlations and bootstrap, and the draws of subsets."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap, spearmanr

from tasks.evaluation.datamodels import ENOUGH, datamodelling_scores, draw_left_out


@pytest.fixture
def noisy():
    """Three methods (the truth with some noise, its opposite, one constant) for two queries and twelve subsets."""
    random = np.random.default_rng(0)
    measured = np.round(random.normal(size=(2, 12)), 1)  # rounded, so that some are equal
    good = measured + random.normal(size=(2, 12))
    return np.stack([good, -measured, np.full((2, 12), 3.0)]), measured


def test_the_score_is_scipys_spearman_averaged_over_queries(noisy):
    predicted, measured = noisy
    found = datamodelling_scores(predicted, measured, 0)
    expected = np.mean([spearmanr(predicted[0, q], measured[q]).statistic for q in (0, 1)])
    assert found.means[0].value == pytest.approx(expected, rel=1e-12)
    assert found.means[1].value == pytest.approx(-1.0)
    assert found.means[0].n == 12


def test_a_method_that_predicts_the_same_for_every_subset_predicts_nothing(noisy):
    constant = datamodelling_scores(*noisy, 0).means[2]
    assert (constant.value, constant.ci_low, constant.ci_high) == (0.0, 0.0, 0.0)


def test_the_interval_over_one_query_is_scipys_over_the_subsets(noisy):
    predicted, measured = noisy
    found = datamodelling_scores(predicted[:, :1], measured[:1], 0).means[0]
    theirs = bootstrap(
        (predicted[0, 0], measured[0]), lambda x, y: spearmanr(x, y).statistic, paired=True, vectorized=False,
        n_resamples=1500, method="percentile", rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert (found.ci_low, found.ci_high) == pytest.approx((theirs.low, theirs.high), abs=0.06)
    assert found.ci_low < found.value < found.ci_high


def test_a_lead_is_the_difference_on_the_same_resamples(noisy):
    predicted, measured = noisy
    predicted = np.concatenate([predicted, predicted[:1]])  # a fourth method that is the first
    found = datamodelling_scores(predicted, measured, 0)
    assert (found.leads[3].value, found.leads[3].ci_low, found.leads[3].ci_high) == (0.0, 0.0, 0.0)
    assert found.leads[1].value == pytest.approx(found.means[1].value - found.means[0].value)
    assert found.leads[1].ci_high < 0


def test_too_few_subsets_give_no_score(noisy):
    predicted, measured = noisy
    with pytest.raises(ValueError, match=f"at least {ENOUGH}"):
        datamodelling_scores(predicted[:, :, : ENOUGH - 1], measured[:, : ENOUGH - 1], 0)


def test_a_subset_of_a_number_and_seed_is_always_the_same_and_others_are_others():
    ids = np.arange(100, 200)
    drawn = [tuple(draw_left_out(ids, 50, 7, k)) for k in range(20)]
    assert drawn[3] == tuple(draw_left_out(ids, 50, 7, 3))
    assert len(set(drawn)) == 20
    assert draw_left_out(ids, 50, 8, 3).tolist() != list(drawn[3])
    counts = np.bincount(np.concatenate(drawn) - 100, minlength=100)
    assert all(len(set(chosen)) == 50 for chosen in drawn)
    assert 2 < counts.min() < counts.max() < 18  # each sequence is left out of about ten of twenty
