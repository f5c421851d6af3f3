"""Scores of whole corpora against rank_bm25 and bm25s, which share no code with ours or with each other."""

from __future__ import annotations

from collections import Counter

import bm25s
import numpy as np
import pytest
from rank_bm25 import BM25Okapi, BM25Plus

from tasks.retrieval.weights import (
    CorpusStatistics,
    base_score,
    mean_okapi_idf,
    normalisations,
    okapi_idf,
    term_weights,
)

RNG = np.random.default_rng(3)
# Zipf tokens: some terms stand in most of the sequences, so that their Okapi logarithm is negative.
CORPUS = [(RNG.zipf(1.3, RNG.integers(1, 60)) % 50).tolist() for _ in range(300)]
QUERIES = [[1, 1, 2, 7], [49, 3], [0], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [1000]]


def frequencies() -> dict[int, int]:
    return Counter(term for tokens in CORPUS for term in set(tokens))


def statistics() -> CorpusStatistics:
    mean = mean_okapi_idf(np.array(list(frequencies().values())), len(CORPUS))
    return CorpusStatistics(len(CORPUS), np.mean([len(tokens) for tokens in CORPUS]), mean)


def scores(scorer: str, query: list[int]) -> np.ndarray:
    """Σ c f / (f + n), written out pair by pair."""
    df = np.array([frequencies()[term] for term in query])
    weights = term_weights(scorer, df, statistics())
    norms = normalisations(scorer, np.array([len(tokens) for tokens in CORPUS]), statistics())
    found = np.full(len(CORPUS), base_score(scorer, df, statistics()))
    for row, tokens in enumerate(CORPUS):
        for term, weight in zip(query, weights, strict=True):
            f = tokens.count(term)
            found[row] += weight * f / (f + norms[row]) if f else 0.0
    return found


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize(("scorer", "oracle"), [("bm25", BM25Okapi), ("bm25plus", BM25Plus)])
def test_scores_equal_rank_bm25(scorer, oracle, query):
    expected = oracle(CORPUS).get_scores(query)
    np.testing.assert_allclose(scores(scorer, query), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("query", QUERIES[:-1])
def test_lucene_scores_equal_those_of_bm25s(query):
    index = bm25s.BM25(method="lucene", k1=1.5, b=0.75, dtype="float64")
    index.index([[str(term) for term in tokens] for tokens in CORPUS], show_progress=False)
    expected = index.get_scores([str(term) for term in query])
    np.testing.assert_allclose(scores("lucene", query), expected, rtol=1e-6, atol=1e-9)  # bm25s rounds to float32


def test_some_logarithm_of_the_corpus_is_negative():
    assert min(okapi_idf(np.array(list(frequencies().values())), len(CORPUS))) < 0


def test_a_term_in_most_sequences_weighs_a_quarter_of_the_mean_logarithm():
    assert term_weights("bm25", np.array([9]), CorpusStatistics(10, 10.0, 0.8))[0] == pytest.approx(2.5 * 0.25 * 0.8)


def test_tfidf_weights_equal_the_hand_worked_logarithms():
    # Three documents; terms in 1, 2 and 3 of them: ln((3 − n + .5)/(n + .5) + 1), Grosse et al. 2023, Eq. 29.
    expected = [np.log(2.5 / 1.5 + 1), np.log(1.5 / 2.5 + 1), np.log(0.5 / 3.5 + 1)]
    corpus = CorpusStatistics(3, 5.0, 0.0)
    np.testing.assert_allclose(term_weights("tfidf", np.array([1, 2, 3]), corpus), expected, rtol=1e-15)
    assert not normalisations("tfidf", np.array([1, 100]), corpus).any()  # so f / (f + n) is 1, however long


@pytest.mark.parametrize("scorer", ["bm25", "lucene", "bm25plus", "tfidf"])
def test_a_term_that_no_sequence_holds_weighs_nothing(scorer):
    assert term_weights(scorer, np.array([0]), CorpusStatistics(10, 10.0, 0.8)).tolist() == [0.0]
    assert base_score(scorer, np.array([0]), CorpusStatistics(10, 10.0, 0.8)) == 0.0
