from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tasks.retrieval.inversion import invert


def counted(sequences: list[list[int]]) -> list[tuple[int, int, int]]:
    """(term, row, frequency) of every pair, sorted."""
    return sorted((term, row, n) for row, tokens in enumerate(sequences) for term, n in Counter(tokens).items())


def inverted(sequences: list[list[int]], n_terms: int) -> list[tuple[int, int, int]]:
    tokens = np.array([t for s in sequences for t in s], np.int32)
    found = invert(tokens, np.array([len(s) for s in sequences], np.int64), n_terms)
    return list(zip(found.terms.tolist(), found.rows.tolist(), found.frequencies.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_postings_are_counts_by_term_and_sequence(seed):
    rng = np.random.default_rng(seed)
    sequences = [rng.integers(0, 30, rng.integers(0, 40)).tolist() for _ in range(200)]
    assert inverted(sequences, 30) == counted(sequences)


def test_a_hand_worked_inversion():
    assert inverted([[2, 0, 2], [], [0]], 3) == [(0, 0, 1), (0, 2, 1), (2, 0, 2)]


def test_sequences_without_tokens_have_no_postings():
    assert inverted([[], []], 4) == []
    assert inverted([], 0) == []
