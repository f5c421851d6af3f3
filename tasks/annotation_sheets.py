"""Annotation sheets: the first sequences of queries with two questions, for people who read them in a spreadsheet.

The study of Grosse et al. 2023 (arXiv 2308.03296, app. F): people are shown what a model was asked and said, and one of
the sequences that raised it most, and say what the sequence is and what the two have to do with each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from storage.annotations import Item, write_items
from storage.database import rows, session
from storage.digests import digest_of
from storage.errors import InputError
from storage.sheets import FORMULA, Separator, require_sheet_path, write_beside, write_sheet
from storage.store import Store
from tasks.chosen import find_run
from tasks.report_page import SPARSE

ANSWERS = ("description", "relationship")
ANNOTATOR = "annotator"
ITEM = "item"
BLIND = (ITEM, "place", "reference", "target", *ANSWERS, ANNOTATOR)
OPEN = (ITEM, "place", "run", "model", "query", "rank", "score", "spurious", *BLIND[2:])
OPENS, CLOSES = "⟦", "⟧"  # around what is marked


class SheetParameters(BaseModel):
    """What people are asked about, and how much they may know of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    runs: tuple[str, ...] = Field(("latest",), min_length=1, description="run ids, or latest; several for a comparison")
    queries: tuple[str, ...] = Field((), description="query ids; none: all of each run")
    first: int = Field(6, ge=1, le=1000, description="sequences of each query; Grosse et al. took 6")
    annotators: int = Field(1, ge=1, le=100, description="people who are to answer each item")
    blind: bool = Field(False, description="shuffle the rows, and leave out model, rank and score")
    seed: int = Field(0, ge=0, description="of the order of a blind sheet")
    mark: int = Field(0, ge=0, le=1000, description="tokens of each target that are marked: those that raised it most")
    separator: Separator = Field("comma", description="comma, semicolon or tab, between the cells of a CSV file")


@dataclass(frozen=True)
class Sheet:
    """What was written, and what could not be."""

    sheet_id: str
    path: Path
    instructions: Path
    n_items: int
    n_rows: int
    n_spurious: int
    without: tuple[str, ...]  # queries that no sequence raised


def export_sheet(store: Store, asked: SheetParameters, output: str | Path) -> Sheet:
    """Write a sheet, its instructions beside it, and its key into the store; nothing where a file is there already."""
    path = require_sheet_path(output)
    items: list[Item] = []
    texts: list[dict[str, Any]] = []
    without: list[str] = []
    with session(store) as connection:
        runs = list({run["run_id"]: run for run in (find_run(connection, store, name) for name in asked.runs)}.values())
        for run in runs:
            names = _queries(connection, store, run["run_id"], asked.queries)
            found = rows(
                connection, "annotations/items", run=run["run_id"], first=asked.first, queries=list(asked.queries)
            )
            _require_tokens(found, run, asked.mark)
            without += [name for name in names if name not in {row["query_id"] for row in found}]
            items += [_item(run, row) for row in found]
            texts += found
    if not items:
        raise InputError(
            f"runs {', '.join(run['run_id'] for run in runs)} of store {store.root}",
            expected="sequences that raised a query",
            found=f"none for any of {len(set(without)):,} queries",
            remedy="Name another run (--run), or other queries (--query).",
        )
    # Query by query, in each run by run; Python's sort keeps the order of equals.
    place = {name: k for k, name in enumerate(dict.fromkeys(item.query_id for item in items))}
    order = sorted(range(len(items)), key=lambda k: place[items[k].query_id])
    sheet_id = f"sheet-{digest_of([[run['run_id'] for run in runs], asked.model_dump()])[:10]}"
    written = [
        {"place": turn + 1, **_row(items[k], texts[k], asked.mark)}
        for turn in range(asked.annotators)
        for k in (_shuffled(order, asked.seed, turn) if asked.blind else order)
    ]
    write_items(store, sheet_id, items)  # first: whoever has the sheet can hand its answers in
    write_sheet(path, BLIND if asked.blind else OPEN, written, asked.separator)
    beside = write_beside(path, "-instructions.md", instructions(asked, path.suffix.lower() == ".csv"))
    spurious = sum(item.is_spurious is True for item in items)
    return Sheet(sheet_id, path, beside, len(items), len(written), spurious, tuple(dict.fromkeys(without)))


def _queries(connection: duckdb.DuckDBPyConnection, store: Store, run_id: str, wanted: Sequence[str]) -> list[str]:
    names = [row["query_id"] for row in rows(connection, "annotations/queries", run=run_id)]
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise InputError(
            f"query {unknown[0]!r} of run {run_id}, store {store.root}",
            expected=f"one of {', '.join(names[:10])}",
            found="none of that id",
            remedy="Correct --query, or leave it out.",
        )
    return list(wanted) or names


def _require_tokens(found: list[dict[str, Any]], run: dict[str, Any], mark: int) -> None:
    lacking = [row for row in found if row["tokens"] is None]
    if mark and lacking:
        raise InputError(
            f"sequence {lacking[0]['sequence_id']} of query {lacking[0]['query_id']}, run {run['run_id']}",
            expected="influences of its tokens, which are to be marked",
            found=f"none, and of {len(lacking):,} of {len(found):,} sequences",
            remedy="Leave --mark out, ask for fewer sequences (--first), or trace with a larger --rescore.",
        )


