"""headwater.duckdb: views and macros over the data, for any DuckDB client from 1.0 on.

It holds no data. It is built as a new file and swapped in, because a DuckDB file that is open for writing
locks out every reader, and it is built again when the store was moved or headwater's SQL changed.
"""

from __future__ import annotations

import duckdb

from storage import digests
from storage.database import catalog_statements, configure, quoted, reading, write_relations
from storage.errors import InputError
from storage.readonly import require_reading
from storage.schemas import SCHEMA_VERSION
from storage.scratch import local_copy
from storage.store import Store, read_json, replacing, write_json


def build_catalog(store: Store) -> None:
    """Write the catalog anew and swap it in; readers that have the old one open go on undisturbed."""
    with replacing(store, store.catalog) as path:
        write_relations(store, path)
    write_json(store.root / "catalog.json", _description(store))


def ensure_catalog(store: Store) -> None:
    """Build the catalog where it is missing, was moved with its store, or was made by other SQL."""
    marker = store.root / "catalog.json"
    if not store.catalog.exists() or not marker.exists() or read_json(marker) != _description(store):
        build_catalog(store)


def open_reader(store: Store) -> duckdb.DuckDBPyConnection:
    """A connection that leaves the catalog as it is, whose file access is locked to the store's tables."""
    ensure_catalog(store)
    with local_copy(store.catalog) as copy:
        connection = duckdb.connect(str(copy), read_only=True)
    configure(connection, store)
    connection.execute("set allowed_directories = [$tables]", {"tables": str(store.root / "tables") + "/"})
    connection.execute("set enable_external_access = false")
    connection.execute("set lock_configuration = true")
    return connection


def run_user_sql(store: Store, text: str) -> tuple[list[str], list[tuple]]:
    """Answer a user's statement: column names and rows; DuckDB's complaint becomes an InputError."""
    connection = open_reader(store)

    def ask() -> tuple[list[str], list[tuple]]:
        require_reading(connection, text)
        result = connection.execute(text)
        columns = [column[0] for column in result.description or []]
        return columns, result.fetchall() if columns else []

    try:
        return reading(ask)
    except duckdb.Error as error:
        raise InputError(
            f"statement {text!r}",
            expected="SQL that DuckDB can run over the store's relations",
            found=str(error).splitlines()[0],
            remedy='See what there is: headwater sql --store S "show tables"',
        ) from error
    finally:
        connection.close()


def _description(store: Store) -> dict:
    return {
        "root": str(store.root),
        "schema": SCHEMA_VERSION,
        "sql": digests.digest_of(catalog_statements(quoted(str(store.root)))),
    }
