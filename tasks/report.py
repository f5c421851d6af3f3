"""Report stage: what a run found, as one HTML page and as a markdown artifact in the Prefect UI."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from prefect.artifacts import create_markdown_artifact
from prefect.context import get_run_context
from prefect.exceptions import MissingContextError

from storage.database import rows, session
from storage.errors import InputError
from storage.pages import render, visible, write_page
from storage.store import Store
from tasks.chosen import find_run
from tasks.report_page import audits_of, by_query, page_values
from tasks.stage import stage
from tasks.token_picture import token_picture

SUMMARY_QUERIES, SUMMARY_SEQUENCES, SUMMARY_EXCERPT = 20, 5, 140


def render_report(store: Store, run: str, output: Path, top: int = 100) -> Path:
    """Write one self-contained page about a run (its id or 'latest'), `top` sequences of each ranking."""
    if top < 1:
        raise InputError("top", expected="one sequence or more", found=str(top), remedy="Leave it out, or set 100.")
    with session(store) as connection:
        page = page_values(connection, find_run(connection, store, run), top)
    return write_page(output, render("report.html.j2", page))


@stage("report")
def summarise(store: Store, run_id: str) -> None:
    """Leave a summary of a run in the Prefect UI; none outside a Prefect run, where nobody would see it."""
    try:
        get_run_context()
    except MissingContextError:
        return
    with session(store) as connection:
        text = _summary(connection, find_run(connection, store, run_id))
    key = re.sub(r"[^a-z0-9]+", "-", f"headwater {run_id}".lower()).strip("-")
    create_markdown_artifact(text, key=key, description=f"What {run_id} found")


# The summary: the head of each ranking, one picture, and statements to copy.


def _summary(connection, run: dict[str, Any]) -> str:
    run_id = run["run_id"]
    of_all = {"run": run_id, "query": None}
    queries = rows(connection, "report/queries", **of_all)
    head = rows(connection, "report/sequences", **of_all, top=SUMMARY_SEQUENCES, lowering=0, excerpt=SUMMARY_EXCERPT)
    ranked = by_query([row for row in head if row["influence_rank"] <= SUMMARY_SEQUENCES])
    values = {
        "run": run,
        "stages": json.loads(run["stages"]),
        "queries": queries[:SUMMARY_QUERIES],
        "n_left_out": len(queries[SUMMARY_QUERIES:]),
        "ranked": ranked,
        "audits": audits_of(connection, run_id),
        "picture": _picture_of_best(connection, run_id, queries),
        "quoted": _quoted,
    }
    return render("summary.md.j2", values)


def _quoted(text: str) -> Markup:
    """A name as an SQL string on one line, for a fenced block, where entities would stay as they are."""
    return Markup("'" + visible(text).replace("\n", "").replace("'", "''") + "'")


def _picture_of_best(connection, run_id: str, queries: list[dict[str, Any]]) -> Markup | None:
    """The first query's best sequence as a PNG in a data: URI, which the Prefect UI shows inside markdown."""
    if not queries or queries[0]["best_sequence_id"] is None:
        return None
    first = queries[0]
    found = rows(connection, "report/heatmap", run=run_id, query=first["query_id"], sequence=first["best_sequence_id"])
    if not found:
        return None
    image = token_picture([visible(row["token"]) for row in found], np.array([row["influence"] for row in found]))
    return Markup("data:image/png;base64," + base64.b64encode(image).decode())
