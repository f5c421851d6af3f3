"""Krippendorff's alpha against its author's worked examples, a matrix written out by loops, and a known coin."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.evaluation.reliability import alpha_estimate, clustered_mean, krippendorff_alpha, pair_agreement

# Krippendorff 2011: sections A (two observers, two categories: .095) and C (four observers, some data missing: .743).
TWO = ["0100000010", "1110010000"]
FOUR = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]


def counts_of(lines):
    """[unit, category] of observers' lines, a character for each unit."""
    categories = sorted(set("".join(lines)) - {"."})
    return np.array([[sum(line[u] == c for line in lines) for c in categories] for u in range(len(lines[0]))])


def test_two_observers_and_two_categories_give_the_published_alpha():
    # o01 = 4 of n = 20, n0 = 14, n1 = 6: 1 − 19 · 4 / (14 · 6) = .0952
    assert krippendorff_alpha(counts_of(TWO)) == pytest.approx(1 - 19 * 4 / (14 * 6))
    assert krippendorff_alpha(counts_of(TWO)) == pytest.approx(0.095, abs=5e-4)


def test_four_observers_with_missing_data_give_the_published_alpha():
    assert krippendorff_alpha(counts_of(FOUR)) == pytest.approx(0.743, abs=5e-4)


def test_alpha_equals_that_of_the_coincidence_matrix_written_out():
    random = np.random.default_rng(0)
    for _ in range(20):
        counts = random.integers(0, 4, size=(9, 3))
        coincidences = np.zeros((3, 3))
        for unit in counts:
            answers = np.repeat(np.arange(3), unit)
            for i, a in enumerate(answers):
                for j, b in enumerate(answers):
                    if i != j:
                        coincidences[a, b] += 1 / (len(answers) - 1)
        n_c, n = coincidences.sum(axis=1), coincidences.sum()
        observed = (n - np.trace(coincidences)) / n
        expected = (n * n - (n_c**2).sum()) / (n * (n - 1))
        assert krippendorff_alpha(counts) == pytest.approx(1 - observed / expected)


def test_units_that_one_person_saw_say_nothing():
    counts = counts_of(TWO)
    alone = np.array([[1, 0], [0, 1], [0, 0]])
    assert krippendorff_alpha(np.vstack([counts, alone])) == krippendorff_alpha(counts)
    names = [f"q{u}" for u in range(13)]
    assert pair_agreement(np.vstack([counts, alone]), names) == pair_agreement(counts, names[:10])
    assert pair_agreement(counts, names[:10]).value == pytest.approx(0.6)  # 6 of 10 units
    assert pair_agreement(alone, names[:3]) is None
    assert krippendorff_alpha(alone) is None


def test_where_everybody_always_says_the_same_there_is_no_alpha():
    assert krippendorff_alpha(np.array([[2, 0], [3, 0]])) is None
    assert alpha_estimate(np.array([[2, 0], [3, 0]]), ["a", "b"]) is None
    assert krippendorff_alpha(np.array([[2, 0], [0, 2]])) == 1


def test_the_interval_of_alpha_covers_the_truth_and_is_that_of_a_bootstrap_by_loops():
    random = np.random.default_rng(1)
    ones = random.binomial(3, random.choice([0.2, 0.8], size=60))
    counts, names = np.column_stack([3 - ones, ones]), [f"q{u // 3}" for u in range(60)]
    found = alpha_estimate(counts, names, rounds=4000)
    groups = [np.flatnonzero([name == of for name in names]) for of in dict.fromkeys(names)]
    by_loops = [
        krippendorff_alpha(counts[np.concatenate([groups[k] for k in random.integers(0, 20, 20)])]) for _ in range(2000)
    ]
    assert (found.ci_low, found.ci_high) == pytest.approx(tuple(np.percentile(by_loops, [2.5, 97.5])), abs=0.03)
    # Two people agree on a unit with .2² + .8² = .68, by chance with .5: 1 − .32 / .5 = .36
    assert found.ci_low < 0.36 < found.ci_high
    assert (found.value, found.n) == (krippendorff_alpha(counts), 60)


def test_a_single_cluster_is_resampled_by_its_units():
    assert clustered_mean(np.array([0.0, 1.0, 0.0, 1.0]), ["q"] * 4).ci_low < 0.5
    assert clustered_mean(np.array([0.0, 1.0, 0.0, 1.0]), ["q", "q", "r", "r"]).ci_low == 0.5
