"""Uniform samples of sequence ids that depend on (seed, id) alone, not on parts, order or workers."""

from __future__ import annotations

import numpy as np


def uniform_sample(sequence_ids: np.ndarray, size: int, seed: int) -> np.ndarray:
    """`size` ids without replacement, in ascending order; all of them where there are no more."""
    if size >= len(sequence_ids):
        return np.sort(sequence_ids)
    keys = _mix(sequence_ids.astype(np.uint64) ^ _mix(np.full(1, seed, dtype=np.uint64)))
    chosen = np.lexsort((sequence_ids, keys))[:size]
    return np.sort(sequence_ids[chosen])


def _mix(x: np.ndarray) -> np.ndarray:
    # The SplitMix64 finaliser (Steele, Lea & Flood 2014) as a hash; unsigned NumPy integers wrap around.
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
