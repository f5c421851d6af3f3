"""Token lists to postings: which sequences hold a term, and how often, sorted by term.

A counting sort over terms, stable in the sequences, and one run-length pass: O(tokens + terms), against the hashing
and sorting of (term, sequence) pairs of a general GROUP BY.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit


@dataclass(frozen=True)
class Postings:
    """One entry per (term, row) pair, sorted by both; rows count a shard's sequences from zero."""

    terms: np.ndarray  # int32 or int64
    rows: np.ndarray  # int32
    frequencies: np.ndarray  # int32

    def __len__(self) -> int:
        return len(self.terms)


def invert(tokens: np.ndarray, lengths: np.ndarray, n_terms: int) -> Postings:
    """Postings of sequences that lie one behind the other in `tokens`, terms being 0 … n_terms − 1."""
    return Postings(*_invert(tokens, lengths, n_terms))


@njit(nogil=True, cache=True)
def _invert(tokens, lengths, n_terms):
    starts = np.zeros(n_terms + 1, np.int64)
    for token in tokens:
        starts[token + 1] += 1
    for term in range(n_terms):
        starts[term + 1] += starts[term]
    rows = np.empty(len(tokens), np.int32)
    cursor = starts[:-1].copy()
    at = 0
    for row in range(len(lengths)):
        for _ in range(lengths[row]):
            token = tokens[at]
            rows[cursor[token]] = row
            cursor[token] += 1
            at += 1
    # Entries of one term are ordered by row, so repetitions stand side by side.
    terms = np.empty(len(tokens), np.int32)
    frequencies = np.empty(len(tokens), np.int32)
    n = 0
    for term in range(n_terms):
        last = -1
        for k in range(starts[term], starts[term + 1]):
            if rows[k] == last:
                frequencies[n - 1] += 1
            else:
                last = rows[k]
                terms[n], rows[n], frequencies[n] = term, last, 1  # n never overtakes k
                n += 1
    return terms[:n], rows[:n], frequencies[:n]
