"""Top-k search over one shard of postings, and the merge of shards; ties go to the smaller sequence_id.

A batch of queries goes through the shard a block of rows at a time. In a block f / (f + n) is found once for every
posting that any query asks for; then each query adds up its terms in an array that stays in the processor's cache,
terms that many rows hold as whole vectors. A row is kept if it beats the query's k-th best so far, so most rows of
most blocks are never looked at again. Terms are added in the order of their ids, so a score has the same bits however
the corpus is cut into parts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numba import njit

BLOCK = 8192  # rows; their scores, 64 KiB, stay in a core's second cache
DENSE = 2  # a term in at least one row of this many is written down for every row of the block
FEW = 32  # equal scores that are put in order one by one
NOTHING = -np.inf


@dataclass(frozen=True)
class Hits:
    """Sequences of one query with their scores, best first."""

    sequence_ids: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class PostingLists:
    """The postings of some terms in one shard: entries starts[j] … starts[j + 1] are those of terms[j], by row."""

    terms: np.ndarray  # ascending
    starts: np.ndarray
    rows: np.ndarray  # int32, counted from the shard's first sequence
    frequencies: np.ndarray


@dataclass(frozen=True)
class WeightedQuery:
    """What a query asks of any sequence: its distinct terms, ascending, and what each is worth."""

    terms: np.ndarray
    weights: np.ndarray  # c, times how often the query has the term
    base: float = 0.0


def weigh(query_terms: Sequence[int], weight_of: dict[int, float], base: float = 0.0) -> WeightedQuery:
    """A query's terms with their weights; a repeated term counts repeatedly."""
    counts = Counter(query_terms)
    terms = np.array(sorted(counts), np.int64)
    return WeightedQuery(terms, np.array([counts[t] * weight_of[t] for t in terms.tolist()], np.float64), base)


def search(
    postings: PostingLists,
    normalisations: np.ndarray,
    queries: Sequence[WeightedQuery],
    k: int,
    first_sequence_id: int = 0,
    allowed: np.ndarray | None = None,
    bounds: Sequence[float] | None = None,
    threads: int = 1,
) -> list[Hits]:
    """Each query's k best rows of a shard, in ascending order, among those that hold at least one of its terms.

    `merge` puts the hits of all shards in order. `allowed` marks the rows that may be found; without it all may.
    `bounds` are scores below which a query wants no hit, as k better ones are known from other shards.
    `threads` share the queries.
    """
    known = np.full(len(queries), NOTHING) if bounds is None else np.array(bounds)

    def some(numbers: range) -> list[Hits]:
        of = slice(numbers.start, numbers.stop)
        return _search_together(postings, normalisations, queries[of], k, first_sequence_id, allowed, known[of])

    return _shared_out(some, len(queries), threads)


