"""Uniform samples of sequence ids that depend on (seed, id) alone, not on parts, order or workers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from tasks.influence.objectives import splitmix64


def uniform_sample(sequence_ids: np.ndarray, size: int, seed: int) -> np.ndarray:
    """`size` ids without replacement, in ascending order; all of them where there are no more."""
    if size >= len(sequence_ids):
        return np.sort(sequence_ids)
    ids = torch.from_numpy(sequence_ids.astype(np.int64))
    keys = splitmix64(ids ^ splitmix64(torch.tensor([seed]))).numpy().view(np.uint64)
    chosen = np.lexsort((sequence_ids, keys))[:size]
    return np.sort(sequence_ids[chosen])


def uniform_scores(name: str, sequence_ids: Sequence[int]) -> list[float]:
    """A number in [0, 1) for each id that depends on (name, id) alone: an order that favours nobody."""
    digests = (hashlib.md5(f"{name}:{i}".encode(), usedforsecurity=False).digest() for i in sequence_ids)
    return [int.from_bytes(digest[:8], "little") / 2**64 for digest in digests]
