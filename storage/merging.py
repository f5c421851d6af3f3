"""Compaction: rows of many runs move into one file per relation, while readers go on reading.

    own files ──copied──▶ merged/<n>.parquet ──a moment──▶ merges/<number>.parquet ──grace──▶ own files removed

Whatever step a process is killed at, the next one starts from what `merges` says: before its file the runs are read
from where they were, from then on at their new home. All but `reopen_run` is called under the lock `compact`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.clock import store_time
from storage.errors import StoreError
from storage.homes import HOUSED, NOWHERE, OWN, Homes, Residence, merge_numbers, merged_file, read_homes
from storage.locks import locked
from storage.places import Place, entries, location, remove_file
from storage.schemas import merged_schema
from storage.scratch import local_copy
from storage.seals import seal_is_whole
from storage.store import Store, replacing
from storage.tables import ROW_GROUP, PartWriter, damaged, read_part, write_part

# Relations that a complete run may have no file of: it asked for no such rows, or is older than they are.
OPTIONAL = ("filter_audits", "checkpoint_influences", "hidden_similarities", "solver_residuals")


@dataclass(frozen=True)
class Batch:
    """Runs that are to share one file per relation."""

    home: int
    n_bytes: dict[str, int]  # by run, as they are sorted in the file


def plan_merges(store: Store, target_bytes: int, least: int) -> list[Batch]:
    """What to merge: small runs, with those of merged files that are not half full or hold rows of deleted runs.

    A run of `target_bytes` or more stays in its own files. A change must bring `least` runs or files together; sizes
    are those that the runs had in their own files.
    """
    homes = read_homes(store)
    own = {run: size for run, size in own_runs(store, homes).items() if size < target_bytes}
    full, sparse, stale = set(), set(), set()
    for home in {r.home for r in homes.of_runs.values() if r.home > OWN}:
        size = sum(r.n_bytes for r in homes.of_runs.values() if r.home == home)
        held = run_ids_at(store, home)
        kind = stale if any(homes.home(run) != home for run in held) else sparse if size < target_bytes / 2 else full
        kind.add(home)
    if len(own) + len(sparse) < least and not stale:
        return []
    moving = own | {run: r.n_bytes for run, r in homes.of_runs.items() if r.home in sparse | stale}
    first = 1 + max([0, *homes_on_disk(store), *(r.home for r in homes.of_runs.values())])
    batches: list[dict[str, int]] = [{}]
    for run in sorted(moving):
        if sum(batches[-1].values()) + moving[run] > target_bytes and batches[-1]:
            batches.append({})
        batches[-1][run] = moving[run]
    return [Batch(first + k, batch) for k, batch in enumerate(batches) if batch]


def own_runs(store: Store, homes: Homes) -> dict[str, int]:
    """Bytes of each complete run that is read from its own files; without runs that lack one, which cannot move."""
    listed = {relation: entries(store.relation(relation), ".parquet") for relation in HOUSED}
    needed = [found for relation, found in listed.items() if relation not in OPTIONAL]
    return {
        run: sum(found[run].n_bytes for found in listed.values() if run in found)
        for run in sorted(listed["runs"])
        if run != "schema" and homes.home(run) == OWN and all(run in found for found in needed)
    }


def homes_on_disk(store: Store) -> set[int]:
    """The numbers of all merged files, also of those that no change names."""
    names = (name for relation in HOUSED for name in entries(store.relation(relation) / "merged", ".parquet"))
    return {int(name) for name in names if name.isdigit()}


def write_merged(store: Store, batch: Batch) -> None:
    """Write the files of a new home; nobody reads them before `settle` names it."""
    homes = read_homes(store)
    for relation in HOUSED:
        schema = merged_schema(relation)
        final = merged_file(store, relation, batch.home)
        with replacing(store, final) as path, closing(PartWriter(path, schema)) as part, ExitStack() as stack:
            waiting = schema.empty_table()
            for table in _rows(store, relation, batch, homes, stack):
                waiting = pa.concat_tables([waiting, table])
                while len(waiting) >= ROW_GROUP:
                    part.append_table(waiting.slice(0, ROW_GROUP))
                    waiting = waiting.slice(ROW_GROUP)
            part.append_table(waiting)


def _rows(store: Store, relation: str, batch: Batch, homes: Homes, stack: ExitStack) -> Iterator[pa.Table]:
    """The rows of a batch's runs, run by run, each in its order, with their new home."""
    opened: dict[Place, pq.ParquetFile] = {}
    for run in batch.n_bytes:
        home = homes.home(run)
        source = store.file(relation, run) if home == OWN else merged_file(store, relation, home)
        if home == OWN and relation in OPTIONAL and not source.exists():
            continue
        if source not in opened:
            if seal_is_whole(source) is False:  # what is damaged must not be sealed again
                raise damaged(source)
            if home == OWN:  # one run and no other: closed at once
                with local_copy(source) as copy, pq.ParquetFile(copy) as file:
                    yield from (_moved(table, batch.home) for table in _rows_of(file, run))
                continue
            opened[source] = stack.enter_context(pq.ParquetFile(stack.enter_context(local_copy(source))))
        yield from (_moved(table, batch.home) for table in _rows_of(opened[source], run))


