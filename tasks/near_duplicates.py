"""Near-duplicates among sequences: what shares half of its five-token runs is one family."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from storage.database import query

JACCARD = 0.5  # of the distinct runs of five tokens; measured for every pair that MinHash proposes


def near_duplicates(connection, sequences: Iterable[int]) -> dict[int, int]:
    """Each sequence that is alike to another of those given → the smallest id of its family.

    Alike is passed on: a family is whatever a chain of near-duplicates connects.
    """
    ids = np.unique(np.fromiter(sequences, dtype=np.int64))
    pairs = query(connection, "report/near_duplicates", sequences=ids.tolist(), jaccard=JACCARD)
    if pairs.num_rows == 0:
        return {}
    earlier, later = (np.searchsorted(ids, pairs[side].to_numpy()) for side in ("earlier", "later"))
    links = coo_array((np.ones(len(later), dtype=bool), (earlier, later)), shape=(len(ids), len(ids)))
    _, family = connected_components(links, directed=False)
    smallest = np.full(len(ids), np.iinfo(np.int64).max)
    np.minimum.at(smallest, family, ids)
    return {int(ids[k]): int(smallest[family[k]]) for k in np.unique(np.concatenate([earlier, later]))}
