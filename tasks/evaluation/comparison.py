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
    """Every column in a slice; a column in which no query of it has a value is left out.

    All seeds have the same columns. Columns that lack the same queries share their resamples.
    """
    chosen = [np.array([slice_name in (ALL, of) for of in seed.slices], np.bool_) for seed in seeds]
    values = np.concatenate([seed.values[rows] for seed, rows in zip(seeds, chosen, strict=True)])
    names = [query for seed, rows in zip(seeds, chosen, strict=True) for query in np.array(seed.queries)[rows]]
    number = np.repeat(np.arange(len(seeds)), [rows.sum() for rows in chosen])
    patterns: dict[bytes, list[int]] = {}
    for column, there in enumerate(~np.isnan(values).T):
        patterns.setdefault(there.tobytes(), []).append(column)
    found: dict[Column, Summary] = {}
    for pattern, columns in patterns.items():
        there = np.frombuffer(pattern, np.bool_)
        if there.any():
            rows = values[there][:, columns]
            estimates = bootstrap_means(rows, np.array(names)[there])
            means = [rows[number[there] == k].mean(axis=0) for k in np.unique(number[there])]
            for place, column in enumerate(columns):
                of_seeds = spread([float(mean[place]) for mean in means])
                found[seeds[0].columns[column]] = Summary(estimates[place], of_seeds)
    return {column: found[column] for column in seeds[0].columns if column in found}


def halves(fact_of: Mapping[str, str]) -> dict[str, int]:
    """Half 0 or 1 of each query; queries about one fact share a half, so that none is known from the other one."""
    facts = sorted(set(fact_of.values()))
    order = np.lexsort((np.arange(len(facts)), tie_breakers(facts)))
    half = {facts[k]: place % 2 for place, k in enumerate(order.tolist())}
    return {query: half[fact] for query, fact in fact_of.items()}


def choose_on_other_half(variants: Mapping[str, Mapping[str, float]], half_of: Mapping[str, int]) -> dict[int, str]:
    """By half, the variant with the best mean on the other half; of equal ones the first.

    Chosen on the queries that it is reported on, the best of many looks better than it is: as in the paper's tables.
    """
    chosen = {}
    for half in (0, 1):
        others = [query for query, mine in half_of.items() if mine != half] or list(half_of)
        means = {name: math.fsum(values[query] for query in others) / len(others) for name, values in variants.items()}
        chosen[half] = max(means, key=lambda name: means[name])  # max keeps the first of equals
    return chosen


def cross_fitted(variants: Mapping[str, Mapping[str, float]], half_of: Mapping[str, int]) -> dict[str, float]:
    """Each query's value under the variant that the other half chose."""
    chosen = choose_on_other_half(variants, half_of)
    return {query: variants[chosen[half]][query] for query, half in half_of.items()}
