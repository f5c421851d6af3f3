"""Work in progress: parts that a job has finished and no reader may see yet, under work/<key>/.

A killed run finds them again; they are discarded when their rows stand in the tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from storage.places import Place, location, remove_tree
from storage.schemas import SCHEMAS
from storage.store import Store, read_json, replacing, safe_name, write_json
from storage.tables import PartWriter

# Rows between the scoring stages and the result tables; `module` counts the run's tracked modules.
STAGED: dict[str, pa.Schema] = {
    "scored": pa.schema(
        [
            ("query_id", pa.string()),
            ("method", pa.string()),
            ("sequence_id", pa.int64()),
            ("module", pa.int16()),
            ("influence", pa.float32()),
        ]
    ),
    "texts": pa.schema(
        [
            ("query_id", pa.string()),
            ("method", pa.string()),
            ("sequence_id", pa.int64()),
            ("influence", pa.float64()),
        ]
    ),
    "exact_layers": pa.schema(
        [
            ("query_id", pa.string()),
            ("sequence_id", pa.int64()),
            ("module", pa.int16()),
            ("influence", pa.float64()),
        ]
    ),
    "exact_tokens": pa.schema(
        [
            ("query_id", pa.string()),
            ("sequence_id", pa.int64()),
            ("layer", pa.int32()),
            ("position", pa.int32()),
            ("token_id", pa.int32()),
            ("token", pa.string()),
            ("influence", pa.float64()),
        ]
    ),
}


def _path(store: Store, key: str, relation: str, name: str) -> Place:
    return store.root / "work" / safe_name(key) / relation / f"{safe_name(name)}.parquet"


def _schema(relation: str) -> pa.Schema:
    return STAGED[relation] if relation in STAGED else SCHEMAS[relation]


@contextmanager
def staged_writer(store: Store, key: str, relation: str, name: str = "all") -> Iterator[PartWriter]:
    """Open a staged part for appending; complete or absent, as any part."""
    with replacing(store, _path(store, key, relation, name)) as path:
        writer = PartWriter(path, _schema(relation))
        try:
            yield writer
        finally:
            writer.close()


def has_staged(store: Store, key: str, relation: str, name: str = "all") -> bool:
    """Whether a staged part is there."""
    return _path(store, key, relation, name).exists()


def staged_reader(store: Store, key: str, relation: str, name: str = "all") -> Iterator[pa.RecordBatch]:
    """The rows of a staged part, batch by batch."""
    source, filesystem = location(_path(store, key, relation, name))
    with pq.ParquetFile(source, filesystem=filesystem) as file:
        yield from file.iter_batches()


def view_staged(connection: duckdb.DuckDBPyConnection, store: Store, key: str, relation: str) -> None:
    """Let SQL name the rows of all staged parts of a relation `staged_<relation>`."""
    schema = _path(store, key, relation, "schema")
    with replacing(store, schema) as path:
        pq.write_table(_schema(relation).empty_table(), path)
    glob = str(schema.parent / "*.parquet").replace("'", "''")
    connection.execute(f"create or replace temp view staged_{relation} as select * from read_parquet('{glob}')")


def staged_tensors_path(store: Store, key: str, name: str) -> Place:
    """Where staged tensors stand."""
    return store.root / "work" / safe_name(key) / f"{safe_name(name)}.safetensors"


def write_note(store: Store, key: str, name: str, value: dict) -> None:
    """Keep a few words beside the staged parts of a key."""
    write_json(_note(store, key, name), value)


def read_note(store: Store, key: str, name: str) -> dict | None:
    """What was kept under that name, if anything was."""
    path = _note(store, key, name)
    return read_json(path) if path.exists() else None


def _note(store: Store, key: str, name: str) -> Place:
    return store.root / "work" / safe_name(key) / f"{safe_name(name)}.json"


def discard(store: Store, key: str) -> None:
    """Remove everything staged under a key."""
    remove_tree(store.root / "work" / safe_name(key))
