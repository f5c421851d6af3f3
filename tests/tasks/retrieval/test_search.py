from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tasks.retrieval.inversion import invert
from tasks.retrieval.search import BLOCK, Hits, PostingLists, merge, merge_all, weigh
from tasks.retrieval.search import search as search_rows


def lists(sequences: list[list[int]]) -> PostingLists:
    tokens = np.array([t for s in sequences for t in s], np.int32)
    found = invert(tokens, np.array([len(s) for s in sequences], np.int64), int(tokens.max(initial=0)) + 1)
    terms, starts = np.unique(found.terms, return_index=True)
    return PostingLists(terms.astype(np.int64), np.append(starts, len(found)), found.rows, found.frequencies)


def search(postings, norms, queries, k, first_sequence_id=0, allowed=None, threads=1) -> list[Hits]:
    """A shard that is the whole corpus."""
    found = search_rows(postings, norms, queries, k, first_sequence_id, allowed, threads=threads)
    return merge_all([found], k, threads)


def explicit(sequences, norms, query, k, allowed=None) -> list[tuple[int, float]]:
    """Every sequence that holds a term, scored pair by pair in the order of the terms, best first, ties by row."""
    found = []
    for row, tokens in enumerate(sequences):
        counts = Counter(tokens)
        if (allowed is None or allowed[row]) and any(term in counts for term in query.terms):
            score = 0.0
            for term, weight in zip(query.terms.tolist(), query.weights.tolist(), strict=True):
                if counts[term]:
                    score += weight * (counts[term] / (counts[term] + norms[row]))
            found.append((row, score + query.base))
    return sorted(found, key=lambda hit: (-hit[1], hit[0]))[:k]


def pairs(hits: Hits) -> list[tuple[int, float]]:
    return list(zip(hits.sequence_ids.tolist(), hits.scores.tolist(), strict=True))


def corpus(n: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.zipf(1.4, rng.integers(0, 12)).clip(max=40).tolist() for _ in range(n)]


@pytest.mark.parametrize("k", [1, 7, 300, 10**6])
@pytest.mark.parametrize("weight", [1.0, 0.0, -1.0], ids=["positive", "zero", "negative"])
def test_search_equals_sorting_every_score(k, weight):
    sequences = corpus(3 * BLOCK + 5 if k > 1 else 400)
    norms = np.random.default_rng(1).integers(0, 2, len(sequences)).astype(float)  # few values: many ties
    queries = [weigh(q, {t: weight * (t % 3 + 1) for t in range(60)}) for q in ([1, 2, 2, 39], [5], [59], [40, 3, 1])]
    expected = [explicit(sequences, norms, query, k) for query in queries]
    for threads in (1, 3, 5):
        found = search(lists(sequences), norms, queries, k, threads=threads)
        assert [pairs(hits) for hits in found] == expected


def test_only_allowed_rows_are_found():
    sequences, allowed = corpus(2 * BLOCK), np.arange(2 * BLOCK) % 7 == 0
    norms, query = np.ones(len(sequences)), weigh([1, 2, 3], {1: 0.1, 2: 1.0, 3: 2.0})
    (hits,) = search(lists(sequences), norms, [query], 200, allowed=allowed)
    assert pairs(hits) == explicit(sequences, norms, query, 200, allowed)


def test_a_repeated_query_term_counts_repeatedly_and_ties_go_to_the_smaller_id():
    postings, weights = lists([[9], [7, 9], [7]]), {7: 1.0, 8: 1.0, 9: 5.0}
    (once,) = search(postings, np.zeros(3), [weigh([7], weights)], 10, first_sequence_id=20)
    assert pairs(once) == [(21, 1.0), (22, 1.0)]
    (twice,) = search(postings, np.zeros(3), [weigh([7, 7, 9], weights)], 1)
    assert pairs(twice) == [(1, 7.0)]
    (none,) = search(postings, np.zeros(3), [weigh([8], weights)], 10)
    assert pairs(none) == []


def test_a_batch_gives_each_query_the_bits_that_it_gets_alone():
    sequences = corpus(BLOCK + 100)
    norms = np.random.default_rng(2).random(len(sequences))
    weights = dict(enumerate(np.random.default_rng(3).random(60)))
    queries = [weigh(np.random.default_rng(s).integers(0, 45, 9).tolist(), weights) for s in range(20)]
    together = search(lists(sequences), norms, queries, 50)
    for hits, query in zip(together, queries, strict=True):
        (alone,) = search(lists(sequences), norms, [query], 50)
        assert pairs(hits) == pairs(alone)


@pytest.mark.parametrize("cuts", [[1], [100, 101, 9000], [BLOCK, 2 * BLOCK]])
def test_merging_shards_gives_the_bits_of_searching_them_as_one(cuts):
    sequences = corpus(2 * BLOCK + 50)
    norms = np.random.default_rng(2).integers(1, 3, len(sequences)) / 3
    query = weigh([1, 2, 3, 3, 8], dict(enumerate(np.random.default_rng(3).random(60))), base=0.7)
    (whole,) = search(lists(sequences), norms, [query], 500)
    shards = []
    for start, end in zip([0, *cuts], [*cuts, len(sequences)], strict=True):
        shards += search(lists(sequences[start:end]), norms[start:end], [query], 500, first_sequence_id=start)
    assert pairs(merge(shards, 500)) == pairs(whole)


def test_a_bound_from_other_shards_changes_nothing_but_what_is_kept():
    sequences = corpus(4000)
    norms = np.random.default_rng(2).integers(1, 3, len(sequences)) / 3  # few values: ties at the bound
    query = weigh([1, 2, 3, 3, 8], dict(enumerate(np.random.default_rng(3).random(60))), base=0.7)
    (whole,) = search(lists(sequences), norms, [query], 100)
    (first,) = search(lists(sequences[:2000]), norms[:2000], [query], 100)
    bound = [first.scores[-1]]
    (rest,) = search_rows(lists(sequences[2000:]), norms[2000:], [query], 100, first_sequence_id=2000, bounds=bound)
    assert (rest.scores >= bound[0]).all()
    assert pairs(merge([first, rest], 100)) == pairs(whole)


def test_merging_nothing_found_is_nothing():
    empty = Hits(np.array([], dtype=np.int64), np.array([]))
    assert len(merge([empty, empty], 5).sequence_ids) == 0
