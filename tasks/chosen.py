"""The complete run that a user means: by its id, or the latest."""

from __future__ import annotations

from typing import Any

import duckdb

from storage.database import rows
from storage.errors import InputError
from storage.store import Store


def find_run(connection: duckdb.DuckDBPyConnection, store: Store, run: str) -> dict[str, Any]:
    """The row of `runs`; InputError where there is none."""
    found = rows(connection, "report/run", run=run)
    if found:
        return found[0]
    known = [row["run_id"] for row in rows(connection, "report/run_names")]
    raise InputError(
        f"run {run!r} of store {store.root}",
        expected=f"latest or one of {', '.join(known[:10])}" if known else "a complete run",
        found="no run of that name" if known else "none",
        remedy='List them: headwater sql --store S "from runs"' if known else "Make one: headwater trace.",
    )
