"""What the report's page holds: the run, and one block of data per query that says everything about it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
from markupsafe import Markup

from storage.database import rows
from storage.pages import packed, presentable, source, visible
from tasks.methods import GRADIENT
from tasks.near_duplicates import near_duplicates

TOKEN_DEPTH = 100  # sequences of each ranking and query whose tokens the page carries, where they were scored exactly
TOKEN_CELLS = 4_000_000  # (band of layers, position) numbers in one page, about a byte and a half each
LARGEST_CELL = 999  # a sequence's largest number becomes this; the others are whole multiples of its 999th part
LOWERED = 20  # sequences of each query that lowered its completion most
EXCERPT = 240  # characters of each sequence's text
AROUND = 300  # characters of the document before and after a sequence whose tokens are there
SPARSE = 2 / 3  # ‖a‖₂ / ‖a‖₁ over tokens, past which Grosse et al. 2023 set a sequence aside as spurious
EMBEDDED, SERVED = "embedded.js", "served.js"  # where a page's blocks come from: itself, or the server that sent it
SCRIPTS = ("page.js", "layers.js", "query.js", "ranking.js", "row.js", "tokens.js", "sequence.js", "start.js")


def page_values(connection, run: dict[str, Any], top: int) -> dict[str, Any]:
    """What the template shows of a run that a page holds whole, `top` sequences of each ranking."""
    values, queries, bands = _frame(connection, run)
    found = _blocks(connection, run["run_id"], queries, bands, top)
    blocks = [(block["query"]["query_id"], packed(block)) for block in found]
    return values | {"blocks": blocks} | looks(EMBEDDED, *SCRIPTS)


def served_values(connection, run: dict[str, Any]) -> dict[str, Any]:
    """What the template shows of a run whose blocks a server sends when they are asked for."""
    values, queries, _ = _frame(connection, run)
    values["about"]["query_ids"] = [visible(row["query_id"]) for row in queries]
    return values


def block_of(connection, run_id: str, query_id: str, top: int) -> dict[str, Any] | None:
    """All that the view of one query needs, the same as a page holds; None where the run has no such query.

    Two differences: near-duplicates are those among the query's own sequences, because others are not read; and
    TOKEN_CELLS is the query's own, not shared among all.
    """
    asked = rows(connection, "report/queries", run=run_id, query=query_id)
    if not asked:
        return None
    return next(_blocks(connection, run_id, asked, _bands(connection, run_id), top, query_id))


def looks(*scripts: str) -> dict[str, Any]:
    """The page's style and its scripts in one."""
    return {"style": source("report.css"), "script": Markup("\n").join(map(source, ("data.js", *scripts)))}


def _frame(connection, run: dict[str, Any]) -> tuple[dict[str, Any], list[dict], list[dict]]:
    """Everything but the blocks: what the template shows, the queries, and the bands of layers."""
    run_id, parameters = run["run_id"], _flat(json.loads(run["parameters"]))
    queries = rows(connection, "report/queries", run=run_id, query=None)
    bands = _bands(connection, run_id)
    shown = {
        "run": run,
        "parameters": parameters,
        "stages": json.loads(run["stages"]),
        "versions": json.loads(run["library_versions"]),
        "modules": rows(connection, "report/modules", run=run_id),
        "compression": _compression(queries),
        "queries": queries,
        "has_tokens": any(row["n_exact"] for row in queries),
    }
    about = {
        "run": {"id": run_id, "method": run["method"], "filter": parameters.get("candidates.filters")},
        "bands": bands,
        "sparse": SPARSE,
        "shares": run["method"] in GRADIENT,  # among layers and tokens
    }
    return presentable(shown) | {"about": presentable(about)}, queries, bands


def _bands(connection, run_id: str) -> list[dict[str, Any]]:
    return rows(connection, "report/layer_bands", run=run_id)


def _compression(queries: list[dict[str, Any]]) -> dict[str, float] | None:
    """What the compressed query gradients cost in all: the worst of each figure; None where no query has one."""
    found = [q["compression_correlation"] for q in queries if q["compression_correlation"] is not None]
    if not found:
        return None
    residuals = [q["largest_residual"] for q in queries if q["largest_residual"] is not None]
    return {
        "n": len(found),
        "lowest": min(found),
        "median": float(np.median(found)),
        "residual": max(residuals, default=0),
    }


