"""What a server sends of a store: its runs, the report's page of one of them, and a query's block when it is asked for.

The page is the report's own template with the parts filled in that only a server has: a choice of runs, a form.
"""

from __future__ import annotations

from typing import Any

import duckdb

from storage.database import rows
from storage.pages import presentable, render, visible
from storage.store import Store
from tasks.chosen import find_run
from tasks.report_page import SCRIPTS, SERVED, block_of, looks, served_values

ASKING = "explorer.js"  # the choice of runs, the form, and what becomes of a trace
WITHOUT_RUN = ("page.js", ASKING)  # where there is no ranking to draw


def list_runs(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """Every complete run, the latest first."""
    return presentable(rows(connection, "explorer/runs"))


def page_of(connection: duckdb.DuckDBPyConnection, store: Store, run: str, about_server: dict[str, Any]) -> str:
    """The page of a run; InputError where there is none of that name. `about_server` is what the form needs."""
    found = find_run(connection, store, run)
    values = served_values(connection, found)
    values["about"] |= _about(about_server, found["run_id"])
    return render("explorer.html.j2", values | about_server | looks(SERVED, *SCRIPTS, ASKING))


def page_without_run(about_server: dict[str, Any], missing: str | None) -> str:
    """The page of a store in which nothing was traced yet, or of a run that is not there, by its name."""
    about = {"run": {"id": None}, "bands": [], "query_ids": []} | _about(about_server, None)
    own = {"about": about, "missing": None if missing is None else visible(missing)}
    return render("explorer_without_run.html.j2", own | about_server | looks(SERVED, *WITHOUT_RUN))


def _about(about_server: dict[str, Any], run_id: str | None) -> dict[str, Any]:
    """What the page's scripts know of the server."""
    return {"token": about_server["token"], "runs": about_server["runs"], "shown": run_id}


def block_shown(connection: duckdb.DuckDBPyConnection, run: str, query: str, top: int) -> dict[str, Any] | None:
    """The block of the query that a page shows as `query`; None where the run, or the query in it, is not there.

    A page shows control characters as pictures, so the id that comes back may not be the one that the store has.
    """
    found = block_of(connection, run, query, top)
    if found is not None:
        return found
    ids = [row["query_id"] for row in rows(connection, "explorer/query_ids", run=run)]
    return next((block_of(connection, run, name, top) for name in ids if visible(name) == query), None)
