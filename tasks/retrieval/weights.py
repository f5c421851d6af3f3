"""Lexical scorers: what a term that a query asks for is worth in a sequence that holds it.

score(q, z) = base(q) + Σ over the query's terms, repeated ones repeatedly, of  c_t · f / (f + n_z),  where f > 0

f is how often the sequence z holds the term t, c_t the term's weight and n_z = k1 · (1 − b + b · L_z / mean L) the
sequence's length normalisation. N sequences, of which df hold the term:

bm25      c = (k1 + 1) · ln((N − df + ½) / (df + ½)), a negative logarithm replaced by ¼ of its mean over all terms
          rank_bm25.BM25Okapi (Trotman et al. 2014, doi 10.1145/2682862.2682863)
lucene    c = ln(1 + (N − df + ½) / (df + ½))                    Apache Lucene since 8.0 (its scores carry no k1 + 1)
bm25plus  c = (k1 + 1) · ln((N + 1) / df),  base = Σ ln((N + 1) / df)
          rank_bm25.BM25Plus with δ = 1 (Lv & Zhai 2011, doi 10.1145/2063576.2063584); δ stands outside the fraction
tfidf     c = ln(1 + (N − df + ½) / (df + ½)),  n = 0
          the filter of Grosse et al. 2023, Eqs. 28-29: term frequency is 0 or 1, lengths do not count
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Scorer = Literal["bm25", "lucene", "bm25plus", "tfidf"]
K1, B, EPSILON, DELTA = 1.5, 0.75, 0.25, 1.0  # the defaults of rank_bm25


@dataclass(frozen=True)
class CorpusStatistics:
    """What the weights need to know of the whole corpus, over all shards."""

    n_sequences: int
    mean_length: float  # terms
    mean_idf: float  # of okapi_idf over all terms of the corpus


def okapi_idf(df: np.ndarray, n_sequences: int) -> np.ndarray:
    """ln((N − df + ½) / (df + ½)), negative for terms in more than half of the corpus."""
    df = np.asarray(df, np.float64)
    return np.log(n_sequences - df + 0.5) - np.log(df + 0.5)


def mean_okapi_idf(df: np.ndarray, n_sequences: int) -> float:
    """The mean of okapi_idf over all terms; the same bits in whatever order they come."""
    values, n_terms = np.unique(df, return_counts=True)
    return float((okapi_idf(values, n_sequences) * n_terms).sum() / max(1, n_terms.sum()))


def term_weights(scorer: Scorer, df: np.ndarray, corpus: CorpusStatistics) -> np.ndarray:
    """c of each term; a term that no sequence holds weighs nothing."""
    df, n = np.asarray(df, np.float64), corpus.n_sequences
    if scorer == "bm25":
        idf = okapi_idf(df, n)
        weights = (K1 + 1) * np.where(idf < 0, EPSILON * corpus.mean_idf, idf)
    elif scorer == "bm25plus":
        weights = (K1 + 1) * _plus_idf(df, n)
    else:
        weights = np.log((n - df + 0.5) / (df + 0.5) + 1)
    return np.where(df > 0, weights, 0.0)


def base_score(scorer: Scorer, df: np.ndarray, corpus: CorpusStatistics) -> float:
    """What every sequence scores, given the df of all of the query's terms, repeated ones repeatedly."""
    df = np.asarray(df, np.float64)
    return float(DELTA * _plus_idf(df[df > 0], corpus.n_sequences).sum()) if scorer == "bm25plus" else 0.0


def normalisations(scorer: Scorer, lengths: np.ndarray, corpus: CorpusStatistics) -> np.ndarray:
    """n of each sequence."""
    if scorer == "tfidf":
        return np.zeros(len(lengths))
    return K1 * (1 - B + B * lengths / corpus.mean_length)


def _plus_idf(df: np.ndarray, n_sequences: int) -> np.ndarray:
    return np.log((n_sequences + 1) / np.maximum(df, 1))
