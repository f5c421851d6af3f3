"""What studies share: the run that is read, the SQL that a figure rests on, and colours of a matrix."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import QuadMesh
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from storage.database import query, statement
from storage.errors import InputError
from storage.pages import visible
from storage.store import Store
from tasks.chosen import find_run
from tasks.fact_plots import Draw, Theme, drawable
from tasks.fact_tables import Cell, Row, Table
from tasks.methods import GRADIENT

PAPER = {"#ffffff": "#f6f4ef", "#12171a": "#1a2126"}  # the ground of an empty cell, by what is written on colours


@dataclass(frozen=True)
class Asked:
    """What a study reads: one complete run."""

    connection: duckdb.DuckDBPyConnection
    store: Store
    row: dict[str, Any]  # of `runs`

    @property
    def run_id(self) -> str:
        """Its name."""
        return self.row["run_id"]

    def table(self, name: str, **parameters: Any) -> pa.Table:
        """The rows of sql/studies/<name>.sql."""
        return query(self.connection, f"studies/{name}", run=self.run_id, **parameters)

    def sql(self, name: str, **parameters: Any) -> str:
        """That statement as `headwater sql` takes it, the parameters filled in."""
        return filled(name, run=self.run_id, **parameters)

    def origin(self) -> tuple[tuple[str, str], ...]:
        """How the run was made, for the foot of a page."""
        row = self.row
        return (
            ("store", visible(str(self.store.root))),
            ("run", self.run_id),
            ("method", row["method"]),
            ("model", row["model"]),
            ("finished", f"{row['finished_at']:%Y-%m-%d %H:%M} UTC"),
            ("training sequences", f"{row['n_sequences']:,}"),
            ("factors", row["factors_id"]),
            ("computed in", f"{row['precision']} on {row['device']}"),
            ("numerics", row["code_revision"]),
        )


def examine(connection: duckdb.DuckDBPyConnection, store: Store, run: str) -> Asked:
    """The run of that id, or the latest."""
    return Asked(connection, store, find_run(connection, store, run))


def require_gradients(asked: Asked) -> None:
    """Refuse a run whose scores are no influences: of words, of hidden states, of chance."""
    if asked.row["method"] not in GRADIENT:
        raise _refused(asked, "influences in nats", f"scores of its method {asked.row['method']}")


def require_layers(asked: Asked, found: pa.Table) -> None:
    """Refuse a run whose method splits no influence by layer, or whose queries no sequence raised."""
    if not found.num_rows:
        raise _refused(asked, "positive influences with their layers", f"none, of its method {asked.row['method']}")


def _refused(asked: Asked, expected: str, found: str) -> InputError:
    return InputError(
        f"run {asked.run_id} of store {asked.store.root}",
        expected=expected,
        found=found,
        remedy="Trace with a method that compares gradients (ekfac, kfac, cg, identity), or name another run (--run).",
    )


def require_words(where: str, found: Sequence[Any]) -> None:
    """Refuse to compare words where no query holds one: `found` are shares of words, none of such a query."""
    if all(share is None for share in found):
        raise InputError(
            where,
            expected="a query that holds a word, so that words in common can be counted",
            found="letters, digits and marks in none of them",
            remedy="Ask about queries with words: headwater trace.",
        )


def filled(name: str, **parameters: Any) -> str:
    """The text of sql/studies/<name>.sql without its first lines of comment, numbers and words in their places."""
    lines = [line for line in statement(f"studies/{name}").splitlines() if not line.lstrip().startswith("--")]
    text = "\n".join(lines).strip()
    return re.sub(r"\$(\w+)", lambda found: _literal(parameters[found[1]]), text)


def _literal(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, (int, float)):
        return f"{value}"
    return "'" + str(value).replace("'", "''") + "'"


def plain_table(
    title: str,
    axis: str,
    columns: Sequence[str],
    rows: Sequence[tuple[str, Sequence[str | None]]],
    words: Sequence[str] = (),
) -> Table:
    """A table of words and numbers that have no interval; `words` are the columns that hold sentences."""
    shown = tuple(
        Row(name, "", tuple(None if value is None else Cell(value, "", None) for value in values))
        for name, values in rows
    )
    return Table(title, axis, tuple(columns), shown, words=tuple(words))


def shades(theme: Theme, colour: int = 0) -> LinearSegmentedColormap:
    """From the page's paper to one of its colours, ever heavier: read without seeing red or green."""
    return LinearSegmentedColormap.from_list("share", [PAPER[theme.on_colour], theme.colours[colour]])


