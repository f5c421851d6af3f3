from __future__ import annotations

import numpy as np
import pytest

from tasks.evaluation.ranking import (
    Candidates,
    bootstrap_mean,
    bootstrap_means,
    precision_at,
    reciprocal_rank,
    retrieval_metrics,
    spread,
)


def test_precision_and_reciprocal_rank_of_a_hand_worked_list():
    assert precision_at(10, [2, 5, 11]) == pytest.approx(0.2)
    assert reciprocal_rank([5, 2, 11]) == pytest.approx(0.5)
    assert reciprocal_rank([]) == 0.0


def test_recall_counts_every_true_source_and_capped_recall_as_many_as_k_places_hold():
    found = retrieval_metrics([1, 2, 4, 30])
    assert (found["recall@3"], found["capped_recall@3"]) == (pytest.approx(2 / 4), pytest.approx(2 / 3))
    assert (found["recall@25"], found["capped_recall@25"]) == (pytest.approx(3 / 4), pytest.approx(3 / 4))
    first = retrieval_metrics(range(1, 125))
    assert first["recall@10"] == pytest.approx(10 / 124)  # the ceiling that Akyürek et al. come near to: .0806
    assert first["capped_recall@10"] == 1.0


def test_a_true_source_that_could_not_be_ranked_counts_as_one_that_was_not_found():
    found = retrieval_metrics([1, 4], n_missing=2)
    assert (found["recall@3"], found["recall@25"]) == (pytest.approx(1 / 4), pytest.approx(2 / 4))
    assert (found["capped_recall@1"], found["capped_recall@25"]) == (1.0, pytest.approx(2 / 4))
    assert (found["mrr"], found["precision@5"]) == (1.0, pytest.approx(2 / 5))


def test_every_metric_of_a_query_stands_at_every_depth():
    metrics = retrieval_metrics([2, 6])
    assert len(metrics) == 1 + 3 * 5
    assert metrics["mrr"] == pytest.approx(1 / 2)
    assert [metrics[f"precision@{k}"] for k in (1, 3, 5, 10, 25)] == pytest.approx([0, 1 / 3, 1 / 5, 2 / 10, 2 / 25])
    assert [metrics[f"recall@{k}"] for k in (1, 3, 5, 10, 25)] == pytest.approx([0, 1 / 2, 1 / 2, 1, 1])
    assert [metrics[f"capped_recall@{k}"] for k in (1, 3, 5, 10, 25)] == pytest.approx([0, 1 / 2, 1 / 2, 1, 1])


def test_places_are_those_of_each_query_alone_in_any_order_of_rows():
    rows = [  # query, document, true, score
        ("b", "d1", False, 9.0), ("a", "d1", True, 2.0), ("a", "d2", False, 5.0), ("b", "d2", True, 1.0),
        ("a", "d3", True, 7.0), ("b", "d3", False, 3.0), ("a", "d4", False, -1.0),
    ]  # fmt: skip
    for order in (range(7), [6, 2, 0, 5, 1, 4, 3]):
        queries, keys, truths, scores = zip(*(rows[k] for k in order), strict=True)
        assert Candidates(queries, keys, truths).true_ranks(np.array(scores)) == {"a": [1, 3], "b": [3]}


def test_a_sentence_has_the_score_of_its_best_masking_and_is_true_if_any_masking_is():
    # Sentence s holds maskings at 1, 6 (the true one at 1) and t at 5, 4: as sentences s 6, t 5, u 3.
    keys, scores, truths = list("sstut"), [1.0, 6.0, 5.0, 3.0, 4.0], [True, False, False, True, False]
    sentences = Candidates(["q"] * 5, keys, truths)
    assert sentences.true_ranks(np.array(scores)) == {"q": [1, 3]}
    assert sentences.sizes() == {"q": (3, 2)}
    assert Candidates(["q"] * 5, list("12345"), truths).true_ranks(np.array(scores)) == {"q": [4, 5]}


def test_a_row_without_a_score_comes_after_every_other():
    found = Candidates(["q"] * 3, list("abc"), [True, False, False]).true_ranks(np.array([np.nan, -1e300, 2.0]))
    assert found == {"q": [3]}


def test_a_query_without_truth_has_no_places():
    assert Candidates(["q", "r"], ["a", "a"], [False, True]).true_ranks(np.zeros(2)) == {"q": [], "r": [1]}


def test_ties_do_not_favour_the_truth_nor_the_order_of_rows():
    queries = [f"q{q}" for q in range(400) for _ in range(10)]
    keys = [f"d{d}" for _ in range(400) for d in range(10)]
    for true in (0, 9):  # the first or the last of ten equal documents
        truths = [d == true for _ in range(400) for d in range(10)]
        found = Candidates(queries, keys, truths).true_ranks(np.zeros(4000))
        places = [ranks[0] for ranks in found.values()]
        assert np.mean(places) == pytest.approx(5.5, abs=4 * np.sqrt(8.25 / 400))  # 4 standard errors of uniform places
        assert Candidates(queries[::-1], keys[::-1], truths[::-1]).true_ranks(np.zeros(4000)) == found


def test_the_bootstrap_interval_covers_the_mean_of_a_normal_sample_as_theory_says():
    x = np.random.default_rng(1).normal(3.0, 1.0, 400)
    estimate = bootstrap_mean(x.tolist())
    half = 1.96 * x.std() / np.sqrt(len(x))
    assert estimate.value == pytest.approx(x.mean())
    assert estimate.ci_low == pytest.approx(x.mean() - half, abs=0.01)
    assert estimate.ci_high == pytest.approx(x.mean() + half, abs=0.01)
    assert estimate.n == 400


def test_a_query_seen_under_three_seeds_counts_once_in_the_interval():
    x = np.random.default_rng(2).normal(0.0, 1.0, 200)
    alone, (thrice,) = bootstrap_mean(x), bootstrap_means(np.tile(x, 3)[:, None], np.tile(np.arange(200), 3))
    assert thrice.n == 200
    assert (thrice.value, thrice.ci_low, thrice.ci_high) == pytest.approx((alone.value, alone.ci_low, alone.ci_high))


def test_columns_share_their_resamples_so_that_a_difference_is_paired():
    random = np.random.default_rng(3)
    theirs = random.normal(0.0, 5.0, 300)
    ours = theirs + random.normal(0.5, 0.1, 300)
    columns = np.stack([ours, theirs, ours - theirs], axis=1)
    found = bootstrap_means(columns, np.arange(300))
    assert vars(found[0]) == pytest.approx(vars(bootstrap_mean(ours)))
    assert found[2].value == pytest.approx(0.5, abs=0.02)
    assert found[2].ci_high - found[2].ci_low == pytest.approx(2 * 1.96 * 0.1 / np.sqrt(300), rel=0.15)
    assert found[0].ci_high - found[0].ci_low == pytest.approx(2 * 1.96 * 5.0 / np.sqrt(300), rel=0.15)


def test_the_spread_over_seeds_is_mean_sample_deviation_and_range():
    found = spread([0.2, 0.4, 0.9])
    assert (found.mean, found.low, found.high, found.n) == (pytest.approx(0.5), 0.2, 0.9, 3)
    assert found.deviation == pytest.approx(np.sqrt((0.09 + 0.01 + 0.16) / 2))
    assert spread([0.3]).deviation is None
