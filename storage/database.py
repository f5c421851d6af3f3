"""DuckDB over a store: relations by name, statements by path.

SQL stands in sql/**.sql and names relations, never files.
`stored.<relation>` is every row on disk; the view `<relation>` is what a reader may see
(rows of a run appear when the run is complete).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from storage.places import Place, scratch
from storage.schemas import RUN_RELATIONS, SCHEMAS
from storage.settings import settings
from storage.store import Store
from storage.tables import ROW_GROUP


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
    spill = root / "work" / "spill" if isinstance(root, Path) else scratch("spill")
    connection.execute(f"set temp_directory = {_quoted(str(spill))}")
    if not isinstance(root, Path):
        connection.register_filesystem(root.fs)  # DuckDB's own needs an extension to be downloaded


def install_relations(connection: duckdb.DuckDBPyConnection, store: Store) -> None:
    """Create `stored.*`, the views and the macros in an open connection."""
    connection.execute("create schema if not exists stored")
    for relation in SCHEMAS:
        # A glob relative to the reader's working directory would break; the catalog is rebuilt when a store moves.
        glob = _quoted(str(store.relation(relation) / "**" / "*.parquet"))
        connection.execute(
            f"create or replace view stored.{relation} as select * from read_parquet({glob}, hive_partitioning=false)"
        )
    for relation in SCHEMAS:
        if relation in RUN_RELATIONS:
            connection.execute(
                f"create or replace view {relation} as select * from stored.{relation} "
                "where run_id in (select run_id from stored.runs)"
            )
        elif relation not in {"terms", "words"}:
            connection.execute(f"create or replace view {relation} as select * from stored.{relation}")
    for name in [*statement_names("relations"), *statement_names("macros")]:
        connection.execute(statement(name))


@contextmanager
def open_connection(store: Store) -> Iterator[duckdb.DuckDBPyConnection]:
    """An in-memory connection within the memory limit that knows no relation yet; one per thread or job."""
    connection = duckdb.connect()
    try:
        configure(connection, store)
        yield connection
    finally:
        connection.close()


@contextmanager
def session(store: Store) -> Iterator[duckdb.DuckDBPyConnection]:
    """An in-memory connection that knows the store's relations and macros; one per thread or job."""
    with open_connection(store) as connection:
        install_relations(connection, store)
        yield connection


def query(connection: duckdb.DuckDBPyConnection, name: str, /, **parameters: Any) -> pa.Table:
    """Run sql/<name>.sql with $parameters and return its rows."""
    return connection.sql(statement(name), params=parameters or None).to_arrow_table()


def rows(connection: duckdb.DuckDBPyConnection, name: str, /, **parameters: Any) -> list[dict]:
    """The rows of sql/<name>.sql as dictionaries."""
    return query(connection, name, **parameters).to_pylist()


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def stream(
    connection: duckdb.DuckDBPyConnection, name: str, /, batch_rows: int = ROW_GROUP, **parameters: Any
) -> Iterator[pa.Table]:
    """The rows of sql/<name>.sql in batches of at most one row group, without holding them all."""
    reader = connection.sql(statement(name), params=parameters or None).to_arrow_reader(batch_rows)
    for batch in reader:
        yield pa.Table.from_batches([batch])


def part_view(connection: duckdb.DuckDBPyConnection, store: Store, view: str, relation: str, *names: str) -> None:
    """Let SQL name the rows of one part of a relation `view`."""
    _view_files(connection, view, [store.file(relation, *names)])


def parts_view(connection: duckdb.DuckDBPyConnection, store: Store, view: str, relation: str, parts: list[str]) -> None:
    """Let SQL name the rows of several parts of a relation `view`."""
    _view_files(connection, view, [store.file(relation, part) for part in parts])


def _view_files(connection: duckdb.DuckDBPyConnection, view: str, paths: list[Place]) -> None:
    files = ", ".join(_quoted(str(path)) for path in paths)
    connection.execute(f"create or replace view {view} as select * from read_parquet([{files}])")
