"""Tails: the share that a filter misses, the power law of the largest influences, the scan that would match a filter.

alpha is the exponent of the survival function, P(X ≥ x | X ≥ x_min) = (x / x_min)^-alpha, as in Fig. 8 of Grosse et
al. 2023 (arXiv 2308.03296); the density falls as x^-(alpha + 1), whose exponent Clauset et al. call alpha.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from scipy.stats import binomtest

from tasks.evaluation.ranking import Estimate

Z = 1.959963984540054  # the 97.5 percentile of the standard normal distribution
TAIL_SHARE, FEWEST, MOST = 0.005, 20, 500  # of the sample; 500 is the tail that Grosse et al. fitted
SMALLEST_SAMPLE = 400  # in which the 20 largest are its top twentieth
ROUNDS = 2500  # simulated samples: p to two decimals, Clauset et al. 2009, sec. 4.1


class NoTail(ValueError):
    """A sample to which no tail is fitted; the message says why."""


@dataclass(frozen=True)
class PowerLawTail:
    """The n largest of a sample of n_sample, above x_min; p_value is small where no power law fits."""

    alpha: float
    x_min: float
    n: int
    n_sample: int
    p_value: float

    @property
    def alpha_error(self) -> float:
        """Standard error of alpha: alpha / √n (Clauset et al. 2009, eq. 3.2, whose alpha − 1 is ours)."""
        return self.alpha / math.sqrt(self.n)


def share_of(successes: int, n: int, method: Literal["wilson", "exact"]) -> Estimate:
    """A share with its 95 % interval.

    wilson  keeps its level for few trials and shares near 0 or 1 (Wilson 1927, JASA 22, 209); of the intervals that
            Brown, Cai and DasGupta compare (2001, Statistical Science 16, 101) one they recommend for n ≤ 40
    exact   the shares under which a binomial count is not among the extreme 5 % (Clopper & Pearson 1934,
            Biometrika 26, 404): never too short
    """
    interval = binomtest(successes, n).proportion_ci(0.95, method=method)
    return Estimate(successes / n, float(interval.low), float(interval.high), n)


def fit_tail(largest: Sequence[float], n_positive: int, n_sample: int) -> PowerLawTail:
    """The power law of a sample's largest influences; `largest` holds the positive ones, falling, 501 or all of them.

    The tail is .5 % of the sample, at least 20 and at most 500 values, and takes a sample of 400 with twice as many
    positive influences. It is that short because most laws are powers far out only: where P was a tenth of
    1 / n_sample, the interval of `scan_budget` held the truth for .89 to .97 of Student's t and log-normal samples of
    400 to 4,000 (300 seeds each), and for .1 of them with a tenth of a sample of 1,000 as its tail.

    x_min is the largest value below the tail, so that the tail is n independent draws given x_min and
    alpha = n / Σ ln(x_i / x_min) its maximum likelihood (Hill 1975, Annals of Statistics 3, 1163); on average that is
    n/(n − 1) times the truth.
    """
    n = min(max(math.ceil(TAIL_SHARE * n_sample), FEWEST), MOST)
    if n_sample < SMALLEST_SAMPLE or n_positive < 2 * n:
        raise NoTail(
            f"{n_positive} of {n_sample} influences are positive, {2 * n} of {max(n_sample, SMALLEST_SAMPLE)} needed"
        )
    x_min = largest[n]
    exponents = np.log(np.asarray(largest[:n], dtype=np.float64) / x_min)
    if exponents.sum() <= 0:
        raise NoTail(f"the {n} largest influences of the sample are equal")
    return PowerLawTail(float(n / exponents.sum()), float(x_min), n, n_sample, goodness_of_fit(exponents))


def goodness_of_fit(exponents: np.ndarray) -> float:
    """Clauset's p: the share of samples drawn from the fit that, fitted in turn, lie farther from it than the data.

    Distance is Kolmogorov and Smirnov's; p ≤ 0.1 rejects the power law (Clauset, Shalizi and Newman 2009, SIAM
    Review 51, 661, sec. 4.1; arXiv 0706.1062). `exponents` are ln(x_i / x_min), exponential under the power law.
    """
    return float(np.mean(_simulated_distances(len(exponents)) >= _distances(np.asarray(exponents)[None])[0]))


@cache
def _simulated_distances(n: int) -> np.ndarray:
    # A refitted distance does not depend on alpha (Lilliefors 1969, JASA 64, 387): one simulation serves every tail.
    rng = np.random.default_rng(0)
    return np.concatenate([_distances(rng.exponential(size=(rows, n))) for rows in _blocks(n)])


def _blocks(n: int) -> list[int]:
    most = max(1, 1_000_000 // n)  # rows of at most 8 MB
    return [min(most, ROUNDS - start) for start in range(0, ROUNDS, most)]


def _distances(exponents: np.ndarray) -> np.ndarray:
    """Kolmogorov-Smirnov distance of each row [round, draw] from the exponential distribution fitted to it."""
    n = exponents.shape[1]
    fitted = -np.expm1(-np.sort(exponents, axis=1) / exponents.mean(axis=1, keepdims=True))
    steps = np.arange(n + 1) / n
    return np.maximum(steps[1:] - fitted, fitted - steps[:-1]).max(axis=1)


def scan_budget(
    threshold: float, n_reaching: int, n_sample: int, tail: PowerLawTail | None, wanted: int = 10
) -> Estimate | None:
    """How many random sequences hold `wanted` influences of `threshold` or more, on average: wanted / P(X ≥ threshold).

    Where `n_reaching` of the sample do, P is their share. Its interval is the exact one: a single one
    that reaches the threshold was lucky more often than Wilson's allows.
    Beyond the sample P = (n / n_sample) (x_min / threshold)^alpha (Weissman 1978, JASA 73, 812), whose logarithm has
    the variance (1 − n/n_sample + (alpha ln(threshold / x_min))²) / n: of n/n_sample and of alpha. None without a tail.
    """
    if n_reaching:
        share = share_of(n_reaching, n_sample, "exact")
        return Estimate(wanted / share.value, wanted / share.ci_high, wanted / share.ci_low, n_sample)
    if tail is None:
        return None
    falls = tail.alpha * math.log(threshold / tail.x_min)
    error = math.sqrt((1 - tail.n / n_sample + falls**2) / tail.n)
    middle = math.log(wanted * n_sample / tail.n) + falls
    return Estimate(_exp(middle), _exp(middle - Z * error), _exp(middle + Z * error), n_sample)


def _exp(exponent: float) -> float:
    return math.exp(exponent) if exponent < 700 else math.inf
