"""A DuckDB client that looks at a store again and again, from a process of its own."""

from __future__ import annotations

import json

import duckdb

RELATIONS = (
    "candidates",
    "influences",
    "layer_influences",
    "token_influences",
    "modules",
    "query_compressions",
    "run_queries",
)
_counts = ", ".join(f"(select count(*) from {name} x where x.run_id = r.run_id) as {name}" for name in RELATIONS)
COUNTS = f"select r.run_id, {_counts} from runs r"
OWNERS = " union ".join(f"select run_id from {name}" for name in RELATIONS)
CORPUS = "select count(*), count(distinct document_id), (select count(*) from bm25([1, 2, 3])) from sequences"


def look(catalog: str, reopen: bool, log: str, stop) -> None:
    """Look until told to stop; what is seen goes to the log, one line per look."""
    connection = duckdb.connect(catalog, read_only=True)
    with open(log, "w", buffering=1, encoding="utf-8") as out:
        while not stop.is_set():
            try:
                if reopen:
                    connection.close()
                    connection = duckdb.connect(catalog, read_only=True)
                owners = sorted(row[0] for row in connection.execute(OWNERS).fetchall())
                seen = {row[0]: row[1:] for row in connection.execute(COUNTS).fetchall()}
                corpus = connection.execute(CORPUS).fetchall()[0]
                out.write(json.dumps({"seen": seen, "owners": owners, "corpus": corpus}) + "\n")
            except duckdb.Error as error:
                out.write(json.dumps({"error": str(error)}) + "\n")