def _blocks(
    connection, run_id: str, queries: list[dict], bands: list[dict[str, Any]], top: int, query: str | None = None
) -> Iterator[dict[str, Any]]:
    """One query after the other, each with all that its view needs; `query` where only one is meant."""
    order = {row["band"]: k for k, row in enumerate(bands)}
    asked = {"run": run_id, "query": query}
    found = rows(connection, "report/sequences", **asked, top=top, lowering=min(top, LOWERED), excerpt=EXCERPT)
    families = near_duplicates(connection, (row["sequence_id"] for row in found)) if found else {}
    ranked = by_query(found)
    profile, coverage, methods = (
        by_query(rows(connection, f"report/{name}", **asked)) for name in ("layer_profile", "coverage", "methods")
    )
    audits = audits_of(connection, run_id, query)
    tokens = by_query(rows(connection, "report/tokens", **asked, depth=TOKEN_DEPTH, cells=TOKEN_CELLS, around=AROUND))
    for row in queries:
        name = row["query_id"]
        facts = {
            "query": row,
            "profile": profile[name],
            "coverage": coverage[name],
            "methods": methods[name],
            "audit": audits.get(name),
        }
        yield presentable(facts) | _tokens(tokens[name], order) | {"sequences": _columns(ranked[name], families, order)}


def by_query(found: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows by the query that they speak of; no rows for one that has none."""
    groups = defaultdict(list)
    for row in found:
        groups[row["query_id"]].append(row)
    return groups


def audits_of(connection, run_id: str, query: str | None = None) -> dict[str, dict[str, Any]]:
    """What the filter missed, by query; of those with a uniform sample."""
    return {row["query_id"]: row for row in rows(connection, "report/filter_audit", run=run_id, query=query)}


def _columns(found: list[dict[str, Any]], families: dict[int, int], order: dict[int, int]) -> dict[str, list]:
    """Rows as columns, which name each field once."""
    names = [name for name in (found[0] if found else ()) if name not in {"query_id", "bands", "parts"}]
    columns = presentable({name: [row[name] for row in found] for name in names})
    parts = [
        _scaled(_dense(row["bands"], np.array(row["parts"])[:, None], order)) if row["bands"] else None for row in found
    ]
    return columns | {
        "family": [families.get(row["sequence_id"]) for row in found],
        "unit": [None if part is None else part[0] for part in parts],
        "parts": [None if part is None else part[1][:, 0].tolist() for part in parts],
    }


def _tokens(found: list[dict[str, Any]], order: dict[int, int]) -> dict[str, Any]:
    """Token influences by sequence as [band][position] whole numbers, the text around, and the words of all."""
    tokens: dict[int, dict[str, Any]] = {}
    vocabulary: dict[str, int] = {}
    for row in found:
        influences = _dense(row["bands"], np.array(row["influences"]).reshape(len(row["bands"]), -1), order)
        unit, cells = _scaled(influences)
        around = {name: row[name] for name in ("before", "after", "begins_earlier", "goes_on")}
        tokens[row["sequence_id"]] = presentable(around | {"sums": influences.sum(axis=1).tolist()}) | {
            "unit": unit,
            "cells": cells.tolist(),
            "words": [vocabulary.setdefault(visible(text), len(vocabulary)) for text in row["tokens"]],
        }
    return {"tokens": tokens, "vocabulary": list(vocabulary)}


def _dense(bands: list[int], influences: np.ndarray, order: dict[int, int]) -> np.ndarray:
    """[band, position] over all bands of the run, zero where a sequence has no row."""
    whole = np.zeros((len(order), influences.shape[1]))
    whole[[order[band] for band in bands]] = influences
    return whole


def _scaled(influences: np.ndarray) -> tuple[float, np.ndarray]:
    """A unit and the whole multiples of it that stand for the numbers."""
    unit = max(float(np.abs(influences).max(initial=0)), np.finfo(float).tiny) / LARGEST_CELL
    return float(f"{unit:.6g}"), np.rint(influences / unit).astype(int)


def _flat(parameters: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters by dotted name; the queries have a table of their own."""
    flat: dict[str, Any] = {}
    for name, value in parameters.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        elif prefix or name != "queries":
            flat[prefix + name] = ", ".join(map(str, value)) if isinstance(value, list) else value
    return flat
