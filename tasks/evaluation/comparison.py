"""Methods compared over the queries of a fact set: by slice, over seeds, with what is chosen chosen on other queries.

A query's slice says what training did to it (Akyürek et al. 2022, arXiv 2205.11482, whose tables speak of `learned`):
it is decided by the first and the last checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tasks.evaluation.ranking import Estimate, Spread, bootstrap_means, spread, tie_breakers

SLICES = ("known", "learned", "never")
ALL = "all"  # queries, whatever their slice

Column = tuple[str, str]  # method and metric


@dataclass(frozen=True, eq=False)
class SeedValues:
    """What one seed says of its queries: values[query, column], NaN where a query has none."""

    queries: tuple[str, ...]
    slices: tuple[str, ...]  # of each query
    columns: tuple[Column, ...]
    values: np.ndarray


@dataclass(frozen=True)
class Summary:
    """One metric of one method over the queries of a slice and all seeds.

    The interval is over queries, each resampled with its values under all seeds; the spread is of the seeds' means.
    """

    estimate: Estimate
    seeds: Spread


def seed_values(slice_of: Mapping[str, str], metrics: Mapping[str, Mapping[str, Mapping[str, float]]]) -> SeedValues:
    """metrics[method][metric][query] as a table; the queries are those that have a slice."""
    columns = tuple((method, metric) for method, found in metrics.items() for metric in found)
    rows = [[metrics[method][metric].get(query, math.nan) for method, metric in columns] for query in slice_of]
    values = np.array(rows, np.float64).reshape(len(slice_of), len(columns))
    return SeedValues(tuple(slice_of), tuple(slice_of.values()), columns, values)


def summarise(seeds: Sequence[SeedValues], slice_name: str) -> dict[Column, Summary]:
    """Every column that any seed has, in a slice; one in which no query of it has a value is left out.

    Columns that lack the same queries share their resamples.
    """
    columns = list(dict.fromkeys(column for seed in seeds for column in seed.columns))
    chosen = [np.array([slice_name in (ALL, of) for of in seed.slices], np.bool_) for seed in seeds]
    values = np.concatenate([_aligned(seed, columns)[rows] for seed, rows in zip(seeds, chosen, strict=True)])
    names = np.array([q for seed, rows in zip(seeds, chosen, strict=True) for q in np.array(seed.queries)[rows]])
    number = np.repeat(np.arange(len(seeds)), [rows.sum() for rows in chosen])
    patterns: dict[bytes, list[int]] = {}
    for column, there in enumerate(~np.isnan(values).T):
        patterns.setdefault(there.tobytes(), []).append(column)
    found: dict[Column, Summary] = {}
    for pattern, alike in patterns.items():
        there = np.frombuffer(pattern, np.bool_)
        if there.any():
            rows = values[there][:, alike]
            means = [rows[number[there] == k].mean(axis=0) for k in np.unique(number[there])]
            for place, estimate in enumerate(bootstrap_means(rows, names[there])):
                of_seeds = spread([float(mean[place]) for mean in means])
                found[columns[alike[place]]] = Summary(estimate, of_seeds)
    return {column: found[column] for column in columns if column in found}


def _aligned(seed: SeedValues, columns: Sequence[Column]) -> np.ndarray:
    """The seed's values under the given columns, NaN under those that it lacks."""
    place = {column: k for k, column in enumerate(seed.columns)}
    padded = np.concatenate([seed.values, np.full((len(seed.queries), 1), np.nan)], axis=1)
    return padded[:, [place.get(column, -1) for column in columns]]


def halves(fact_of: Mapping[str, str]) -> dict[str, int]:
    """Half 0 or 1 of each query; queries about one fact share a half, so that none is known from the other one."""
    facts = sorted(set(fact_of.values()))
    order = np.lexsort((np.arange(len(facts)), tie_breakers(facts)))
    half = {facts[k]: place % 2 for place, k in enumerate(order.tolist())}
    return {query: half[fact] for query, fact in fact_of.items()}


def choose_on_other_half(variants: Mapping[str, Mapping[str, float]], half_of: Mapping[str, int]) -> dict[int, str]:
    """By half, the variant with the best mean on the other half, of equal ones the first; nothing for a single half.

    Chosen on the queries that it is reported on, the best of many looks better than it is: as in the paper's tables.
    """
    chosen = {}
    for half in (0, 1) if len(set(half_of.values())) == 2 else ():
        others = [query for query, mine in half_of.items() if mine != half]
        means = {name: math.fsum(values[query] for query in others) / len(others) for name, values in variants.items()}
        chosen[half] = max(means, key=lambda name: means[name])  # max keeps the first of equals
    return chosen
