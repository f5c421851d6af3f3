"""Linear datamodelling score: do summed influences predict what a model becomes when it is retrained on a subset?

LDS of a query: Spearman's correlation, over random subsets, of the sum of influences over the subset with the retrained
model's −loss on the query; the score of a method is its mean over queries (Park et al. 2023, arXiv 2303.14186). The sum
over a subset is that over everything less that over what the subset lacks, so the second, with its sign turned, ranks
subsets alike.

Letters: m methods, q queries, s subsets, b resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import spearmanr

from tasks.evaluation.ranking import Estimate

if TYPE_CHECKING:
    from jaxtyping import Float, Int

ENOUGH = 10  # subsets; the ends of an interval over fewer are those of a few coincidences
ROUNDS = 2000  # resamples of subsets and queries


@dataclass(frozen=True, eq=False)
class Scores:
    """LDS of every method: its mean over queries with its interval, and the same of its lead over another one."""

    of_queries: Float[np.ndarray, "m q"]
    means: tuple[Estimate, ...]
    leads: tuple[Estimate, ...]


def datamodelling_scores(
    predicted: Float[np.ndarray, "m q s"], measured: Float[np.ndarray, "q s"], baseline: int
) -> Scores:
    """Predicted and measured log p of each query under each subset to scores; leads are over method `baseline`.

    A method that predicts the same for all subsets of a query predicts nothing: 0. Intervals are 2.5 and 97.5
    percentiles over resamples of the subsets and of the queries, drawn together for all methods: few subsets are few
    however many queries are asked of them. n counts subsets.
    """
    n_queries, n_subsets = measured.shape
    if n_subsets < ENOUGH:
        raise ValueError(f"{n_subsets} subsets: expected at least {ENOUGH} for an interval. Retrain on more.")
    point = np.array([[_spearman(p, t) for p, t in zip(of, measured, strict=True)] for of in predicted])
    random = np.random.default_rng(0)
    subsets = _counts(random, ROUNDS, n_subsets)
    queries = _counts(random, ROUNDS, n_queries)
    truth = [_midranks(values, subsets) for values in measured]
    means = np.zeros((len(predicted), ROUNDS))
    for k, method in enumerate(predicted):
        for q, values in enumerate(method):
            found = _weighted_correlation(_midranks(values, subsets), truth[q], subsets)
            means[k] += queries[:, q] / n_queries * found
    values = point.mean(axis=1)
    return Scores(
        point,
        tuple(_estimate(value, of, n_subsets) for value, of in zip(values, means, strict=True)),
        tuple(
            _estimate(value - values[baseline], of - means[baseline], n_subsets)
            for value, of in zip(values, means, strict=True)
        ),
    )


def draw_left_out(sequence_ids: Int[np.ndarray, "n"], n_left_out: int, seed: int, subset: int) -> np.ndarray:
    """What random subset number `subset` lacks, ascending: the same however many subsets there are."""
    generator = np.random.default_rng([seed, subset])
    return np.sort(generator.choice(sequence_ids, n_left_out, replace=False))


def _spearman(predicted: np.ndarray, measured: np.ndarray) -> float:
    if np.ptp(predicted) == 0 or np.ptp(measured) == 0:
        return 0.0
    return float(spearmanr(predicted, measured).statistic)


def _counts(random: np.random.Generator, rounds: int, n: int) -> np.ndarray:
    """How often each of n is drawn in n draws with replacement, a row per round."""
    return random.multinomial(n, np.full(n, 1 / n), size=rounds).astype(np.float64)


def _midranks(values: Float[np.ndarray, "s"], counts: Float[np.ndarray, "b s"]) -> Float[np.ndarray, "b s"]:
    """The mean rank of each value in every resample, in which it stands so many times; equal values share theirs."""
    distinct, place = np.unique(values, return_inverse=True)
    sizes = counts @ np.eye(len(distinct))[place]
    return (np.cumsum(sizes, axis=1) - (sizes - 1) / 2)[:, place]


def _weighted_correlation(
    x: Float[np.ndarray, "b s"], y: Float[np.ndarray, "b s"], weights: Float[np.ndarray, "b s"]
) -> Float[np.ndarray, "b"]:
    """Pearson's correlation of each row; 0 where one side does not vary."""
    total = weights.sum(axis=1, keepdims=True)
    x = x - (weights * x).sum(axis=1, keepdims=True) / total
    y = y - (weights * y).sum(axis=1, keepdims=True) / total
    both = (weights * x * y).sum(axis=1)
    norm = np.sqrt((weights * x * x).sum(axis=1) * (weights * y * y).sum(axis=1))
    return np.divide(both, norm, out=np.zeros_like(both), where=norm > 0)


def _estimate(value: float, resampled: np.ndarray, n: int) -> Estimate:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high), n)