def _item(run: dict[str, Any], row: dict[str, Any]) -> Item:
    sparsity = row["sparsity"]
    return Item(
        run["run_id"], row["query_id"], row["sequence_id"], run["method"], run["model"], row["influence"],
        row["influence_rank"], sparsity, None if sparsity is None else sparsity > SPARSE,
    )  # fmt: skip


def _row(item: Item, texts: dict[str, Any], mark: int) -> dict[str, Any]:
    spurious = {True: "yes", False: "no", None: ""}
    return {
        ITEM: item.item_id,
        "run": item.run_id,
        "model": Path(item.model).name,
        "query": item.query_id,
        "rank": item.influence_rank,
        "score": float(f"{item.influence:.6g}"),
        "spurious": spurious[item.is_spurious],
        "reference": texts["reference"],
        "target": marked(texts["target"], texts["tokens"], texts["token_influences"], mark)
        if mark
        else texts["target"],
    }


def marked(text: str, tokens: Sequence[str], influences: Sequence[float], n: int) -> str:
    """A text in which the n tokens that raised the completion most stand in brackets; neighbours in one."""
    first = np.argsort(-np.asarray(influences), kind="stable")[:n]
    chosen = {int(k) for k in first if influences[k] > 0}
    pieces = _pieces(text, tokens)
    lit = [bool(piece) and not chosen.isdisjoint(range(start, end)) for piece, start, end in pieces]
    around = [False, *lit, False]
    return "".join(
        f"{OPENS if here and not before else ''}{piece}{CLOSES if here and not after else ''}"
        for (piece, _, _), before, here, after in zip(pieces, around, lit, around[2:], strict=False)
    )


def _pieces(text: str, tokens: Sequence[str]) -> list[tuple[str, int, int]]:
    """The text in pieces, each with the range of tokens that are it.

    A token such as <s> is nothing of the text, a first word may lack its space, and a character may be several tokens,
    none of which is text: those between two that are found share what stands between. Tokens of another text stay as
    they are.
    """
    pieces: list[tuple[str, int, int]] = []
    at = first = 0  # of text and tokens, what has no piece yet
    for k, token in enumerate(tokens):
        forms = (token, token.removeprefix(" ")) if at == 0 else (token,)
        places = [(text.find(form, at, at + k - first + len(form)), form) for form in forms if form]
        place, form = next((found for found in places if found[0] >= 0), (-1, ""))
        if place >= 0:
            pieces += [(text[at:place], first, k)] if k > first else []
            pieces.append((form, k, k + 1))
            at, first = place + len(form), k + 1
    if len(text) - at > len(tokens) - first:
        return [(token, k, k + 1) for k, token in enumerate(tokens)]
    return [*pieces, (text[at:], first, len(tokens))]


def _shuffled(order: Sequence[int], seed: int, turn: int) -> list[int]:
    return np.random.default_rng([seed, turn]).permutation(np.asarray(order)).tolist()


def instructions(asked: SheetParameters, is_csv: bool) -> str:
    """What annotators are told, in Markdown."""
    several = (
        f"\nEvery item stands in the sheet {asked.annotators} times, once for each person who is to answer it: take "
        "all rows of one number under `place`, and leave the other numbers to the others.\n"
        if asked.annotators > 1
        else ""
    )
    marks = (
        f"\n{OPENS}Brackets{CLOSES} in a target stand around the places that the method weighs most. They may help, "
        "and they may be wrong: judge the whole text.\n"
        if asked.mark
        else ""
    )
    signs = " ".join(f"`{mark}`" for mark in FORMULA)
    saving = (
        f"""
## Saving

Save the file as CSV, in UTF-8 where you are asked. Commas, semicolons and tabs between cells are all understood.
Rows may be sorted, and you may stop and go on later: rows without an answer count as not answered yet.
Please leave the first line and the column `{ITEM}` as they are.
A line that begins with {signs} has an apostrophe before it, so that no spreadsheet takes it for a formula.
Characters that cannot be seen are shown as signs, such as ␛ or ⟨U+202E⟩.
"""
        if is_csv
        else ""
    )
    return f"""# Two questions about two texts

Each row holds two texts.
The **reference** is the beginning of a text together with what a language model wrote next.
The **target** is a passage from the texts that the model learned from. It may begin or end in the middle of a sentence.

Read both, then answer in the same row:

1. `description`: What is the target? One line for somebody who cannot see it: the kind of text and what it is about, \
such as “a letter in which a tenant complains about noise”.
2. `relationship`: What does the target have to do with the reference? One sentence at most: a subject, a phrase, a \
form, a way of thinking that they share. If you see nothing, write the single word `irrelevant`.

Write your name, or a sign for it, under `{ANNOTATOR}`, the same in every row.

Judge what stands there; you need not find out whether it is true. Most passages are ordinary, and `irrelevant` is as \
good an answer as any other. Please do not talk about items with others before all of you are done.
{several}{marks}{saving}"""
