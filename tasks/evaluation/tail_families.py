"""Laws of a sample's largest values, fitted by maximum likelihood and compared: is it a power law?

The laws that Grosse et al. 2023 compare (arXiv 2308.03296, sec. 5.2.2). Exponential, Rayleigh, Weibull and
exponentiated Weibull begin at zero and are fitted to x − x_min; Gumbel and GEV have a location of their own and are
fitted to x; the power law is (x / x_min)^-alpha, alpha the exponent of the survival function as in `tails`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from tasks.evaluation.tails import goodness_of_fit


@dataclass(frozen=True)
class TailFit:
    """One law of the n values above x_min; log-likelihood in nats.

    ks_distance is Kolmogorov and Smirnov's. p_value is Clauset's (small: the law is rejected) where a refitted distance
    depends on no parameter and one simulation serves every sample, else None. `ratio` is the log-likelihood of the
    power law less this one's, and ratio_p the chance of so large a ratio, either way, between laws equally near the
    truth (Vuong 1989, Econometrica 57, 307; Clauset et al. 2009, SIAM Review 51, 661, sec. 5).
    """

    family: str
    parameters: dict[str, float]
    log_likelihood: float
    aic: float
    ks_distance: float
    p_value: float | None
    ratio: float
    ratio_p: float | None


@dataclass(frozen=True)
class _Family:
    law: Any  # a scipy.stats distribution
    names: tuple[str, ...]  # of its parameters, as scipy orders them; those that are held fixed are not counted
    at_zero: bool = True
    exponents: Callable[[np.ndarray], np.ndarray] | None = None  # what is exponential of a value under the law


FAMILIES = {
    "exponential": _Family(stats.expon, ("scale",), exponents=lambda excess: excess),
    "Rayleigh": _Family(stats.rayleigh, ("scale",), exponents=np.square),
    "Weibull": _Family(stats.weibull_min, ("shape", "scale")),
    "exponentiated Weibull": _Family(stats.exponweib, ("power", "shape", "scale")),
    "Gumbel": _Family(stats.gumbel_r, ("location", "scale"), at_zero=False),
    "GEV": _Family(stats.genextreme, ("shape", "location", "scale"), at_zero=False),
}
POWER_LAW = "power law"


def fit_tails(largest: np.ndarray, x_min: float) -> list[TailFit]:
    """Every law fitted to the values above x_min, the least AIC first; one without a finite likelihood is left out."""
    x = np.sort(np.asarray(largest, np.float64))
    alpha = len(x) / float(np.log(x / x_min).sum())
    power = stats.pareto(alpha, scale=x_min)
    reference = power.logpdf(x)
    exponents = np.log(x / x_min)
    found = [_described(POWER_LAW, {"alpha": alpha}, reference, power.cdf(x), reference, goodness_of_fit(exponents))]
    for name, family in FAMILIES.items():
        values = x - x_min if family.at_zero else x
        fitted = _fitted(family, values)
        if fitted is None:
            continue
        frozen = family.law(*fitted)
        densities = frozen.logpdf(values)
        if not np.isfinite(densities).all():  # no bound: a value at the law's very beginning, or outside of it
            continue
        p = None if family.exponents is None else goodness_of_fit(family.exponents(values))
        shown = [value for value in fitted if not family.at_zero or value != 0.0]
        parameters = dict(zip(family.names, map(float, shown), strict=True))
        found.append(_described(name, parameters, densities, frozen.cdf(values), reference, p))
    return sorted(found, key=lambda fit: fit.aic)


def _fitted(family: _Family, values: np.ndarray) -> tuple[float, ...] | None:
    """scipy's parameters: shapes, location, scale."""
    # scipy searches in the units of its data; from values of order one it arrives from the same place for all.
    unit = float(values.mean())
    with np.errstate(all="ignore"):
        try:
            *shapes, location, scale = family.law.fit(values / unit, **({"floc": 0.0} if family.at_zero else {}))
        except (stats.FitError, ValueError):  # no convergence; a value at the law's very beginning
            return None
    return (*shapes, location * unit, scale * unit)


def _described(
    name: str,
    parameters: dict[str, float],
    densities: np.ndarray,
    cumulated: np.ndarray,
    reference: np.ndarray,
    p_value: float | None,
) -> TailFit:
    """Values ascending; `reference` are the power law's log densities."""
    n = len(densities)
    steps = np.arange(n + 1) / n
    distance = float(np.maximum(steps[1:] - cumulated, cumulated - steps[:-1]).max())
    log_likelihood = float(densities.sum())
    differences = reference - densities
    spread = float(differences.std())
    ratio_p = None
    if name != POWER_LAW and spread > 0:
        ratio_p = float(2 * stats.norm.sf(abs(differences.sum()) / (np.sqrt(n) * spread)))
    aic = 2 * len(parameters) - 2 * log_likelihood
    return TailFit(name, parameters, log_likelihood, aic, distance, p_value, float(differences.sum()), ratio_p)
