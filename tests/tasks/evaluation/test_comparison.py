from __future__ import annotations

import math

import numpy as np
import pytest

from tasks.evaluation.comparison import (
    choose_on_other_half,
    halves,
    seed_values,
    summarise,
)

MRR = ("m", "mrr")


def one(values: dict[str, float], slices: dict[str, str]):
    return seed_values(slices, {"m": {"mrr": values}})


def test_a_slice_is_averaged_over_its_queries_and_seeds():
    first = one({"a": 1.0, "b": 0.5, "c": 0.0}, {"a": "learned", "b": "learned", "c": "known"})
    second = one({"a": 0.0, "b": 0.5, "c": 0.0}, {"a": "learned", "b": "never", "c": "known"})
    found = summarise([first, second], "learned")[MRR]
    assert found.estimate.value == pytest.approx((1.0 + 0.5 + 0.0) / 3)
    assert found.estimate.n == 2  # queries, not observations
    assert (found.seeds.mean, found.seeds.low, found.seeds.high) == pytest.approx(((0.75 + 0.0) / 2, 0.0, 0.75))
    assert summarise([first, second], "all")[MRR].estimate.value == pytest.approx(2.0 / 6)


def test_a_slice_is_what_each_seed_made_of_it():
    # Under one seed nothing was learned: the other alone speaks for the slice.
    seeds = [one({"a": 1.0}, {"a": "known"}), one({"a": 0.5}, {"a": "learned"})]
    found = summarise(seeds, "learned")[MRR]
    assert (found.estimate.value, found.seeds.n, found.seeds.deviation) == (0.5, 1, None)


def test_a_method_that_one_seed_lacks_is_that_of_the_others():
    seeds = [one({"a": 1.0}, {"a": "known"}), seed_values({"a": "known"}, {"other": {"mrr": {"a": 0.5}}})]
    found = summarise(seeds, "all")
    assert [(column, round(summary.seeds.mean, 3)) for column, summary in found.items()] == [
        (MRR, 1.0), (("other", "mrr"), 0.5),
    ]  # fmt: skip


def test_an_empty_slice_has_no_figure_and_breaks_nothing():
    assert summarise([one({"a": 1.0}, {"a": "known"})], "learned") == {}


def test_a_query_without_a_value_counts_in_no_mean():
    slices = {"a": "known", "b": "known"}
    table = seed_values(slices, {"m": {"mrr": {"b": 0.25}}, "n": {"mrr": {"a": 1.0, "b": 0.5}, "taught": {}}})
    found = summarise([table], "all")
    assert (found[MRR].estimate.value, found[MRR].estimate.n) == (0.25, 1)
    assert (found["n", "mrr"].estimate.value, found["n", "mrr"].estimate.n) == (0.75, 2)
    assert ("n", "taught") not in found


def test_queries_about_one_fact_share_a_half_and_the_halves_are_even():
    half = halves({f"q{k}": f"fact {k // 2}" for k in range(100)})
    assert all(half[f"q{2 * k}"] == half[f"q{2 * k + 1}"] for k in range(50))
    assert sum(half.values()) == 50


def cross_fitted(variants, half_of):
    """Each query's value under the variant that the other half chose."""
    chosen = choose_on_other_half(variants, half_of)
    return {query: variants[chosen[half]][query] for query, half in half_of.items()}


def test_a_variant_is_chosen_on_the_other_half_alone():
    half = {"a": 0, "b": 0, "c": 1, "d": 1}
    # On half 0 "x" is best, on half 1 "y": so half 0 is reported with y and half 1 with x.
    variants = {"x": {"a": 0.9, "b": 0.8, "c": 0.1, "d": 0.2}, "y": {"a": 0.3, "b": 0.4, "c": 0.6, "d": 0.7}}
    assert choose_on_other_half(variants, half) == {0: "y", 1: "x"}
    assert cross_fitted(variants, half) == {"a": 0.3, "b": 0.4, "c": 0.1, "d": 0.2}


def test_choosing_among_many_equal_variants_gains_nothing_on_the_other_half():
    # Forty variants of noise: the best on its own queries looks good, cross-fitted it does not.
    random = np.random.default_rng(0)
    names = [f"q{k}" for k in range(400)]
    variants = {f"v{v}": dict(zip(names, random.uniform(size=400), strict=True)) for v in range(40)}
    own = max(np.mean(list(values.values())) for values in variants.values())
    fitted = np.mean(list(cross_fitted(variants, halves({n: n for n in names})).values()))
    assert own > 0.52
    assert fitted == pytest.approx(0.5, abs=3 * math.sqrt(1 / 12 / 400))


def test_a_single_fact_has_no_other_half_to_choose_on():
    assert choose_on_other_half({"x": {"a": 0.2}, "y": {"a": 0.3}}, halves({"a": "f"})) == {}
