"""How well a ranked list finds the true sources of a query: places, metrics of them, and their uncertainty.

A place counts from 1. k of precision@k, recall@k and capped recall@k is a place:

precision@k       true among the first k / k
recall@k          true among the first k / true
capped recall@k   true among the first k / min(k, true): 1 where the first k could not hold more
reciprocal rank   1 / the best place of a true one; its mean over queries is the MRR

The metrics and the collapse of documents that mask one sentence are those of Akyürek et al. 2022 (arXiv 2205.11482).
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DEPTHS = (1, 3, 5, 10, 25)  # k of Akyürek et al.
ROUNDS = 10_000  # resamples of a bootstrap


@dataclass(frozen=True)
class Estimate:
    """What n observations say, between the ends of its 95 % interval."""

    value: float
    ci_low: float
    ci_high: float
    n: int


@dataclass(frozen=True)
class Spread:
    """One figure over several seeds; the standard deviation is that of a sample, None of one seed."""

    mean: float
    deviation: float | None
    low: float
    high: float
    n: int


def precision_at(k: int, true_ranks: Sequence[int]) -> float:
    """Share of the first k places that hold a true source; ranks count from 1."""
    return sum(rank <= k for rank in true_ranks) / k


def reciprocal_rank(true_ranks: Sequence[int]) -> float:
    """1 / the best place of a true source, 0 where there is none."""
    return 1 / min(true_ranks) if true_ranks else 0.0


def retrieval_metrics(true_ranks: Sequence[int], n_missing: int = 0) -> dict[str, float]:
    """Every metric of one query whose true sources, at least one, have these places, ascending.

    `n_missing` true sources have none: they could not be ranked, and no k finds them.
    """
    n, found = len(true_ranks) + n_missing, {"mrr": reciprocal_rank(true_ranks[:1])}
    for k in DEPTHS:
        there = bisect_right(true_ranks, k)
        found |= {f"precision@{k}": there / k, f"recall@{k}": there / n, f"capped_recall@{k}": there / min(k, n)}
    return found


def tie_breakers(names: Sequence[str]) -> np.ndarray:
    """A number per name that puts equal scores in an order: blind to the truth, the same on every machine."""
    digests = b"".join(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, dtype="<u8")


class Candidates:
    """Scored rows of several queries, and which of them are one thing to be ranked.

    row_queries[i]  the query of row i
    row_keys[i]     what row i is a part of: a document, or the sentence that it masks; its score is its best row's
    row_truths[i]   whether the row is a true source; a key is one if any of its rows is
    """

    def __init__(self, row_queries: Sequence[str], row_keys: Sequence[str], row_truths: Sequence[bool]) -> None:
        self.queries, queries = _numbered(row_queries)
        keys, numbers = _numbered(row_keys)
        self._order = np.lexsort((numbers, queries))
        queries, numbers = queries[self._order], numbers[self._order]
        new = np.ones(len(queries), np.bool_)
        new[1:] = (np.diff(queries) != 0) | (np.diff(numbers) != 0)
        self._starts = np.flatnonzero(new)
        self._queries = queries[self._starts]
        self._truths = np.logical_or.reduceat(np.asarray(row_truths, np.bool_)[self._order], self._starts)
        # Of query and key: a key that won every tie would win them for all queries alike.
        pairs = zip(self._queries.tolist(), numbers[self._starts].tolist(), strict=True)
        self._ties = tie_breakers([f"{self.queries[q]}\n{keys[k]}" for q, k in pairs])

    def sizes(self) -> dict[str, tuple[int, int]]:
        """By query, how many keys are ranked and how many of them are true."""
        n = len(self.queries)
        ranked, true = np.bincount(self._queries, minlength=n), np.bincount(self._queries[self._truths], minlength=n)
        return dict(zip(self.queries, zip(ranked.tolist(), true.tolist(), strict=True), strict=True))

    def true_ranks(self, row_scores: np.ndarray) -> dict[str, list[int]]:
        """By query, the places of its true keys, ascending; a row without a score (NaN) comes after every other."""
        scores = np.asarray(row_scores, np.float64)[self._order]
        best = np.maximum.reduceat(np.where(np.isnan(scores), -np.inf, scores), self._starts)
        order = np.lexsort((self._ties, -best, self._queries))
        places = np.arange(len(order)) - np.searchsorted(self._queries, self._queries) + 1
        true = self._truths[order]
        ends = np.searchsorted(self._queries[true], np.arange(1, len(self.queries)))
        found = np.split(places[true], ends)
        return dict(zip(self.queries, (ranks.tolist() for ranks in found), strict=True))


def _numbered(names: Sequence[str]) -> tuple[list[str], np.ndarray]:
    distinct = sorted(set(names))
    number = {name: k for k, name in enumerate(distinct)}
    return distinct, np.array([number[name] for name in names], np.int64)


def bootstrap_mean(values: Sequence[float], seed: int = 0, rounds: int = ROUNDS) -> Estimate:
    """The mean with the 2.5 and 97.5 percentiles of means over resampled queries (percentile bootstrap)."""
    return bootstrap_means(np.asarray(values, np.float64)[:, None], np.arange(len(values)), seed, rounds)[0]


def bootstrap_means(
    values: np.ndarray, clusters: Sequence[str] | np.ndarray, seed: int = 0, rounds: int = ROUNDS
) -> list[Estimate]:
    """The same of each column of values [observation, column], all columns on the same resamples.

    Observations of one cluster are resampled together, as those of one query under several seeds; n counts clusters.
    """
    _, numbers = np.unique(np.asarray(clusters), return_inverse=True)
    sizes = np.bincount(numbers).astype(np.float64)
    sums = np.stack([np.bincount(numbers, column) for column in values.T], axis=1)
    n, random = len(sizes), np.random.default_rng(seed)
    means = np.empty((rounds, values.shape[1]))
    step = max(1, 2**21 // n)  # rounds at a time: 16 MiB of draws
    for start in range(0, rounds, step):
        draws = random.integers(0, n, size=(min(step, rounds - start), n))
        flat = draws + n * np.arange(len(draws))[:, None]
        counts = np.bincount(flat.ravel(), minlength=draws.size).reshape(draws.shape).astype(np.float64)
        means[start : start + step] = (counts @ sums) / (counts @ sizes)[:, None]
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    figures = zip(values.mean(axis=0).tolist(), low.tolist(), high.tolist(), strict=True)
    return [Estimate(value, least, most, n) for value, least, most in figures]


def spread(values: Sequence[float]) -> Spread:
    """One figure per seed to their mean, standard deviation and range."""
    n, mean = len(values), math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1)) if n > 1 else None
    return Spread(mean, deviation, min(values), max(values), n)
