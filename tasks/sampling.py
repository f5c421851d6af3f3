"""Uniform samples of sequence ids that depend on (seed, id) alone, not on parts, order or workers."""

from __future__ import annotations

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
