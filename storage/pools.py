"""Pools: which sequences a run scores for which query, where somebody else than a filter has chosen them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import duckdb
import pyarrow as pa

from storage.database import rows
from storage.digests import digest_of
from storage.errors import InputError
from storage.store import Store
from storage.tables import has_part, read_part, write_part


def document_pairs(documents: Mapping[str, Sequence[str]]) -> pa.Table:
    """Documents by query as pairs (query_id, document_id)."""
    pairs = [(name, document) for name, found in documents.items() for document in found]
    return pa.table(
        {
            "query_id": pa.array([name for name, _ in pairs], pa.string()),
            "document_id": pa.array([document for _, document in pairs], pa.string()),
        }
    )


def without_sequence(connection: duckdb.DuckDBPyConnection, pairs: pa.Table) -> list[tuple[str, str]]:
    """Those of some (query, document) pairs whose document was cut into no training sequence."""
    connection.register("ranked", pairs)
    return [(row["query_id"], row["document_id"]) for row in rows(connection, "pools/without_sequence")]


def write_pool(store: Store, pairs: pa.Table) -> str:
    """Keep the pairs (query_id, sequence_id), each once; returns the pool's id, which is made from them."""
    chosen = pairs.select(["query_id", "sequence_id"]).group_by(["query_id", "sequence_id"]).aggregate([])
    chosen = chosen.sort_by([("query_id", "ascending"), ("sequence_id", "ascending")])
    pool_id = f"pool-{digest_of([chosen['query_id'].to_pylist(), chosen['sequence_id'].to_pylist()])[:10]}"
    if not has_part(store, "pools", pool_id):
        columns = {
            "pool_id": [pool_id] * len(chosen),
            "query_id": chosen["query_id"].to_pylist(),
            "sequence_id": chosen["sequence_id"].to_pylist(),
        }
        write_part(store, "pools", pool_id, columns=columns)
    return pool_id


def read_pool(store: Store, pool_id: str) -> pa.Table:
    """The pairs (query_id, sequence_id) of a pool, by query and sequence."""
    if not has_part(store, "pools", pool_id):
        raise InputError(
            f"pool {pool_id!r} of store {store.root}",
            expected="one that write_pool has made",
            found="none of that name",
            remedy='List them: headwater sql --store S "select distinct pool_id from pools"',
        )
    return read_part(store, "pools", pool_id, columns=["query_id", "sequence_id"])
