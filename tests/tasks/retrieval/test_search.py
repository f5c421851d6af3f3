from __future__ import annotations

import numpy as np
import pytest

from tasks.retrieval.search import Hits, merge, search, weighted_postings
from tasks.retrieval.weights import CorpusStatistics, bm25_weights, tfidf_weights


def test_tfidf_equals_the_hand_worked_sum_of_idfs():
    # Three documents; "a" is in 1, "b" in 2, "c" in 3: ln((3 − n + .5)/(n + .5) + 1), Grosse et al. 2023, Eq. 29.
    frequencies = np.array([1.0, 2.0, 3.0])
    expected = [np.log(2.5 / 1.5 + 1), np.log(1.5 / 2.5 + 1), np.log(0.5 / 3.5 + 1)]
    np.testing.assert_allclose(tfidf_weights(frequencies, CorpusStatistics(3, 5.0, 0.0)), expected, rtol=1e-15)


def test_a_repeated_query_term_counts_repeatedly_and_ties_go_to_the_smaller_id():
    postings = weighted_postings(np.array([7, 7, 9]), np.array([30, 20, 20]), np.array([1.0, 1.0, 5.0]))
    once = search(postings, [7], 10)
    assert once.sequence_ids.tolist() == [20, 30]
    assert once.scores.tolist() == [1.0, 1.0]
    assert search(postings, [7, 7, 9], 1).scores.tolist() == [7.0]
    assert len(search(postings, [8], 10).sequence_ids) == 0


def test_merging_shards_equals_searching_them_as_one():
    rng = np.random.default_rng(0)
    terms, ids = rng.integers(0, 20, 4000), rng.integers(0, 500, 4000)
    terms, ids = np.unique(np.stack([terms, ids]), axis=1)
    weights = rng.integers(1, 4, len(terms)).astype(float)  # small integers: many ties
    whole = search(weighted_postings(terms, ids, weights), [1, 2, 3, 3], 50)
    shards = [
        weighted_postings(terms[m], ids[m], weights[m]) for m in (ids < 100, (ids >= 100) & (ids < 101), ids > 100)
    ]
    merged = merge([search(shard, [1, 2, 3, 3], 50) for shard in shards], 50)
    assert merged.sequence_ids.tolist() == whole.sequence_ids.tolist()
    assert merged.scores.tolist() == whole.scores.tolist()


def test_bm25_weight_of_a_term_in_most_documents_is_a_quarter_of_the_mean_idf():
    weight = bm25_weights(
        np.array([1.0]), np.array([10.0]), np.array([9.0]), CorpusStatistics(10, 10.0, 0.8), k1=1.5, b=0.75
    )
    assert weight[0] == pytest.approx(0.25 * 0.8 * 2.5 / 2.5)


def test_merging_nothing_found_is_nothing():
    empty = Hits(np.array([], dtype=np.int64), np.array([]))
    assert len(merge([empty, empty], 5).sequence_ids) == 0
