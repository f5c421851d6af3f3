"""Report stage: what a run found, as one HTML page and as a markdown artifact in the Prefect UI."""

from __future__ import annotations

import base64
import json
import re
import unicodedata
from collections import defaultdict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from prefect.artifacts import create_markdown_artifact
from prefect.context import get_run_context
from prefect.exceptions import MissingContextError

from storage.database import query, rows, session
from storage.errors import InputError
from storage.pages import presentable, render, source, visible, write_page
from storage.store import Store
from tasks.stage import stage

TOKEN_DEPTH = 20  # sequences of each ranking and query whose tokens the page carries
TOKEN_CELLS = 1_600_000  # (layer, position) numbers in one page, about 4 bytes each
LARGEST_CELL = 9999  # a sequence's largest number becomes this; the others are whole multiples of its 9999th part
LOWERED = 20  # sequences of each query that lowered its completion most
EXCERPT = 240  # characters of each sequence's text
SUMMARY_QUERIES, SUMMARY_SEQUENCES, SUMMARY_EXCERPT = 20, 5, 140
PICTURE_COLUMNS, PICTURE_LINES, PICTURE_POINTS = 92, 9, 11
RED, TEAL = (0.77, 0.20, 0.15), (0.0, 0.47, 0.45)


def render_report(store: Store, run: str, output: Path, top: int = 100) -> Path:
    """Write one self-contained page about a run (its id or 'latest'), `top` sequences of each ranking."""
    if top < 1:
        raise InputError("top", expected="one sequence or more", found=str(top), remedy="Leave it out, or set 100.")
    with session(store) as connection:
        page = _page(connection, _find_run(connection, store, run), top)
    return write_page(output, render("report.html.j2", page))


@stage("report")
def summarise(store: Store, run_id: str) -> None:
    """Leave a summary of a run in the Prefect UI; none outside a Prefect run, where nobody would see it."""
    try:
        get_run_context()
    except MissingContextError:
        return
    with session(store) as connection:
        text = _summary(connection, _find_run(connection, store, run_id))
    key = re.sub(r"[^a-z0-9]+", "-", f"headwater {run_id}".lower()).strip("-")
    create_markdown_artifact(text, key=key, description=f"What {run_id} found")


def _find_run(connection, store: Store, run: str) -> dict[str, Any]:
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


# The HTML page: one block of data for the corpus, one per query, so that a browser parses what is looked at.


def _page(connection, run: dict[str, Any], top: int) -> dict[str, Any]:
    run_id, parameters = run["run_id"], _flat(json.loads(run["parameters"]))
    queries = rows(connection, "report/queries", run=run_id)
    sequences = rows(connection, "report/sequences", run=run_id, top=top, lowering=min(top, LOWERED), excerpt=EXCERPT)
    cells, words, vocabulary = _tokens(
        query(connection, "report/tokens", run=run_id, depth=TOKEN_DEPTH, cells=TOKEN_CELLS)
    )
    return presentable(
        {
            "run": run,
            "parameters": parameters,
            "stages": json.loads(run["stages"]),
            "versions": json.loads(run["library_versions"]),
            "modules": rows(connection, "report/modules", run=run_id),
            "queries": queries,
        }
    ) | {
        "corpus": {
            "run": presentable({"id": run_id, "method": run["method"], "filter": parameters.get("candidates.filters")}),
            "sequences": {row["sequence_id"]: _text(row, words) for row in sequences},
            "vocabulary": vocabulary,
        },
        "blocks": _blocks(connection, run_id, queries, sequences, cells),
        "has_tokens": bool(words),
        "style": source("report.css"),
        "script": Markup("\n").join(map(source, ("page.js", "query.js", "ranking.js", "sequence.js"))),
    }


def _blocks(connection, run_id: str, queries: list[dict], sequences: list[dict], cells: dict) -> list[dict[str, Any]]:
    ranked, methods = _by_query(sequences), _by_query(rows(connection, "report/methods", run=run_id))
    blocks = []
    for asked in queries:
        name = asked["query_id"]
        facts = {
            "query": asked,
            "sequences": _columns(ranked[name]),
            "profile": rows(connection, "report/layer_profile", run=run_id, query=name),
            "coverage": rows(connection, "report/coverage", run=run_id, query=name),
            "methods": methods[name],
            "audit": _audit(connection, run_id, name),
        }
        blocks.append(presentable(facts) | {"tokens": cells.get(name, {})})
    return blocks


