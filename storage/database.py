"""DuckDB over a store: relations by name, statements by path.

SQL stands in sql/**.sql and names relations, never files.
`stored.<relation>` is every row on disk; the view `<relation>` is what a reader may see
(rows of a run appear when the run is complete).
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from storage.digests import digest_of
from storage.errors import StoreError
from storage.homes import HOMES_VIEW, HOUSED, OWN, home_of, merged_file, relation_views
from storage.places import Place, publish
from storage.schemas import RUN_RELATIONS, SCHEMAS
from storage.scratch import SESSIONS, SPILL, scratch
from storage.settings import settings
from storage.store import Store, explain_write
from storage.tables import ROW_GROUP

T = TypeVar("T")
ATTEMPTS = 5
VANISHED = ("No such file", "FileNotFoundError", "NoSuchKey")  # of a disk, of fsspec, of S3


@cache
def statement(name: str) -> str:
    """The SQL text at sql/<name>.sql."""
    return resources.files("sql").joinpath(*f"{name}.sql".split("/")).read_text(encoding="utf-8")


def statement_names(folder: str) -> list[str]:
    """Names of the statements in sql/<folder>/, in alphabetical order."""
    found = resources.files("sql").joinpath(*folder.split("/")).iterdir()
    return sorted(f"{folder}/{entry.name[:-4]}" for entry in found if entry.name.endswith(".sql"))


def configure(connection: duckdb.DuckDBPyConnection, store: Store) -> None:
    """Give a connection its memory limit and a place to spill to."""
    connection.execute("set enable_progress_bar = false")
    connection.execute(f"set memory_limit = '{settings().memory_limit_gib:.2f}GiB'")
    root = store.root
    spill = root / "work" / "spill" if isinstance(root, Path) else scratch(SPILL)
    connection.execute(f"set temp_directory = {_quoted(str(spill))}")
    if not isinstance(root, Path):
        connection.register_filesystem(root.fs)  # DuckDB's own needs an extension to be downloaded


def install_relations(connection: duckdb.DuckDBPyConnection, store: Store) -> None:
    """Create `stored.*`, the views and the macros in an open connection."""
    connection.execute("create schema if not exists stored")
    for text in catalog_statements(store):
        reading(partial(connection.execute, text))


def catalog_statements(store: Store) -> list[str]:
    """Every statement that makes the views and macros of a store, in order."""
    plain = [relation for relation in SCHEMAS if relation not in HOUSED]
    views = [f"create or replace view stored.{r} as select * from {_read(store.relation(r) / '**')}" for r in plain]
    views.append(HOMES_VIEW)
    for relation in ("runs", *RUN_RELATIONS):
        folder = store.relation(relation)
        views += relation_views(relation, _read(folder), _read(folder / "merged"))
    views += [f"create or replace view {r} as select * from stored.{r}" for r in plain if r not in {"terms", "words"}]
    # A macro is bound when it is made: what others are written with, or read, comes before them.
    folders = ("functions", "relations", "macros")
    return [*views, *map(statement, chain.from_iterable(map(statement_names, folders)))]


def _read(folder: Place) -> str:
    # A glob relative to the reader's working directory would break; the catalog is rebuilt when a store moves.
    return f"read_parquet({_quoted(str(folder / '*.parquet'))}, hive_partitioning=false)"


@contextmanager
def open_connection(store: Store, path: Path | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection within the memory limit to a DuckDB file, or in memory; one per thread or job."""
    compatible = {"storage_compatibility_version": "v1.0.0"} if path else {}  # any client from 1.0 on can open it
    connection = duckdb.connect(path or ":memory:", config=compatible)
    try:
        configure(connection, store)
        with explain_write(store.root):  # what does not fit into memory is written there
            yield connection
    finally:
        connection.close()


def write_relations(store: Store, path: Path) -> None:
    """Make a DuckDB file that knows the store's relations and macros and holds no data."""
    try:
        with open_connection(store, path) as connection:
            install_relations(connection, store)
    finally:  # where the disk is full, DuckDB leaves its log beside the file
        path.with_name(f"{path.name}.wal").unlink(missing_ok=True)


@contextmanager
def session(store: Store) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that knows the store's relations and macros; one per thread or job."""
    if isinstance(store.root, Path):
        with open_connection(store) as connection:
            install_relations(connection, store)
            yield connection
        return
    private = scratch(SESSIONS) / f"{uuid.uuid4().hex}.duckdb"
    try:
        shutil.copyfile(installed_relations(store), private)
        with open_connection(store, private) as connection:
            yield connection
    finally:
        private.unlink(missing_ok=True)


