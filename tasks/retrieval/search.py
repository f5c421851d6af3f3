"""Top-k search over one shard of postings, and the merge of shards; ties go to the smaller sequence_id."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Hits:
    """Sequences of one query with their scores, best first."""

    sequence_ids: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class WeightedPostings:
    """Postings of one shard, sorted by term: `slices[term]` is the range of the term's entries."""

    rows: np.ndarray  # index into sequence_ids
    weights: np.ndarray
    slices: dict[int, slice]
    sequence_ids: np.ndarray


def weighted_postings(terms: np.ndarray, sequence_ids: np.ndarray, weights: np.ndarray) -> WeightedPostings:
    """Group aligned postings by term."""
    order = np.argsort(terms, kind="stable")
    unique_ids, rows = np.unique(sequence_ids[order], return_inverse=True)
    values, starts = np.unique(terms[order], return_index=True)
    ends = [*starts[1:], len(order)]
    slices = {int(t): slice(int(s), int(e)) for t, s, e in zip(values, starts, ends, strict=True)}
    return WeightedPostings(rows, weights[order], slices, unique_ids)


def search(postings: WeightedPostings, query_terms: Iterable[int], k: int) -> Hits:
    """The k best sequences of a shard that hold at least one query term; repeated terms count repeatedly."""
    scores = np.zeros(len(postings.sequence_ids))
    touched = np.zeros(len(postings.sequence_ids), dtype=bool)
    for term in query_terms:
        where = postings.slices.get(term)
        if where is not None:
            scores[postings.rows[where]] += postings.weights[where]  # one entry per sequence: no collisions
            touched[postings.rows[where]] = True
    found = np.flatnonzero(touched)
    return best(Hits(postings.sequence_ids[found], scores[found]), k)


def best(hits: Hits, k: int) -> Hits:
    """The k best of some hits, best first."""
    order = np.lexsort((hits.sequence_ids, -hits.scores))[:k]
    return Hits(hits.sequence_ids[order], hits.scores[order])


def merge(shards: Iterable[Hits], k: int) -> Hits:
    """The exact global top k from every shard's top k."""
    shards = list(shards)
    return best(Hits(np.concatenate([h.sequence_ids for h in shards]), np.concatenate([h.scores for h in shards])), k)
