"""The weight of a term in a sequence under each lexical scorer.

A query's score is the sum of its terms' weights, a term asked twice counting twice.
All arrays are aligned: one entry per posting (term, sequence).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class CorpusStatistics:
    """What the weights need to know of the whole corpus, over all shards."""

    n_sequences: int
    mean_length: float  # tokens
    mean_idf: float  # of BM25 Okapi's raw idf over all terms


def okapi_idf(document_frequency: np.ndarray, n_sequences: int) -> np.ndarray:
    """ln((N − df + ½) / (df + ½)), negative for terms in more than half of the corpus."""
    return np.log(n_sequences - document_frequency + 0.5) - np.log(document_frequency + 0.5)


def bm25_weights(
    term_frequency: np.ndarray,
    length: np.ndarray,
    document_frequency: np.ndarray,
    corpus: CorpusStatistics,
    k1: float = 1.5,
    b: float = 0.75,
    epsilon: float = 0.25,
) -> np.ndarray:
    """BM25 Okapi as rank_bm25.BM25Okapi has it: a negative idf becomes epsilon times the mean idf."""
    idf = okapi_idf(document_frequency, corpus.n_sequences)
    idf = np.where(idf < 0, epsilon * corpus.mean_idf, idf)
    saturation = term_frequency + k1 * (1 - b + b * length / corpus.mean_length)
    return idf * term_frequency * (k1 + 1) / saturation


def tfidf_weights(document_frequency: np.ndarray, corpus: CorpusStatistics) -> np.ndarray:
    """The filter of Grosse et al. 2023 (Eqs. 28-29): term frequency is 0 or 1, so the weight is the idf alone."""
    return np.log((corpus.n_sequences - document_frequency + 0.5) / (document_frequency + 0.5) + 1)