def installed_relations(store: Store) -> Path:
    """A file with the relations and macros of a store in an object store.

    To make a view DuckDB opens a file that it names, some hundred requests for all of them: once per machine will do.
    """
    final = scratch(SESSIONS) / f"views-{digest_of(catalog_statements(store))[:16]}.duckdb"
    if not final.exists():
        path = final.with_name(f"{uuid.uuid4().hex}.duckdb")
        try:
            write_relations(store, path)
            publish(path, final)
        finally:
            path.unlink(missing_ok=True)
    return final


def query(connection: duckdb.DuckDBPyConnection, name: str, /, **parameters: Any) -> pa.Table:
    """Run sql/<name>.sql with $parameters and return its rows."""
    return reading(lambda: connection.sql(statement(name), params=parameters or None).to_arrow_table())


def reading(read: Callable[[], T]) -> T:
    """What `read` returns; it is called again where a file went between being listed and being opened.

    DuckDB lists a relation's files when it plans a statement and opens them as it goes; compaction removes files that
    no new statement needs, but every statement lists.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return read()
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            if any(sign in str(error) for sign in VANISHED):
                continue
            damage = _damaged(error)
            if damage is None:
                raise
            raise damage from error
    return read()


def _damaged(error: Exception) -> StoreError | None:
    """What to say of a Parquet file that DuckDB cannot read; it throws its base class where a footer is broken."""
    text = str(error)
    broken = isinstance(error, (duckdb.IOException, duckdb.InvalidInputException)) and ".parquet" in text
    if not broken and "TProtocolException" not in text:
        return None
    return StoreError(
        "a table of the store",
        expected="Parquet files that DuckDB can read",
        found=text.splitlines()[0],
        remedy="headwater store verify --store PATH names the damaged file and the next step.",
    )


def rows(connection: duckdb.DuckDBPyConnection, name: str, /, **parameters: Any) -> list[dict]:
    """The rows of sql/<name>.sql as dictionaries."""
    return query(connection, name, **parameters).to_pylist()


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def stream(
    connection: duckdb.DuckDBPyConnection, name: str, /, batch_rows: int = ROW_GROUP, **parameters: Any
) -> Iterator[pa.Table]:
    """The rows of sql/<name>.sql in batches of at most one row group, without holding them all."""

    def begin() -> tuple[Iterator[pa.RecordBatch], pa.RecordBatch | None]:
        batches = iter(connection.sql(statement(name), params=parameters or None).to_arrow_reader(batch_rows))
        return batches, next(batches, None)

    batches, first = reading(begin)
    for batch in chain([] if first is None else [first], batches):
        yield pa.Table.from_batches([batch])


def part_view(connection: duckdb.DuckDBPyConnection, store: Store, view: str, relation: str, *names: str) -> None:
    """Let SQL name the rows of one part of a relation `view`."""
    home = home_of(store, names[0]) if relation in HOUSED else OWN
    if home > OWN:
        source = f"read_parquet([{_quoted(str(merged_file(store, relation, home)))}])"
        mine = f"select {', '.join(SCHEMAS[relation].names)} from {source} where run_id = {_quoted(names[0])}"
        connection.execute(f"create or replace view {view} as {mine}")
    else:
        files_view(connection, view, [store.file(relation, *names)])


def parts_view(connection: duckdb.DuckDBPyConnection, store: Store, view: str, relation: str, parts: list[str]) -> None:
    """Let SQL name the rows of several parts of a relation `view`."""
    files_view(connection, view, [store.file(relation, part) for part in parts])


def keys_view(connection: duckdb.DuckDBPyConnection, view: str, paths: list[Place], key: str) -> None:
    """Let SQL name the rows of some files `view`, by file and by `key`, an expression of ours over their columns."""
    files = ", ".join(_quoted(str(path)) for path in paths)
    source = f"read_parquet([{files}], filename = true)"
    connection.execute(f"create or replace view {view} as select filename as file, {key} as key from {source}")


def files_view(connection: duckdb.DuckDBPyConnection, view: str, paths: list[Place]) -> None:
    """Let SQL name the rows of some files of one relation `view`."""
    files = ", ".join(_quoted(str(path)) for path in paths)
    connection.execute(f"create or replace view {view} as select * from read_parquet([{files}])")
