"""Homes: in which files the rows of a run lie: its own, those of merged file n, or none, because it was deleted.

tables/<relation>/<run_id>.parquet   a run's own file, home 0
tables/<relation>/merged/<n>.parquet rows of many runs, sorted by run, each with home n
tables/merges/<number>.parquet       one file per change: the homes of all runs that are not at home 0; the last counts

Every view reads a run's rows at its home alone. So one new file in `merges` moves many runs in all relations at once,
and a reader sees each run once, whole, before, during and after.
The views name `merges` first, and DuckDB lists files in the order in which a statement names them: who sees a change
has yet to list the files that it points to. Own and merged files whose runs have moved stay for a while, for readers
who listed `merges` before.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import StoreError
from storage.places import Place, location
from storage.schemas import RUN_RELATIONS
from storage.store import Store

OWN, NOWHERE = 0, -1
HOUSED = (*RUN_RELATIONS, "runs")


@dataclass(frozen=True)
class Residence:
    """A run's home as `merges` has it."""

    home: int
    settled_at: datetime  # UTC, without a zone
    n_bytes: int  # of the run's own files, before they were merged


@dataclass(frozen=True)
class Homes:
    """The last change: its number, 0 before the first, and every run that is not at home 0."""

    number: int
    of_runs: dict[str, Residence]

    def home(self, run_id: str) -> int:
        """Where a run's rows lie."""
        return self.of_runs[run_id].home if run_id in self.of_runs else OWN


def merge_numbers(store: Store) -> list[int]:
    """The numbers of the changes that are on disk, ascending."""
    return sorted(int(path.stem) for path in store.relation("merges").glob("*.parquet") if path.stem.isdigit())


def read_homes(store: Store) -> Homes:
    """The homes of all runs as the last change left them."""
    for _ in range(3):
        numbers = merge_numbers(store)
        if not numbers:
            return Homes(0, {})
        source, filesystem = location(store.file("merges", str(numbers[-1])))
        try:
            rows = pq.read_table(source, partitioning=None, filesystem=filesystem).to_pylist()
        except FileNotFoundError:
            continue  # a later change has come, and an old one gone, since they were listed
        except (pa.ArrowInvalid, OSError) as error:
            raise StoreError(
                f"table part {store.file('merges', str(numbers[-1]))}",
                expected="a readable Parquet file",
                found=str(error).splitlines()[0],
                remedy="Restore it from a backup: it says which merged files hold which runs.",
            ) from error
        of_runs = {r["run_id"]: Residence(r["home"], r["settled_at"], r["n_bytes"]) for r in rows if r["run_id"]}
        return Homes(numbers[-1], of_runs)
    raise StoreError(
        f"relation merges of store {store.root}",
        expected="a last change that stays while it is read",
        found="another one each time",
        remedy="Run the same command again.",
    )


def home_of(store: Store, run_id: str) -> int:
    """Where the rows of one run lie."""
    return read_homes(store).home(run_id)


def merged_file(store: Store, relation: str, home: int) -> Place:
    """The file of a relation that holds the runs at home n."""
    return store.relation(relation) / "merged" / f"{home}.parquet"


HOMES_VIEW = """create or replace view stored.homes as
select run_id, home from stored.merges qualify number = max(number) over ()"""


def stored_view(relation: str, read: str, read_merged: str) -> str:
    """The view `stored.<relation>` of a housed relation: every row with its home.

    `read` and `read_merged` are the table functions over a relation's own and merged files.
    """
    return (
        f"create or replace view stored.{relation} as select *, 0::bigint as home from {read} "
        f"union all by name select * from {read_merged}"
    )


def relation_views(relation: str) -> list[str]:
    """The view `<relation>` of a housed relation, rows to be read, and for `runs` what the others are made with."""
    # Stars, because DuckDB takes a column that a view names for the parameter of that name of a macro around it.
    if relation == "runs":
        return [
            "create or replace view stored.complete_runs as "
            "select r.* from stored.homes h right join stored.runs r on h.run_id = r.run_id "
            f"where r.home = coalesce(h.home, {OWN})",
            "create or replace view runs as select * exclude (home) from stored.complete_runs",
        ]
    return [
        f"create or replace view {relation} as select r.* exclude (home) from stored.complete_runs c "
        f"join stored.{relation} r on r.run_id = c.run_id and r.home = c.home"
    ]
