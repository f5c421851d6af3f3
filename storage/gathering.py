"""Compaction of rows that belong to no run: queries, and self-influences by factors, whose views take doubles once.

<folder>/<name>.parquet ──copied──▶ <folder>/merged-<n>.parquet ──grace──▶ the others removed

Both copies of a row are read for a while; the views `queries` and `self_influences` deduplicate by key. Everything here
is called under the lock `compact`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta

import pyarrow as pa
import pyarrow.compute as pc

from storage.places import Entry, entries, remove_file
from storage.schemas import SCHEMAS
from storage.seals import seal_is_whole
from storage.store import Store, replacing, safe_name
from storage.tables import PartWriter, damaged, read_part

MERGED = "merged-"


@dataclass(frozen=True)
class Folder:
    """Small files of one relation that may become one; `key` tells which of their rows are the same."""

    relation: str
    names: tuple[str, ...]
    key: str
    unique: Callable[[pa.Table], pa.Table]


def folders(store: Store) -> Iterator[Folder]:
    """What can be gathered: the queries, and the self-influences under each factors."""
    yield Folder("queries", (), "query_id", _first_queries)
    place = store.relation("self_influences")
    for factors in sorted({path.parent.name for path in place.glob("*/*.parquet")}):
        yield Folder("self_influences", (safe_name(factors),), "sequence_id", _largest_self_influences)


def gather(store: Store, folder: Folder, target_bytes: int, least: int) -> int:
    """Merge files of a folder, if `least` of them hold rows that no merged one has; returns how many became one."""
    listed = _listed(store, folder)
    merged = sorted(name for name in listed if name.startswith(MERGED))
    known = {key for name in merged for key in _keys(store, folder, name)}
    new = [n for n in listed if n not in merged and not known.issuperset(_keys(store, folder, n))]
    if len(new) < least:
        return 0
    open_one = [name for name in merged[-1:] if listed[name].n_bytes < target_bytes / 2]
    chosen, room = [], target_bytes
    for name in [*open_one, *new]:
        room -= listed[name].n_bytes
        if room >= 0:
            chosen.append(name)
    if len(chosen) < 2:
        return 0
    for name in chosen:
        if seal_is_whole(listed[name].place) is False:
            raise damaged(listed[name].place)
    found = pa.concat_tables([read_part(store, folder.relation, *folder.names, name) for name in chosen])
    number = 1 + int(merged[-1].removeprefix(MERGED)) if merged else 1
    final = store.file(folder.relation, *folder.names, f"{MERGED}{number:08d}")
    with replacing(store, final) as path, closing(PartWriter(path, SCHEMAS[folder.relation])) as part:
        part.append_table(folder.unique(found))
    return len(chosen)


def remove_gathered(store: Store, folder: Folder, grace: timedelta) -> int:
    """Remove files whose every row a merged one has had for `grace`; returns how many."""
    listed = _listed(store, folder)
    removed, held = 0, set()
    for name in sorted((name for name in listed if name.startswith(MERGED)), reverse=True):
        keys = set(_keys(store, folder, name))
        if keys <= held:
            remove_file(listed[name].place)
            removed += 1
        elif time.time() - listed[name].modified >= grace.total_seconds():
            held |= keys
    for name, entry in listed.items():
        if not name.startswith(MERGED) and held and held.issuperset(_keys(store, folder, name)):
            remove_file(entry.place)
            removed += 1
    return removed


def _listed(store: Store, folder: Folder) -> dict[str, Entry]:
    listed = entries(store.relation(folder.relation).joinpath(*folder.names), ".parquet")
    return {name: entry for name, entry in listed.items() if name != "schema"}


def _keys(store: Store, folder: Folder, name: str) -> list:
    return read_part(store, folder.relation, *folder.names, name, columns=[folder.key])[folder.key].to_pylist()


def _first_queries(table: pa.Table) -> pa.Table:
    """Each query once, as it came first: sql/relations/queries.sql."""
    order = [("submitted_at", "ascending"), ("prompt", "ascending"), ("completion", "ascending")]
    ordered = table.sort_by(order)
    columns = [name for name in ordered.column_names if name != "query_id"]
    first = ordered.group_by("query_id", use_threads=False).aggregate([(name, "first") for name in columns])
    return first.rename_columns([name.removesuffix("_first") for name in first.column_names])


def _largest_self_influences(table: pa.Table) -> pa.Table:
    """Each sequence once, with its largest values: sql/relations/self_influences.sql."""
    values = [("self_influence", "max"), ("gradient_norm", "max")]
    grouped = table.group_by(["factors_id", "sequence_id"], use_threads=False).aggregate(values)
    found = grouped.rename_columns([name.removesuffix("_max") for name in grouped.column_names])
    return found.take(pc.sort_indices(found["sequence_id"]))
