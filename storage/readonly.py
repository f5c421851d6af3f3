"""Whether a user's statement only reads.

DuckDB's read-only mode protects the catalog's own file, and a directory whose files may be read may be written to as
well: COPY could replace a part of a store. So a statement has to be a SELECT (SHOW, DESCRIBE, SUMMARIZE, FROM and
PIVOT are such) or the EXPLAIN of one, and its plan, in which macros and CTEs are spelt out, must write nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import duckdb

from storage.errors import InputError

READING = {duckdb.StatementType.SELECT, duckdb.StatementType.MULTI}  # a PIVOT over unknown values is of several
WRITING = re.compile("COPY|INSERT|UPDATE|DELETE|MERGE|EXPORT|ATTACH")  # in names of a plan's operators
EXPLAIN = re.compile(r"(?:\s|--[^\n]*\n|/\*.*?\*/)*explain\b\s*(?:analyze\b|\([^)]*\))?(.*)", re.DOTALL | re.IGNORECASE)


def require_reading(connection: duckdb.DuckDBPyConnection, text: str) -> None:
    """Refuse a text in which any statement could write; DuckDB's own complaints are left to it."""
    for statement in connection.extract_statements(text):
        query = statement.query
        if statement.type == duckdb.StatementType.EXPLAIN:
            inner = EXPLAIN.fullmatch(query)
            if inner is None or len(connection.extract_statements(inner[1])) != 1:
                raise _refusal(query, "an EXPLAIN of something else")
            (statement,) = connection.extract_statements(inner[1])
            query = statement.query
        if statement.type not in READING:
            raise _refusal(query, statement.type.name.lower().replace("_", " "))
        for _, plan in connection.execute(f"explain (format json) {query}").fetchall():
            for name in _operators(json.loads(plan)):
                if WRITING.search(name):
                    raise _refusal(query, name.lower().replace("_", " "))


def _operators(plan: object) -> Iterator[str]:
    if isinstance(plan, dict):
        yield plan.get("name", "")
        for part in plan.values():
            yield from _operators(part)
    elif isinstance(plan, list):
        for part in plan:
            yield from _operators(part)


def _refusal(query: str, found: str) -> InputError:
    return InputError(
        f"statement {query.strip()!r}",
        expected="one that reads: select, from, show, describe, summarize, pivot, explain",
        found=found,
        remedy="To keep rows use --format csv or json, or open headwater.duckdb with a DuckDB client of your own.",
    )
