"""How far people agree who put the same things into categories, some of them unseen by some (Krippendorff 2011).

counts[unit, category]: how many people put the unit into the category. A unit that fewer than two people saw pairs
nobody with anybody and says nothing.
Source: K. Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011, section C (nominal data, any number of
observers, missing data).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tasks.evaluation.ranking import ROUNDS, Estimate, bootstrap_means


def krippendorff_alpha(counts: np.ndarray) -> float | None:
    """1 − observed / expected disagreement: 1 is agreement, 0 what chance gives; None where nothing could disagree.

    With m_u answers on unit u, n_uc of them c, n_c = Σ_u n_uc and n = Σ_c n_c over units with m_u ≥ 2:
    α = 1 − (n − 1) · Σ_u Σ_{c≠k} n_uc n_uk / (m_u − 1) / Σ_{c≠k} n_c n_k.
    """
    counts = _pairable(counts)
    (alpha,) = _alphas(_disagreements(counts).sum()[None], counts.sum(axis=0)[None])
    return None if np.isnan(alpha) else float(alpha)


def alpha_estimate(counts: np.ndarray, clusters: Sequence[str], seed: int = 0, rounds: int = ROUNDS) -> Estimate | None:
    """α with the 2.5 and 97.5 percentiles of it over resampled clusters of units (percentile bootstrap).

    Resamples in which everybody always says the same have no α and are left out; None where all of them are.
    n counts the units that two people or more saw.
    """
    alpha, seen = krippendorff_alpha(counts), counts.sum(axis=1) >= 2
    if alpha is None:
        return None
    counts = counts[seen].astype(np.float64)
    _, numbers = np.unique(resampled_by(np.asarray(clusters)[seen]), return_inverse=True)
    parts = np.column_stack([_disagreements(counts), counts])
    sums = np.stack([np.bincount(numbers, column) for column in parts.T], axis=1)
    draws = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=rounds)
    resampled = draws @ sums
    alphas = _alphas(resampled[:, 0], resampled[:, 1:])
    low, high = np.nanpercentile(alphas, [2.5, 97.5]) if not np.isnan(alphas).all() else (alpha, alpha)
    return Estimate(alpha, float(low), float(high), int(seen.sum()))


def pair_agreement(counts: np.ndarray, clusters: Sequence[str]) -> Estimate | None:
    """The share of pairs of people who agree on a unit, mean over the units that two or more saw; None without any."""
    seen = counts.sum(axis=1) >= 2
    if not seen.any():
        return None
    counts = _pairable(counts)
    m = counts.sum(axis=1)
    shares = (counts * (counts - 1)).sum(axis=1) / (m * (m - 1))
    return clustered_mean(shares, np.asarray(clusters)[seen])


def clustered_mean(values: np.ndarray, clusters: Sequence[str] | np.ndarray) -> Estimate:
    """The mean over units with its 95 % interval over resampled clusters; n counts the units."""
    names = resampled_by(np.asarray(clusters))
    (found,) = bootstrap_means(np.asarray(values, np.float64)[:, None], names)
    return Estimate(found.value, found.ci_low, found.ci_high, len(values))


def resampled_by(clusters: np.ndarray) -> np.ndarray:
    """What is drawn as one: the clusters; where there is one alone, its units."""
    return clusters if len(set(clusters.tolist())) > 1 else np.arange(len(clusters))


def _pairable(counts: np.ndarray) -> np.ndarray:
    return counts[counts.sum(axis=1) >= 2].astype(np.float64)


def _disagreements(counts: np.ndarray) -> np.ndarray:
    """Of each unit Σ_{c≠k} n_uc n_uk / (m_u − 1)."""
    m = counts.sum(axis=1)
    return (m**2 - (counts**2).sum(axis=1)) / (m - 1)


def _alphas(disagreements: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """α of sums of disagreements and totals[round, category]; NaN where only one category was ever given."""
    n = totals.sum(axis=1)
    expected = n**2 - (totals**2).sum(axis=1)
    return 1 - (n - 1) * disagreements / np.where(expected > 0, expected, np.nan)
