"""Compaction of rows that belong to no run: the inbox, and self-influences by factors, whose views take doubles once.

<folder>/<name>.parquet ──copied──▶ <folder>/merged-<n>.parquet ──grace──▶ the others removed

Both copies of a row are read for a while; the views of sql/relations show it once. DuckDB compares and merges them
within its memory limit, however many there are. Everything here is called under the lock `compact`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta

from storage.database import files_view, keys_view, open_connection, rows, stream
from storage.places import Entry, entries, remove_file
from storage.schemas import SCHEMAS
from storage.seals import seal_is_whole
from storage.store import Store, replacing, safe_name
from storage.tables import PartWriter, damaged

MERGED = "merged-"
# By relation, what tells that two of its rows are the same.
KEYS = {
    "queries": "query_id",
    "query_submissions": "query_id",
    "query_failures": "row(query_id, failed_at)",
    "query_retries": "row(query_id, retried_at)",
    "deleted_answers": "row(query_id, run_id, deleted_at)",
}


@dataclass(frozen=True)
class Folder:
    """Small files of one relation that may become one, by sql/gathering/<relation>.sql; `key` is an SQL expression."""

    relation: str
    names: tuple[str, ...]
    key: str


def folders(store: Store) -> Iterator[Folder]:
    """What can be gathered: the relations of the inbox, and the self-influences under each factors."""
    for relation, key in KEYS.items():
        yield Folder(relation, (), key)
    place = store.relation("self_influences")
    for factors in sorted({path.parent.name for path in place.glob("*/*.parquet")}):
        yield Folder("self_influences", (safe_name(factors),), "sequence_id")


def gather(store: Store, folder: Folder, target_bytes: int, least: int) -> int:
    """Merge files of a folder, if `least` of them hold rows that no merged one has; returns how many became one."""
    listed = _listed(store, folder)
    merged = sorted(name for name in listed if name.startswith(MERGED))
    new = sorted(_uncovered(store, folder, listed, listed.keys() - set(merged), merged))
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
    number = 1 + int(merged[-1].removeprefix(MERGED)) if merged else 1
    final = store.file(folder.relation, *folder.names, f"{MERGED}{number:08d}")
    with (
        open_connection(store) as connection,
        replacing(store, final) as path,
        closing(PartWriter(path, SCHEMAS[folder.relation])) as part,
    ):
        files_view(connection, "chosen", [listed[name].place for name in chosen])
        for batch in stream(connection, f"gathering/{folder.relation}"):
            part.append_table(batch)
    return len(chosen)


def remove_gathered(store: Store, folder: Folder, grace: timedelta) -> int:
    """Remove files whose every row a merged one has had for `grace`; returns how many."""
    listed = _listed(store, folder)
    merged = sorted((name for name in listed if name.startswith(MERGED)), reverse=True)
    held: list[str] = []
    gone: set[str] = set()
    for name in merged:
        if held and not _uncovered(store, folder, listed, [name], held):
            gone.add(name)
        elif time.time() - listed[name].modified >= grace.total_seconds():
            held.append(name)
    others = listed.keys() - set(merged)
    if held:
        gone |= others - _uncovered(store, folder, listed, others, held)
    return sum(remove_file(listed[name].place) for name in gone)


def _listed(store: Store, folder: Folder) -> dict[str, Entry]:
    listed = entries(store.relation(folder.relation).joinpath(*folder.names), ".parquet")
    return {name: entry for name, entry in listed.items() if name != "schema"}


def _uncovered(
    store: Store, folder: Folder, listed: dict[str, Entry], some: Iterable[str], held: Iterable[str]
) -> set[str]:
    """Those of some files that hold a row which none of the held ones has."""
    asked = [listed[name].place for name in some]
    if not asked:
        return set()
    nothing = store.file(folder.relation, "schema")  # a view needs a file
    with open_connection(store) as connection:
        keys_view(connection, "asked", asked, folder.key)
        keys_view(connection, "held", [nothing, *(listed[name].place for name in held)], folder.key)
        found = rows(connection, "gathering/uncovered")
    return {row["file"].rsplit("/", 1)[-1].removesuffix(".parquet") for row in found}