def plain_powers(axis: Axis) -> None:
    """Numbers at the powers of ten of a logarithmic axis, or at some of them."""
    axis.set_major_locator(LogLocator(numticks=4))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def heat_map(
    values: np.ndarray, rows: Sequence[str], columns: Sequence[str], x_label: str, y_label: str, unit: str
) -> Draw:
    """A matrix from zero up, [row, column], the first row on top; without names the rows are a continuum."""

    def draw(canvas: Figure, theme: Theme) -> None:
        axes = canvas.subplots()
        image = axes.pcolormesh(values, cmap=shades(theme), vmin=0)
        axes.invert_yaxis()
        axes.grid(False)
        axes.set_xticks(np.arange(len(columns)) + 0.5, list(map(drawable, columns)))
        axes.set_yticks(np.arange(len(rows)) + 0.5, list(map(drawable, rows)), color=theme.ink)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        _scale(canvas, image, axes, 0.04, unit)

    return draw


@dataclass(frozen=True)
class Signed:
    """A matrix of numbers on both sides of zero, [row, column], with the names of both; NaN is empty."""

    title: str
    values: np.ndarray
    rows: Sequence[str]
    columns: Sequence[str]


def _short(value: float) -> str:
    """Two significant digits, without powers of ten where five characters hold the number."""
    text = f"{float(f'{value:.2g}'):.0f}" if 10 <= abs(value) < 99_500 else f"{value:.2g}"
    return text.replace("-", "−")


def signed_maps(found: Sequence[Signed], x_label: str, unit: str) -> Draw:
    """Matrices one below the other, each on a scale of its own: red above zero, teal below, numbers where they fit."""

    def draw(canvas: Figure, theme: Theme) -> None:
        colours = [theme.colours[2], PAPER[theme.on_colour], theme.colours[1]]
        shade = LinearSegmentedColormap.from_list("signed", colours)
        roomy = canvas.get_figwidth() > 0.55 * max(len(of.columns) for of in found)  # inches for the number of a cell
        for axes, of in zip(np.atleast_1d(canvas.subplots(len(found), 1)), found, strict=True):
            largest = float(np.nanmax(np.abs(of.values), initial=0)) or 1.0
            image = axes.pcolormesh(np.ma.masked_invalid(of.values), cmap=shade, vmin=-largest, vmax=largest)
            for (row, column), value in np.ndenumerate(of.values):
                if np.isfinite(value) and roomy:
                    heavy = abs(value) > 0.6 * largest
                    axes.text(column + 0.5, row + 0.5, _short(value), ha="center", va="center",
                              fontsize=7.5, color=theme.on_colour if heavy else theme.ink)  # fmt: skip
            axes.invert_yaxis()
            axes.grid(False)
            axes.set_title(of.title, loc="left", fontsize=9.5, color=theme.ink)
            axes.set_xticks(np.arange(len(of.columns)) + 0.5, of.columns, rotation=0 if roomy else 90)
            axes.set_yticks(np.arange(len(of.rows)) + 0.5, of.rows, color=theme.ink)
            _scale(canvas, image, axes, 0.03, unit)
        axes.set_xlabel(x_label)

    return draw


def _scale(canvas: Figure, image: QuadMesh, axes: Axes, width: float, unit: str) -> None:
    """The bar that says what colours mean, `width` as a part of the axes."""
    bar = canvas.colorbar(image, ax=axes, fraction=width, pad=0.02)
    bar.set_label(unit)
    bar.outline.set_visible(False)
    assert bar.solids is not None
    # matplotlib would draw its many steps as a picture of pixels; edges of their own colour leave no seams.
    bar.solids.set(rasterized=False, edgecolor="face")