def _shared_out(some: Callable[[range], list[Hits]], n_queries: int, threads: int) -> list[Hits]:
    """The hits of queries 0 … n_queries − 1, each thread finding those of some of them."""
    share = -(-n_queries // threads)
    groups = [range(start, min(start + share, n_queries)) for start in range(0, n_queries, share)]
    if len(groups) == 1:
        return some(groups[0])
    with ThreadPoolExecutor(threads) as pool:
        return list(chain.from_iterable(pool.map(some, groups)))


def _search_together(
    postings: PostingLists,
    normalisations: np.ndarray,
    queries: Sequence[WeightedQuery],
    k: int,
    first_sequence_id: int,
    allowed: np.ndarray | None,
    bounds: np.ndarray,
) -> list[Hits]:
    """The same in one thread."""
    n_rows = len(normalisations)
    k = min(k, n_rows)
    lists, weights, starts = _flattened(postings, queries)
    used, lists = np.unique(lists, return_inverse=True)
    everything = np.ones(1, np.bool_) if allowed is None else allowed
    # A hit as good as the bound may still win by its id.
    least = np.nextafter(bounds - [query.base for query in queries], NOTHING)
    rows, scores, found = _search(
        postings.starts[used], postings.starts[used + 1], postings.rows, postings.frequencies, normalisations,
        lists, weights, starts, k, everything, allowed is not None, least,
    )  # fmt: skip
    hits = []
    for q, query in enumerate(queries):
        n = found[q]
        hits.append(Hits(rows[q, :n] + np.int64(first_sequence_id), scores[q, :n] + query.base))
    return hits


def _flattened(postings: PostingLists, queries: Sequence[WeightedQuery]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The list number and the weight of every term that the shard has, query by query."""
    lists, weights, starts = [], [], [0]
    for query in queries:
        at = np.searchsorted(postings.terms, query.terms)
        there = at < len(postings.terms)
        there[there] = postings.terms[at[there]] == query.terms[there]
        lists.append(at[there])
        weights.append(query.weights[there])
        starts.append(starts[-1] + int(there.sum()))
    return np.concatenate(lists).astype(np.int64), np.concatenate(weights), np.array(starts, np.int64)


@njit(nogil=True, cache=True)
def _search(
    starts, ends, rows, frequencies, normalisations, lists, weights, query_starts, k, allowed, restricted, least
):  # fmt: skip
    n_rows, n_queries, n_lists = len(normalisations), len(query_starts) - 1, len(starts)
    room = min(2 * k + BLOCK, n_rows)
    kept_rows = np.empty((n_queries, room), np.int32)
    kept_scores = np.empty((n_queries, room), np.float64)
    kept = np.zeros(n_queries, np.int64)
    most_entries, most_vectors = _most_in_a_block(starts, ends, rows, n_rows)
    local, saturation = np.empty(most_entries, np.int32), np.empty(most_entries, np.float64)
    vectors = np.empty((most_vectors, BLOCK), np.float64)
    cursor, begin, end, vector = starts.copy(), starts.copy(), starts.copy(), starts.copy()
    scores, touched, scratch = np.zeros(BLOCK), np.zeros(BLOCK, np.bool_), np.empty(room)
    for first in range(0, n_rows, BLOCK):
        n = min(BLOCK, n_rows - first)
        total, n_vectors = 0, 0
        for j in range(n_lists):
            start, stop = cursor[j], _next_block(rows, cursor[j], ends[j], first + n)
            some_rows, some_frequencies = rows[start:stop], frequencies[start:stop]
            begin[j], vector[j] = total, -1
            if (stop - start) * DENSE >= n:
                _write_vector(some_rows, some_frequencies, normalisations, first, vectors[n_vectors])
                vector[j] = n_vectors
                n_vectors += 1
            else:
                total += stop - start
                _write_entries(
                    some_rows, some_frequencies, normalisations, first, local[begin[j] : total],
                    saturation[begin[j] : total],
                )  # fmt: skip
            cursor[j], end[j] = stop, total
        for q in range(n_queries):
            scores[:] = 0.0
            touched[:] = False
            # A row that holds no term has score 0 and is no hit: where 0 might be enough, they are told apart.
            mark = least[q] < 0
            for t in range(query_starts[q], query_starts[q + 1]):
                j = lists[t]
                if vector[j] >= 0:
                    _add_vector(scores, weights[t], vectors[vector[j]])
                    if mark:
                        _mark_vector(touched, vectors[vector[j]])
                else:
                    _add_entries(scores, weights[t], local[begin[j] : end[j]], saturation[begin[j] : end[j]])
                    if mark:
                        _mark_entries(touched, local[begin[j] : end[j]])
            kept[q] = _keep(
                scores[:n], least[q], first, touched, mark, allowed, restricted, kept_rows[q], kept_scores[q], kept[q]
            )
            if kept[q] > max(k, room - BLOCK):
                kept[q], least[q] = _trim(kept_rows[q], kept_scores[q], scratch, kept[q], k)
    for q in range(n_queries):
        if kept[q] > k:
            kept[q], least[q] = _trim(kept_rows[q], kept_scores[q], scratch, kept[q], k)
    return kept_rows, kept_scores, kept


@njit(nogil=True, cache=True)
def _most_in_a_block(starts, ends, rows, n_rows):
    """The most entries and the most vectors that any block needs."""
    cursor, entries, vectors = starts.copy(), 0, 0
    for first in range(0, n_rows, BLOCK):
        n = min(BLOCK, n_rows - first)
        some_entries, some_vectors = 0, 0
        for j in range(len(starts)):
            stop = _next_block(rows, cursor[j], ends[j], first + n)
            if (stop - cursor[j]) * DENSE >= n:
                some_vectors += 1
            else:
                some_entries += stop - cursor[j]
            cursor[j] = stop
        entries, vectors = max(entries, some_entries), max(vectors, some_vectors)
    return entries, vectors


@njit(nogil=True, cache=True)
def _next_block(rows, start, end, last):
    """Where the entries of rows before `last` end: by doubling steps, then by halving them."""
    step = 1
    while start + step < end and rows[start + step] < last:
        step *= 2
    low, high = start + step // 2, min(start + step, end)
    while low < high:
        middle = (low + high) // 2
        if rows[middle] < last:
            low = middle + 1
        else:
            high = middle
    return low


@njit(nogil=True, cache=True)
def _write_vector(rows, frequencies, normalisations, first, vector):
    vector[:] = 0.0
    for p in range(len(rows)):
        vector[rows[p] - first] = frequencies[p] / (frequencies[p] + normalisations[rows[p]])


@njit(nogil=True, cache=True)
def _write_entries(rows, frequencies, normalisations, first, local, saturation):
    for p in range(len(rows)):
        local[p] = rows[p] - first
        saturation[p] = frequencies[p] / (frequencies[p] + normalisations[rows[p]])


@njit(nogil=True, cache=True)
def _add_vector(scores, weight, vector):
    for row in range(len(scores)):
        scores[row] += weight * vector[row]


@njit(nogil=True, cache=True)
def _add_entries(scores, weight, rows, values):
    for p in range(len(rows)):
        scores[rows[p]] += weight * values[p]


@njit(nogil=True, cache=True)
def _mark_vector(touched, vector):
    for row in range(len(touched)):
        touched[row] |= vector[row] > 0


@njit(nogil=True, cache=True)
def _mark_entries(touched, rows):
    for row in rows:
        touched[row] = True


@njit(nogil=True, cache=True)
def _keep(scores, least, first, touched, marked, allowed, restricted, kept_rows, kept_scores, kept):
    """Append the rows that beat the k-th best so far; how many there are now."""
    for row in range(len(scores)):
        if scores[row] > least and (not marked or touched[row]) and (not restricted or allowed[first + row]):
            kept_rows[kept], kept_scores[kept] = first + row, scores[row]
            kept += 1
    return kept


@njit(nogil=True, cache=True)
def _trim(rows, scores, scratch, n, k):
    """Keep the k best of n rows in ascending order, the first ones among equals; the k-th best score."""
    scratch[:n] = scores[:n]
    least = _select(scratch, n, n - k)
    better = 0
    for i in range(n):
        better += scores[i] > least
    equal, kept = k - better, 0
    for i in range(n):
        score = scores[i]
        if score > least or (score == least and equal > 0):
            equal -= score == least
            rows[kept], scores[kept] = rows[i], score
            kept += 1
    return kept, least


@njit(nogil=True, cache=True)
def _select(values, n, position):
    """The value that sorting would put at `position`; reorders `values`.

    Hoare's quickselect with Lomuto's partition written without a branch: comparisons of scores are not predictable.
    """
    low, high = 0, n
    while high - low > 1:
        a, b, c = values[low], values[(low + high) // 2], values[high - 1]
        pivot = max(min(a, b), min(max(a, b), c))
        less = low
        for i in range(low, high):
            value = values[i]
            values[i] = values[less]
            values[less] = value
            less += value < pivot
        if position < less:
            high = less
            continue
        equal = less
        for i in range(less, high):
            value = values[i]
            values[i] = values[equal]
            values[equal] = value
            equal += value == pivot
        if position < equal:
            return pivot
        low = equal
    return values[low]


def best(hits: Hits, k: int) -> Hits:
    """The k best of some hits, best first."""
    ids, scores = hits.sequence_ids, hits.scores
    if k < len(scores):
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        better, equal = np.flatnonzero(scores > least), np.flatnonzero(scores == least)
        first = equal[np.argsort(ids[equal])][: k - len(better)]
        kept = np.concatenate([better, first])
        ids, scores = ids[kept], scores[kept]
    order = np.argsort(-scores)
    _settle_ties(order, ids, scores)
    return Hits(ids[order], scores[order])


@njit(nogil=True, cache=True)
def _settle_ties(order, ids, scores):
    """Put equal scores in the order of their ids."""
    start = 0
    for stop in range(1, len(order) + 1):
        if stop == len(order) or scores[order[stop]] != scores[order[start]]:
            if stop - start > FEW:
                run = order[start:stop]
                order[start:stop] = run[np.argsort(ids[run])]
            elif stop - start > 1:
                _insertion_sort(order[start:stop], ids)
            start = stop


@njit(nogil=True, cache=True)
def _insertion_sort(run, ids):
    for i in range(1, len(run)):
        moved, j = run[i], i
        while j > 0 and ids[run[j - 1]] > ids[moved]:
            run[j] = run[j - 1]
            j -= 1
        run[j] = moved


def merge(shards: Iterable[Hits], k: int) -> Hits:
    """The exact global top k from every shard's top k."""
    shards = list(shards)
    return best(Hits(np.concatenate([h.sequence_ids for h in shards]), np.concatenate([h.scores for h in shards])), k)


def merge_all(shards: Sequence[Sequence[Hits]], k: int, threads: int) -> list[Hits]:
    """`merge` for every query of a batch, given each shard's hits query by query; threads share the queries."""
    queries = list(zip(*shards, strict=True))
    return _shared_out(lambda numbers: [merge(queries[q], k) for q in numbers], len(queries), threads)