def _rows_of(file: pq.ParquetFile, run: str) -> Iterator[pa.Table]:
    column = file.schema_arrow.get_field_index("run_id")
    for group in range(file.num_row_groups):
        found = file.metadata.row_group(group).column(column).statistics
        if found is None or not found.has_min_max or found.min <= run <= found.max:
            table = file.read_row_group(group)
            yield table.filter(pc.equal(table["run_id"], run))


def _moved(table: pa.Table, home: int) -> pa.Table:
    plain = table.drop_columns("home") if "home" in table.column_names else table
    return plain.append_column("home", pa.repeat(pa.scalar(home, pa.int64()), len(plain))).replace_schema_metadata()


def settle(store: Store, moves: dict[str, tuple[int, int]]) -> None:
    """Give runs new homes, all of them and in all relations at once; by run its home and its bytes."""
    homes, now = read_homes(store), store_time(store)
    after = homes.of_runs | {run: Residence(home, now, size) for run, (home, size) in moves.items()}
    settled = [(run, r.home, r.settled_at, r.n_bytes) for run, r in sorted(after.items()) if r.home != OWN]
    rows = [(None, None, now, None), *settled]  # the first tells when, also where no run is left
    number = homes.number + 1
    names = ("run_id", "home", "settled_at", "n_bytes")
    columns = {"number": [number] * len(rows)} | dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    write_part(store, "merges", str(number), columns=columns)


def reopen_run(store: Store, run_id: str) -> None:
    """Let a run that was deleted be traced again: what is left of it goes, and its own files count. Takes the lock."""
    if read_homes(store).home(run_id) == NOWHERE:
        with locked(store, "compact"):
            _remove_own(store, [run_id])
            settle(store, {run_id: (OWN, 0)})


def remove_superseded(store: Store, grace: timedelta) -> int:
    """Remove the files that no reader needs any more; returns how many.

    A file that readers may have listed stays until `grace` has passed since its runs moved, or were deleted.
    """
    homes, now = read_homes(store), store_time(store)
    due = [run for run, r in homes.of_runs.items() if _passed(r.settled_at, now, grace)]
    removed = _remove_own(store, due)
    numbers = merge_numbers(store)
    kept, named = numbers[-1:], {r.home for r in homes.of_runs.values()}
    for number, following in reversed(list(pairwise(numbers))):
        if _passed(_changed_at(store, following), now, grace):
            break  # this change and all before it are forgotten
        kept.append(number)
        named.update(home for home in read_part(store, "merges", str(number))["home"].to_pylist() if home)
    removed += _remove(store.file("merges", str(number)) for number in numbers if number not in kept)
    unnamed = homes_on_disk(store) - named
    removed += _remove(merged_file(store, relation, home) for relation in HOUSED for home in unnamed)
    gone = [run for run in due if homes.home(run) == NOWHERE]
    if gone:  # nothing is left of them that a change would have to hide
        settle(store, dict.fromkeys(gone, (OWN, 0)))
    return removed


def _remove_own(store: Store, runs: list[str]) -> int:
    removed = 0
    for relation in HOUSED:
        listed = entries(store.relation(relation), ".parquet")
        removed += _remove(listed[run].place for run in runs if run in listed)
    return removed


def _remove(places: Iterable[Place]) -> int:
    return sum(remove_file(place) for place in places)


def _changed_at(store: Store, number: int) -> datetime:
    found = read_part(store, "merges", str(number))
    return next(row["settled_at"] for row in found.to_pylist() if row["run_id"] is None)


def _passed(since: datetime, now: datetime, grace: timedelta) -> bool:
    return now - since >= grace


def run_ids_at(store: Store, home: int) -> list[str]:
    """The runs that have a row in merged file n, also those that live elsewhere by now."""
    path = merged_file(store, "runs", home)
    source, filesystem = location(path)
    try:
        found = pq.read_table(source, columns=["run_id"], partitioning=None, filesystem=filesystem)
    except (pa.ArrowInvalid, OSError) as error:
        raise StoreError(
            f"table part {path}",
            expected="a readable Parquet file, because `merges` names it",
            found=str(error).splitlines()[0],
            remedy="Restore it from a backup, or delete the runs that headwater store verify names.",
        ) from error
    return found["run_id"].to_pylist()
