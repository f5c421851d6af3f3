"""Postings of one shard, read as the lists of the terms that are asked for; nothing else of the file is kept.

Row groups are sorted by term, so their footers tell which of them to open. A process keeps the lists that it has read:
the next batch of queries, or the next scorer, finds them there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import StoreError
from storage.places import Place, location, version_of
from storage.settings import settings
from storage.store import Store

KEPT_SHARE = 4  # of a process's memory limit, one part in this many may hold lists


@dataclass(frozen=True)
class Lists:
    """Postings by term: entries starts[j] … starts[j + 1] are those of terms[j], in the order of the rows."""

    terms: np.ndarray  # int64, ascending; a term that the shard does not have has no entry
    starts: np.ndarray  # int64
    rows: np.ndarray  # int32, counted from the shard's first sequence
    frequencies: np.ndarray  # int32

    @property
    def nbytes(self) -> int:
        """Of all arrays."""
        return self.terms.nbytes + self.starts.nbytes + self.rows.nbytes + self.frequencies.nbytes


_kept: dict[tuple[str, str, str], Lists] = {}  # by version of the file


def read_lists(store: Store, relation: str, part: str, terms: np.ndarray, first_sequence_id: int) -> Lists:
    """The postings in one shard of `terms`, and of those that were asked for before."""
    path = store.file(relation, part)
    try:
        key = version_of(path)
        kept = _kept.get(key)
        if kept is not None and np.isin(terms, kept.terms).all():
            return kept
        known = kept.terms if kept is not None and kept.nbytes < _room() / 2 else np.empty(0, np.int64)
        lists = _read(path, np.union1d(known, terms), first_sequence_id)
        _keep(key, lists)
        return lists
    except (pa.ArrowInvalid, OSError) as error:
        raise _broken(path, error) from error


def _room() -> float:
    return settings().memory_limit_gib * 2**30 / KEPT_SHARE


def _keep(key: tuple[str, str, str], lists: Lists) -> None:
    _kept.pop(key, None)
    while _kept and sum(kept.nbytes for kept in _kept.values()) + lists.nbytes > _room():
        _kept.pop(next(iter(_kept)))  # the shard that was read the longest ago
    if lists.nbytes <= _room():
        _kept[key] = lists


def _read(path: Place, terms: np.ndarray, first_sequence_id: int) -> Lists:
    pieces: list[tuple[int, np.ndarray, np.ndarray]] = []
    source, filesystem = location(path)
    with pq.ParquetFile(source, filesystem=filesystem) as file:
        for group, low, high in _groups(file, terms):
            table = file.read_row_group(group)
            column, frequencies = table["term_id"].to_numpy(), table["term_frequency"].to_numpy()
            rows = (table["sequence_id"].to_numpy() - first_sequence_id).astype(np.int32)
            starts, ends = (np.searchsorted(column, terms[low:high], side) for side in ("left", "right"))
            for j in np.flatnonzero(starts < ends).tolist():
                piece = slice(starts[j], ends[j])
                pieces.append((low + j, rows[piece].copy(), frequencies[piece].copy()))
    pieces.sort(key=lambda piece: piece[0])  # stable: within a term, sequences stay in the order of the file
    lengths = np.zeros(len(terms), np.int64)
    for j, rows, _ in pieces:
        lengths[j] += len(rows)
    nothing = np.empty(0, np.int32)
    rows = np.concatenate([nothing, *(piece[1] for piece in pieces)])
    frequencies = np.concatenate([nothing, *(piece[2] for piece in pieces)])
    return Lists(terms, np.concatenate([[0], lengths.cumsum()]), rows, frequencies)


def _groups(file: pq.ParquetFile, terms: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """The row groups that may hold some of the terms, and which: terms[low:high]."""
    column = file.schema_arrow.get_field_index("term_id")
    for group in range(file.num_row_groups):
        statistics = file.metadata.row_group(group).column(column).statistics
        if statistics is None:  # a shard without a posting
            continue
        low, high = np.searchsorted(terms, statistics.min), np.searchsorted(terms, statistics.max, "right")
        if low < high:
            yield group, int(low), int(high)


def broken_files(store: Store, relations: Iterable[str], part: str) -> list[StoreError]:
    """What is wrong with the files of one shard, seen by their footers."""
    found = []
    for relation in relations:
        path = store.file(relation, part)
        try:
            source, filesystem = location(path)
            pq.read_metadata(source, filesystem=filesystem)
        except (pa.ArrowInvalid, OSError) as error:
            found.append(_broken(path, error))
    return found


def _broken(path: Place, error: Exception) -> StoreError:
    return StoreError(
        f"index shard {path}",
        expected="a readable Parquet file",
        found=str(error).splitlines()[0],
        remedy="Delete the shard's files and run headwater index: it is built anew. Or search the others with "
        "--skip-broken.",
    )
