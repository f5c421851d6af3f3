"""Tails against scipy's Pareto fits and intervals, known exponents over many seeds, and numbers worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from tasks.evaluation.tails import NoTail, PowerLawTail, fit_tail, goodness_of_fit, scan_budget, share_of


def pareto(alpha: float, n: int, seed: int) -> list[float]:
    """Falling draws with P(X ≥ x) = x^-alpha, by inverting it."""
    u = np.random.default_rng(seed).uniform(size=n)
    return sorted((u ** (-1 / alpha)).tolist(), reverse=True)


def test_wilson_of_three_in_ten_by_hand():
    # p = .3, z² = 3.841459: (.3 + .192073 ± 1.959964 √(.021 + .00960365)) / 1.384146 = (.492073 ± .342873) / 1.384146
    found = share_of(3, 10, "wilson")
    assert (found.value, found.n) == (0.3, 10)
    assert (found.ci_low, found.ci_high) == pytest.approx((0.107791, 0.603222), abs=2e-6)


@pytest.mark.parametrize("n", [1, 10, 400])
def test_exact_intervals_of_none_and_of_all_by_hand(n):
    # (1 − p)^n = .025 and p^n = .025
    none, every = share_of(0, n, "exact"), share_of(n, n, "exact")
    assert (none.ci_low, none.ci_high) == pytest.approx((0.0, 1 - 0.025 ** (1 / n)), rel=1e-9)
    assert (every.ci_low, every.ci_high) == pytest.approx((0.025 ** (1 / n), 1.0), rel=1e-9)


@pytest.mark.parametrize(("alpha", "n_sample"), [(0.8, 400), (2.21, 9000), (4.34, 200_000)])
def test_alpha_is_the_shape_that_scipy_fits_above_the_same_x_min(alpha, n_sample):
    largest = pareto(alpha, n_sample, seed=3)
    tail = fit_tail(largest[:501], n_sample, n_sample)
    shape, _, _ = stats.pareto.fit(largest[: tail.n], floc=0, fscale=largest[tail.n])
    assert tail.alpha == pytest.approx(shape, rel=1e-9)
    assert tail.x_min == largest[tail.n]
    assert tail.alpha_error == pytest.approx(shape / math.sqrt(tail.n), rel=1e-9)


def test_alpha_by_hand():
    # Twenty values of e² x_min: alpha = 20 / Σ 2 = 1/2.
    tail = fit_tail([math.e**2] * 20 + [1.0] * 20, 40, 400)
    assert (tail.alpha, tail.x_min, tail.n) == (pytest.approx(0.5, rel=1e-12), 1.0, 20)


@pytest.mark.parametrize(
    ("n_sample", "n"), [(400, 20), (4000, 20), (4001, 21), (20_000, 100), (100_000, 500), (5_000_000, 500)]
)
def test_the_tail_is_half_a_percent_within_its_bounds(n_sample, n):
    assert fit_tail(pareto(2.0, 501, seed=0), n_sample // 2, n_sample).n == n


def test_too_small_a_sample_has_no_tail():
    with pytest.raises(NoTail, match="399 of 399 influences are positive, 40 of 400 needed"):
        fit_tail(pareto(2.0, 399, seed=0), 399, 399)
    with pytest.raises(NoTail, match="0 of 5 influences"):
        fit_tail([], 0, 5)


def test_too_few_positive_influences_have_no_tail():
    with pytest.raises(NoTail, match="199 of 20000 influences are positive, 200 of 20000 needed"):
        fit_tail(pareto(2.0, 199, seed=0), 199, 20_000)


def test_equal_influences_have_no_tail():
    with pytest.raises(NoTail, match="the 20 largest influences of the sample are equal"):
        fit_tail([3.0] * 50, 50, 1000)


def test_scale_leaves_alpha_and_p_as_they_are():
    largest = pareto(2.0, 500, seed=1)
    a, b = fit_tail(largest, 500, 9000), fit_tail([1e-7 * x for x in largest], 500, 9000)
    assert (b.alpha, b.p_value) == pytest.approx((a.alpha, a.p_value), rel=1e-9)
    assert b.x_min == pytest.approx(1e-7 * a.x_min)


def test_the_standard_error_covers_the_true_alpha_as_often_as_it_says():
    tails = [fit_tail(pareto(2.5, 20_000, seed), 20_000, 20_000) for seed in range(600)]
    covered = np.mean([abs(t.alpha - 2.5) <= 1.96 * t.alpha_error for t in tails])
    assert 0.92 < covered < 0.98  # three standard errors of 600 trials around .95
    assert np.mean([t.alpha for t in tails]) == pytest.approx(2.5 * 100 / 99, rel=0.02)  # n / (n − 1)


@pytest.mark.parametrize("share", [1e-2, 1e-4, 1e-5, 1e-6])
def test_the_budget_covers_the_true_number_as_often_as_it_says(share):
    """From what every sample of 10,000 reaches, through what some do, to what hardly one does."""
    threshold = share ** (-1 / 2.5)  # P(X ≥ threshold) = share
    covered = []
    for seed in range(500):
        largest = pareto(2.5, 10_000, seed)
        reaching = sum(x >= threshold for x in largest[:501])
        budget = scan_budget(threshold, reaching, 10_000, fit_tail(largest, 10_000, 10_000))
        covered.append(budget.ci_low <= 10 / share <= budget.ci_high)
    assert np.mean(covered) > 0.92


def test_p_is_the_share_of_refitted_samples_that_lie_farther_off():
    """Clauset's procedure with scipy's Pareto law, its sampler and its Kolmogorov-Smirnov distance."""
    rng = np.random.default_rng(5)

    def distance(x):
        shape = len(x) / np.log(x / 2.0).sum()
        return stats.kstest(x, stats.pareto(shape, scale=2.0).cdf).statistic

    for data in (2.0 * rng.pareto(3.0, 60) + 2.0, 2.0 + rng.uniform(0, 2, 60), 2.0 * np.exp(rng.uniform(0, 1, 60))):
        shape, observed = 60 / np.log(data / 2.0).sum(), distance(data)
        simulated = [distance(stats.pareto.rvs(shape, scale=2.0, size=60, random_state=rng)) for _ in range(500)]
        expected = np.mean([d >= observed for d in simulated])
        assert goodness_of_fit(np.log(data / 2.0)) == pytest.approx(expected, abs=0.07)


def test_a_power_law_is_rejected_as_often_as_the_level_says_and_others_are_found_out():
    accepted = [fit_tail(pareto(2.5, 10_000, seed), 10_000, 10_000).p_value for seed in range(400)]
    assert 0.055 < np.mean(np.array(accepted) <= 0.1) < 0.145  # three standard errors of 400 trials around .1
    bounded = sorted(np.random.default_rng(0).beta(5, 0.2, 20_000).tolist(), reverse=True)
    assert fit_tail(bounded, 20_000, 20_000).p_value < 0.01


def test_p_is_the_same_every_time():
    exponents = np.random.default_rng(2).exponential(size=37)
    assert goodness_of_fit(exponents) == goodness_of_fit(exponents[::-1])


def test_the_budget_beyond_the_sample_by_hand():
    # P = .1 · (1/10)² = .001. Variance of its logarithm: (1 − .1 + (2 ln 10)²)/100 = .221076; 1.96 √.221076 = .92155.
    budget = scan_budget(10.0, 0, 1000, PowerLawTail(alpha=2.0, x_min=1.0, n=100, n_sample=1000, p_value=0.5))
    assert budget.value == pytest.approx(10_000)
    assert (budget.ci_low, budget.ci_high) == pytest.approx((3979, 25_132), rel=1e-3)


def test_within_the_sample_the_share_is_counted_and_no_tail_is_asked():
    low, high = (stats.beta.ppf(q, a, b) for q, a, b in ((0.025, 4, 997), (0.975, 5, 996)))  # of the share 4/1000
    for tail in (None, PowerLawTail(alpha=9.0, x_min=1.0, n=100, n_sample=1000, p_value=0.5)):
        budget = scan_budget(3.0, 4, 1000, tail)
        assert (budget.value, budget.ci_low, budget.ci_high) == pytest.approx((2500, 10 / high, 10 / low))


def test_beyond_the_sample_without_a_tail_there_is_no_budget():
    assert scan_budget(3.0, 0, 1000, None) is None


def test_a_budget_past_all_numbers_is_infinite():
    tail = PowerLawTail(alpha=200.0, x_min=1.0, n=100, n_sample=1000, p_value=0.5)
    assert scan_budget(1e9, 0, 1000, tail).value == math.inf
