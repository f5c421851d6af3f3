"""DuckDB over a store: relations by name, statements by path.

SQL stands in sql/**.sql and names relations, never files.
`stored.<relation>` is every row on disk; the view `<relation>` is what a reader may see
(rows of a run appear when the run is complete).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from storage.digests import digest_of
from storage.errors import StoreError
from storage.homes import HOMES_VIEW, HOUSED, OWN, home_of, merged_file, relation_views, stored_view
from storage.places import Place, publish
from storage.schemas import RUN_RELATIONS, SCHEMAS
from storage.scratch import SESSIONS, SPILL, scratch, temporary_directory
from storage.settings import settings
from storage.store import Store, empty_relations, explain_write
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
    connection.execute(f"set temp_directory = {quoted(str(spill))}")
    if not isinstance(root, Path):
        connection.register_filesystem(root.fs)  # DuckDB's own needs an extension to be downloaded


def catalog_statements(root: str) -> list[str]:
    """Every statement that makes the views and macros of a store, in order; `root` is SQL that says where it is."""
    plain = [relation for relation in SCHEMAS if relation not in HOUSED]
    views = [f"create or replace view {r} as select * from stored.{r}" for r in plain if r not in {"terms", "words"}]
    housed = chain.from_iterable(map(relation_views, ("runs", *RUN_RELATIONS)))
    # A macro is bound when it is made: what others are written with, or read, comes before them.
    folders = ("functions", "relations", "macros")
    texts = map(statement, chain.from_iterable(map(statement_names, folders)))
    return ["create schema if not exists stored", *stored_views(root), HOMES_VIEW, *housed, *views, *texts]


def stored_views(root: str) -> list[str]:
    """The statements that make `stored.*`: they alone say where the store is."""
    return [
        stored_view(relation, _read(root, relation), _read(root, relation, "merged"))
        if relation in HOUSED
        else f"create or replace view stored.{relation} as select * from {_read(root, relation, '**')}"
        for relation in SCHEMAS
    ]


def _read(root: str, *names: str) -> str:
    pattern = "/".join(("", "tables", *names, "*.parquet"))
    return f"read_parquet({root} || {quoted(pattern)}, hive_partitioning=false)"


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


@contextmanager
def session(store: Store) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that knows the store's relations and macros; one per thread or job."""
    with open_connection(store) as connection:
        connection.execute(f"attach {quoted(str(installed_relations()))} as relations (read_only)")
        connection.execute("use relations")
        connection.execute("set variable store = $root", {"root": str(store.root)})
        yield connection


def installed_relations() -> Path:
    """A file with the views and macros of whichever store the variable `store` of a connection names.

    What is created DuckDB binds, and for that it opens files of every relation that is named, again and again: a sixth
    of a second on a disk, some hundred requests to an object store. Once per machine will do, over a store of no rows.
    """
    statements = catalog_statements("getvariable('store')")
    columns = {str(path): schema.to_string() for path, schema in empty_relations(Store(Path())).items()}
    final = scratch(SESSIONS) / f"views-{digest_of([duckdb.__version__, columns, statements])[:16]}.duckdb"
    if not final.exists():
        with explain_write(final), temporary_directory(SESSIONS) as folder:
            empty = Store(folder)
            for path, schema in empty_relations(empty).items():
                path.parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(schema.empty_table(), path)
            install(empty, folder / final.name, statements)
            publish(folder / final.name, final)
    return final


def write_relations(store: Store, path: Path) -> None:
    """Make a DuckDB file that knows the store's relations and macros and holds no data."""
    shutil.copyfile(installed_relations(), path)
    install(store, path, stored_views(quoted(str(store.root))))


def install(store: Store, path: Path, statements: list[str]) -> None:
    """Run the statements that make views and macros in a DuckDB file."""
    try:
        with open_connection(store, path) as connection:
            connection.execute("set variable store = $root", {"root": str(store.root)})
            for text in statements:
                reading(partial(connection.execute, text))
    finally:  # where the disk is full, DuckDB leaves its log beside the file
        path.with_name(f"{path.name}.wal").unlink(missing_ok=True)


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


def quoted(text: str) -> str:
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
        source = f"read_parquet([{quoted(str(merged_file(store, relation, home)))}])"
        mine = f"select {', '.join(SCHEMAS[relation].names)} from {source} where run_id = {quoted(names[0])}"
        connection.execute(f"create or replace temp view {view} as {mine}")
    else:
        files_view(connection, view, [store.file(relation, *names)])


def parts_view(connection: duckdb.DuckDBPyConnection, store: Store, view: str, relation: str, parts: list[str]) -> None:
    """Let SQL name the rows of several parts of a relation `view`."""
    files_view(connection, view, [store.file(relation, part) for part in parts])


def keys_view(connection: duckdb.DuckDBPyConnection, view: str, paths: list[Place], key: str) -> None:
    """Let SQL name the rows of some files `view`, by file and by `key`, an expression of ours over their columns."""
    files = ", ".join(quoted(str(path)) for path in paths)
    source = f"read_parquet([{files}], filename = true)"
    connection.execute(f"create or replace temp view {view} as select filename as file, {key} as key from {source}")


def files_view(connection: duckdb.DuckDBPyConnection, view: str, paths: list[Place]) -> None:
    """Let SQL name the rows of some files of one relation `view`."""
    files = ", ".join(quoted(str(path)) for path in paths)
    connection.execute(f"create or replace temp view {view} as select * from read_parquet([{files}])")
