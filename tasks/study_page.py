"""Pages of studies: a lead, a few numbers, figures and tables of estimates, and how it was all made."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from storage.pages import presentable, render, source, write_page
from tasks.coloured_text import ColouredText, coloured
from tasks.evaluation.ranking import Estimate
from tasks.fact_plots import DARK, LIGHT, WIDTH, Draw, Theme, drawable, svg
from tasks.fact_tables import Cell, Row, Table, figure

COLUMN = 3.4  # inches: one column of a paper
NAME = 24  # characters of a line of a name beside a bar


@dataclass(frozen=True)
class Passage:
    """One text in several colourings, one under another."""

    title: str
    texts: tuple[ColouredText, ...]


@dataclass(frozen=True)
class Block:
    """One section: a figure, a table, or both, or texts in colours, and what is to be known of them."""

    title: str
    table: Table | None = None
    draw: Draw | None = None
    height: float = 3.2  # inches
    caption: str = ""
    notes: tuple[str, ...] = ()
    statement: str = ""  # the SQL that the figure and the table rest on
    passages: tuple[Passage, ...] = ()


@dataclass(frozen=True)
class Page:
    """What a page says; numbers are (name, value, unit), origin (name, value)."""

    of: str
    name: str
    title: str
    lead: str
    numbers: tuple[tuple[str, str, str], ...]
    blocks: tuple[Block, ...]
    origin: tuple[tuple[str, str], ...]
    commands: tuple[str, ...]


def write_study(page: Page, output: str | None, figures: str | None) -> None:
    """Write a page, and a directory of its figures, where they are asked for."""
    if output is not None:
        write_study_page(page, Path(output))
    if figures is not None:
        write_figures(page, Path(figures))


def write_figures(page: Page, directory: Path) -> list[Path]:
    """Write each figure of a page as an SVG one column wide, for a paper, named by study and section."""
    return [
        write_page(
            directory / f"{_slug(page.of)}-{_slug(block.title)}.svg",
            svg(block.draw, COLUMN, block.height, LIGHT, LIGHT.on_colour).decode(),
        )
        for block in page.blocks
        if block.draw is not None
    ]


def _slug(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def write_study_page(page: Page, output: Path) -> Path:
    """Write one self-contained page."""
    style = Markup("\n").join(map(source, ("report.css", "fact_tracing.css", "tokens.css")))
    figures = {k: _picture(block) for k, block in enumerate(page.blocks) if block.draw is not None}
    values = presentable({"page": _shown(page)})
    return write_page(output, render("study.html.j2", values | {"figures": figures, "style": style}))


def _shown(page: Page) -> dict[str, Any]:
    blocks = [
        {
            "title": b.title,
            "caption": b.caption,
            "notes": b.notes,
            "statement": b.statement.splitlines(),  # line ends of ours are no marks of a text's
            "table": None if b.table is None else _plain(b.table),
            "passages": [{"title": p.title, "texts": [coloured(text) for text in p.texts]} for p in b.passages],
        }
        for b in page.blocks
    ]
    numbers = [{"name": name, "value": value, "unit": unit} for name, value, unit in page.numbers]
    return vars(page) | {"blocks": blocks, "numbers": numbers}


def _plain(table: Table) -> dict[str, Any]:
    rows = [{**vars(row), "cells": [None if cell is None else vars(cell) for cell in row.cells]} for row in table.rows]
    return {**vars(table), "rows": rows}


def _picture(block: Block) -> dict[str, Any]:
    assert block.draw is not None
    pictures = {name: svg(block.draw, WIDTH, block.height, of) for name, of in (("light", LIGHT), ("dark", DARK))}
    encoded = {
        name: Markup("data:image/svg+xml;base64,") + base64.b64encode(image).decode()
        for name, image in pictures.items()
    }
    return {"alt": block.title, **encoded}


def estimate_table(title: str, axis: str, columns: Sequence[str], rows: dict[str, Sequence[Estimate | None]]) -> Table:
    """Estimates by row in words, to three decimals; the highest of each column is marked, where there are several."""
    best = [_highest([row[k] for row in rows.values()]) for k in range(len(columns))]
    shown = tuple(
        Row(name, "", tuple(_cell(e, e is not None and e is best[k]) for k, e in enumerate(row)))
        for name, row in rows.items()
    )
    return Table(title, axis, tuple(columns), shown)


def _highest(column: Sequence[Estimate | None]) -> Estimate | None:
    there = [estimate for estimate in column if estimate is not None]
    return max(there, key=lambda estimate: estimate.value) if len(there) > 1 else None


def _cell(estimate: Estimate | None, best: bool) -> Cell | None:
    if estimate is None:
        return None
    value, low, high = (figure(part, 3, False) for part in (estimate.value, estimate.ci_low, estimate.ci_high))
    interval = f"[{low}, {high}]" if estimate.n > 1 else ""  # one observation says nothing of its spread
    return Cell(value, interval, None, best)


def bars(found: dict[str, Estimate], label: str) -> Draw:
    """A row per name: its estimate from zero on, with the interval."""

    def draw(canvas: Figure, theme: Theme) -> None:
        axes = canvas.subplots()
        for place, (name, e) in enumerate(reversed(found.items())):
            axes.barh(place, e.value, height=0.55, color=theme.colours[0 if name != "random" else 5], alpha=0.75)
            axes.plot([e.ci_low, e.ci_high], [place, place], color=theme.ink, lw=1.4)
        axes.axvline(0, color=theme.muted, lw=0.8)
        names = [fill(drawable(name), NAME) for name in reversed(found)]
        axes.set_yticks(range(len(found)), names, color=theme.ink)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(label)

    return draw


def curves(found: dict[str, tuple[Sequence[float], Sequence[float]]], x_label: str, y_label: str) -> Draw:
    """Lines by name, given as x and y; dashed where the colours begin again."""

    def draw(canvas: Figure, theme: Theme) -> None:
        axes = canvas.subplots()
        for k, (name, (x, y)) in enumerate(found.items()):
            again, colour = divmod(k, len(theme.colours))
            style = ("-", "--", ":")[again % 3]
            axes.plot(x, y, style, color=theme.colours[colour], lw=1.8, label=drawable(name))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if len(found) > 1:
            axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), handlelength=2.2)

    return draw
