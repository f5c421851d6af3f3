"""Laws of the largest values on samples whose law is known, and against densities written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from tasks.evaluation.tail_families import FAMILIES, POWER_LAW, fit_tails


def named(x, x_min):
    return {fit.family: fit for fit in fit_tails(x, x_min)}


@pytest.mark.parametrize("seed", range(5))
def test_a_pareto_samples_exponent_is_found_within_two_standard_errors_and_no_law_is_likelier(seed):
    x = 3.0 * (1 + np.random.default_rng(seed).pareto(2.2, 2000))
    fits = fit_tails(x, 3.0)
    power = next(fit for fit in fits if fit.family == POWER_LAW)
    assert power.parameters["alpha"] == pytest.approx(2.2, abs=2 * 2.2 / math.sqrt(2000))
    assert fits[0].family in {POWER_LAW, "exponentiated Weibull"}  # whose tail, with three parameters, comes close
    assert all(fit.ratio > -3 for fit in fits)
    assert all(fit.ratio_p < 0.05 for fit in fits if fit.family in {"exponential", "Gumbel", "Rayleigh"})


@pytest.mark.parametrize(
    ("family", "draw"),
    [("exponential", lambda r: r.exponential(4.0, 800)), ("Rayleigh", lambda r: r.rayleigh(4.0, 800))],
)
def test_the_law_that_made_a_sample_is_not_rejected_and_the_power_law_is(family, draw):
    p_values = []
    for seed in range(6):
        found = named(2.0 + draw(np.random.default_rng(seed)), 2.0)
        assert found[POWER_LAW].p_value < 0.01
        assert found[family].ratio < 0
        assert found[family].parameters["scale"] == pytest.approx(4.0, rel=0.1)
        p_values.append(found[family].p_value)
    assert np.mean(np.array(p_values) > 0.1) >= 0.5  # nine tenths are, on average


def test_likelihoods_distances_and_ratios_are_those_of_the_densities_written_out():
    x = np.array([2.5, 3.0, 4.0, 7.0, 20.0])
    found = named(x, 2.0)
    alpha = 5 / sum(math.log(v / 2.0) for v in x)
    power = sum(math.log(alpha / 2.0 * (v / 2.0) ** (-alpha - 1)) for v in x)
    scale = float(np.mean(x - 2.0))
    exponential = sum(-math.log(scale) - (v - 2.0) / scale for v in x)
    assert found[POWER_LAW].parameters["alpha"] == pytest.approx(alpha)
    assert found[POWER_LAW].log_likelihood == pytest.approx(power)
    assert found["exponential"].log_likelihood == pytest.approx(exponential)
    assert found["exponential"].aic == pytest.approx(2 - 2 * exponential)
    assert found["exponential"].ratio == pytest.approx(power - exponential)
    assert found["exponential"].ks_distance == pytest.approx(
        stats.kstest(x - 2.0, stats.expon(scale=scale).cdf).statistic
    )
    assert found["Rayleigh"].parameters["scale"] == pytest.approx(math.sqrt(np.mean((x - 2.0) ** 2) / 2), rel=1e-3)


def test_fits_do_not_depend_on_the_unit():
    x = 3.0 * (1 + np.random.default_rng(0).pareto(1.5, 200))
    one, other = named(x, 3.0), named(1e-6 * x, 3e-6)
    assert set(one) == set(other) == {POWER_LAW, *FAMILIES}
    for name, fit in one.items():
        assert other[name].ks_distance == pytest.approx(fit.ks_distance, abs=1e-6)
        assert other[name].ratio == pytest.approx(fit.ratio, abs=1e-3)


def test_a_law_without_a_finite_likelihood_is_left_out():
    x = np.array([2.0, 2.0, 3.0, 4.0, 9.0, 30.0])  # at x_min a Weibull law of shape < 1 has no bound
    assert "Weibull" not in named(x, 2.0)
    assert POWER_LAW in named(x, 2.0)