def _by_query(found: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    groups = defaultdict(list)
    for row in found:
        groups[row["query_id"]].append(row)
    return groups


def _columns(found: list[dict[str, Any]]) -> dict[str, list]:
    """Rows as columns, which name each field once; what belongs to the sequence stands with the corpus."""
    elsewhere = {"query_id", "document_id", "source", "text", "start_char", "end_char"}
    names = [name for name in (found[0] if found else ()) if name not in elsewhere]
    return {name: [row[name] for row in found] for name in names}


def _text(row: dict[str, Any], words: dict[int, list[int]]) -> dict[str, Any]:
    about = {
        "document": row["document_id"],
        "source": row["source"],
        "start": row["start_char"],
        "end": row["end_char"],
        "text": row["text"],
    }
    return presentable(about) | {"words": words.get(row["sequence_id"])}


def _tokens(table: pa.Table) -> tuple[dict[str, dict[int, dict]], dict[int, list[int]], list[str]]:
    """Token influences by query and sequence as [layer][position] integers; words by sequence; texts."""
    cells: dict[str, dict[int, dict]] = defaultdict(dict)
    words: dict[int, list[int]] = {}
    vocabulary: dict[str, int] = {}
    for k in range(table.num_rows):
        row = table.slice(k, 1).to_pylist()[0]
        influences = np.array(row["influences"]).reshape(len(row["layers"]), -1)
        unit = max(float(np.abs(influences).max()), np.finfo(float).tiny) / LARGEST_CELL
        cells[row["query_id"]][row["sequence_id"]] = {
            "layers": row["layers"],
            "unit": float(f"{unit:.6g}"),
            "sums": presentable(influences.sum(axis=1).tolist()),
            "cells": np.rint(influences / unit).astype(int).tolist(),
        }
        texts = map(visible, row["tokens"])
        words[row["sequence_id"]] = [vocabulary.setdefault(text, len(vocabulary)) for text in texts]
    return cells, words, list(vocabulary)


def _flat(parameters: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters by dotted name; the queries have a table of their own."""
    flat: dict[str, Any] = {}
    for name, value in parameters.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        elif prefix or name != "queries":
            flat[prefix + name] = ", ".join(map(str, value)) if isinstance(value, list) else value
    return flat


# The summary: the head of each ranking, one picture, and statements to copy.


def _summary(connection, run: dict[str, Any]) -> str:
    run_id = run["run_id"]
    queries = rows(connection, "report/queries", run=run_id)
    head = rows(connection, "report/sequences", run=run_id, top=SUMMARY_SEQUENCES, lowering=0, excerpt=SUMMARY_EXCERPT)
    ranked = _by_query([row for row in head if row["influence_rank"] <= SUMMARY_SEQUENCES])
    values = {
        "run": run,
        "stages": json.loads(run["stages"]),
        "queries": queries[:SUMMARY_QUERIES],
        "n_left_out": len(queries[SUMMARY_QUERIES:]),
        "ranked": ranked,
        "audits": _audits(connection, run_id, queries[:SUMMARY_QUERIES]),
        "picture": _picture_of_best(connection, run_id, queries),
        "quoted": _quoted,
    }
    return render("summary.md.j2", values)


def _audits(connection, run_id: str, queries: list[dict[str, Any]]) -> dict[str, dict[str, Any] | None]:
    """What the filter missed, by query; None where there was no sample."""
    return {q["query_id"]: _audit(connection, run_id, q["query_id"]) for q in queries}


def _audit(connection, run_id: str, name: str) -> dict[str, Any] | None:
    return next(iter(rows(connection, "report/filter_audit", run=run_id, query=name)), None)


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
    image = _picture([visible(row["token"]) for row in found], np.array([row["influence"] for row in found]))
    return Markup("data:image/png;base64," + base64.b64encode(image).decode())


def _picture(tokens: list[str], influences: np.ndarray) -> bytes:
    """A PNG of the lines around the strongest token, each token on its colour."""
    places = _places(tokens)
    peak = places[int(np.abs(influences).argmax())][0]
    first = max(0, min(peak - PICTURE_LINES // 2, places[-1][0] - PICTURE_LINES + 1))
    height = min(PICTURE_LINES, places[-1][0] - first + 1)
    # One column is .602 em wide in this font, so that boxes and letters agree without being measured.
    inches = (PICTURE_COLUMNS + 2) * 0.602 * PICTURE_POINTS / 72, (height + 0.6) * 1.7 * PICTURE_POINTS / 72
    figure = Figure(figsize=inches, dpi=144)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-1, PICTURE_COLUMNS + 1), ylim=(height + 0.3, -0.3))
    axes.set_axis_off()
    strength = np.sqrt(np.abs(influences) / max(float(np.abs(influences).max()), np.finfo(float).tiny))
    for (line, column), token, influence, alpha in zip(places, tokens, influences, strength, strict=True):
        if first <= line < first + height:
            word, top = token.rstrip("\n"), line - first
            colour = (*(RED if influence > 0 else TEAL), 0.7 * alpha)
            axes.fill_between([column, column + _width(word)], top + 0.06, top + 0.94, color=colour, linewidth=0)
            axes.text(
                column, top + 0.55, _drawable(word), va="center",
                family="DejaVu Sans Mono", size=PICTURE_POINTS, parse_math=False,
            )  # fmt: skip
    image = BytesIO()
    FigureCanvasAgg(figure).print_png(image)
    return image.getvalue()


def _places(tokens: list[str]) -> list[tuple[int, int]]:
    """Line and column of each token, broken at the picture's edge and after line ends."""
    places, line, column = [], 0, 0
    for token in tokens:
        width = _width(token.rstrip("\n"))
        if column and column + width > PICTURE_COLUMNS:
            line, column = line + 1, 0
        places.append((line, column))
        line, column = (line + 1, 0) if token.endswith("\n") else (line, column + width)
    return places


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _drawable(text: str) -> str:
    """Text with a box for each character that the font lacks; it would draw the same box, with a warning."""
    font = get_font(findfont("DejaVu Sans Mono"))
    return "".join(c if font.get_char_index(ord(c)) else "□" for c in text)
