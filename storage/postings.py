"""Postings of one shard, read as the lists of the terms that are asked for; nothing else of the file is kept.

Row groups are sorted by term, so their footers tell which of them to open. A process keeps the lists that it has read:
the next batch of queries, or the next scorer, finds them there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import StoreError
from storage.settings import settings
from storage.store import Store

KEPT_SHARE = 4  # of a process's memory limit, one part in this many may hold lists
Lists = dict[int, tuple[np.ndarray, np.ndarray]]  # of each term: rows of the shard, ascending, and term frequencies

_kept: dict[tuple[Path, int, int], Lists] = {}  # by file, its size and its time


def read_lists(store: Store, relation: str, part: str, terms: np.ndarray, first_sequence_id: int) -> Lists:
    """The postings of `terms` in one shard; a term that the shard does not have has an empty list.

    Rows are counted from the shard's first sequence, as int32.
    """
    path = store.file(relation, part)
    try:
        stat = path.stat()
        key = (path, stat.st_size, stat.st_mtime_ns)
        lists = _kept.get(key, {})
        missing = np.array([t for t in terms.tolist() if t not in lists], np.int64)
        if len(missing):
            lists = lists | _read(path, np.sort(missing), first_sequence_id)
            _keep(key, lists)
    except (pa.ArrowInvalid, OSError) as error:
        raise _broken(path, error) from error
    return {term: lists[term] for term in terms.tolist()}


def broken_files(store: Store, relations: Iterable[str], part: str) -> list[StoreError]:
    """What is wrong with the files of one shard, seen by their footers."""
    found = []
    for relation in relations:
        path = store.file(relation, part)
        try:
            pq.read_metadata(path)
        except (pa.ArrowInvalid, OSError) as error:
            found.append(_broken(path, error))
    return found


def _broken(path: Path, error: Exception) -> StoreError:
    return StoreError(
        f"index shard {path}",
        expected="a readable Parquet file",
        found=str(error).splitlines()[0],
        remedy="Delete the shard's files and run headwater index: it is built anew. Or search the others with "
        "--skip-broken.",
    )


def forget_lists() -> None:
    """Drop every list that this process keeps."""
    _kept.clear()


def _keep(key: tuple[Path, int, int], lists: Lists) -> None:
    room = settings().memory_limit_gib * 2**30 / KEPT_SHARE
    sizes = {k: _size(v) for k, v in {**_kept, key: lists}.items()}
    _kept.pop(key, None)
    while _kept and sum(sizes[k] for k in _kept) + sizes[key] > room:
        _kept.pop(next(iter(_kept)))  # the shard that was read the longest ago
    if sizes[key] <= room:
        _kept[key] = lists


def _size(lists: Lists) -> int:
    return sum(rows.nbytes + frequencies.nbytes for rows, frequencies in lists.values())


def _read(path: Path, terms: np.ndarray, first_sequence_id: int) -> Lists:
    found: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {term: [] for term in terms.tolist()}
    with pq.ParquetFile(path) as file:
        for group, asked in _groups(file, terms):
            table = file.read_row_group(group)
            column = table["term_id"].to_numpy()
            starts, ends = (np.searchsorted(column, asked, side) for side in ("left", "right"))
            rows = (table["sequence_id"].to_numpy() - first_sequence_id).astype(np.int32)
            frequencies = table["term_frequency"].to_numpy()
            for term, start, end in zip(asked.tolist(), starts.tolist(), ends.tolist(), strict=True):
                if start < end:
                    found[term].append((rows[start:end].copy(), frequencies[start:end].copy()))
    return {term: _joined(pieces) for term, pieces in found.items()}


def _groups(file: pq.ParquetFile, terms: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The row groups that may hold some of the terms, and which."""
    column = file.schema_arrow.get_field_index("term_id")
    for group in range(file.num_row_groups):
        statistics = file.metadata.row_group(group).column(column).statistics
        low, high = np.searchsorted(terms, statistics.min), np.searchsorted(terms, statistics.max, "right")
        if low < high:
            yield group, terms[low:high]


def _joined(pieces: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    rows, frequencies = zip(*pieces, strict=True) if pieces else ((), ())
    empty = [np.empty(0, np.int32)]
    return np.concatenate([*rows] or empty), np.concatenate([*frequencies] or empty)
