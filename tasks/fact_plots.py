"""Plots of a fact-tracing study, as SVG for light and for dark pages: methods, recall, saturation, parts of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from storage.pages import unseen
from tasks.evaluation.ranking import Estimate

WIDTH = 9.6  # inches: the page's column at 1 inch per 96 pixels or so


@dataclass(frozen=True)
class Theme:
    """Colours of a page that is light or dark."""

    ink: str
    muted: str
    line: str
    on_colour: str
    colours: tuple[str, ...]


# The colours are told apart by people who do not see red and green, and are of like weight on their ground.
LIGHT = Theme(
    "#1c2429", "#5f6b73", "#e5e2da", "#ffffff", ("#1d5f80", "#c43426", "#007974", "#a0700c", "#7a4d9b", "#5f6b73")
)
DARK = Theme(
    "#e4e8ea", "#97a3aa", "#2a3237", "#12171a", ("#7dbbdc", "#ff7a6c", "#3cc9bf", "#e0b04a", "#bd93df", "#97a3aa")
)
Draw = Callable[[Figure, Theme], None]
FONT = "DejaVu Sans"


def drawable(text: str, family: str = FONT) -> str:
    """Text for a figure, with a box for each character that the font lacks; drawn as it is, it would warn of each."""
    font = get_font(findfont(family))
    return "".join(c if font.get_char_index(ord(c)) and not unseen(c) else "□" for c in text)


def svg(draw: Draw, width: float, height: float, theme: Theme, ground: str = "none") -> bytes:
    """One drawing, width and height in inches, on a ground of that colour."""
    style: dict[Any, Any] = {
        "font.family": FONT, "font.size": 9, "svg.hashsalt": "headwater", "axes.edgecolor": theme.line,
        "axes.labelcolor": theme.muted, "text.color": theme.ink, "xtick.color": theme.muted,
        "ytick.color": theme.muted, "axes.grid": True, "grid.color": theme.line, "grid.linewidth": 0.7,
        "axes.axisbelow": True, "xtick.major.size": 0, "ytick.major.size": 0, "text.parse_math": False,
    }  # fmt: skip
    with rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.set_facecolor(ground)
        draw(figure, theme)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
            axes.spines[["top", "right"]].set_visible(False)
        image = BytesIO()
        FigureCanvasSVG(figure).print_svg(image, metadata={"Date": None})
    return image.getvalue()


# A slice has one colour in every plot; what has no colour of its own takes the next.
OWN_COLOURS = {"learned": 0, "known": 1, "never": 2, "all queries": 5}


def _colour(theme: Theme, name: str, k: int) -> str:
    return theme.colours[OWN_COLOURS.get(name, k % len(theme.colours))]


@dataclass(frozen=True)
class Marked:
    """One row of marks: a method, and its estimate in each series; None where there is none."""

    name: str
    estimates: tuple[Estimate | None, ...]


def marks(found: Sequence[Marked], series: Sequence[str], label: str) -> Draw:
    """Estimates with their intervals, a row per method and a colour per series."""

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        offsets = np.linspace(0.22, -0.22, len(series)) if len(series) > 1 else [0.0]
        for s, (name, offset) in enumerate(zip(series, offsets, strict=True)):
            there = [(len(found) - 1 - k, row.estimates[s]) for k, row in enumerate(found)]
            rows = [(place + offset, e) for place, e in there if e is not None]
            if not rows:
                continue
            y, estimates = zip(*rows, strict=True)
            value = np.array([e.value for e in estimates])
            spans = np.array([[e.value - e.ci_low, e.ci_high - e.value] for e in estimates]).T
            axes.errorbar(
                value, y, xerr=np.maximum(spans, 0), fmt="o", ms=5, lw=1.6, color=_colour(theme, name, s), label=name
            )
        axes.set_yticks(range(len(found)), [row.name for row in reversed(found)], color=theme.ink)
        axes.set_ylim(-0.6, len(found) - 0.4)
        axes.grid(axis="y", visible=False)
        axes.set_xlim(-0.015, 1.015)
        axes.set_xlabel(label)
        if len(series) > 1:
            axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), handletextpad=0.3)

    return draw


@dataclass(frozen=True)
class Curve:
    """Estimates along an axis."""

    name: str
    x: tuple[float, ...]
    estimates: tuple[Estimate, ...]


@dataclass(frozen=True)
class Panel:
    """Some curves over one axis."""

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    log_y: bool = False
    unit: bool = False  # y between 0 and 1


def panels(found: Sequence[Panel], ticks: Sequence[float] | None = None) -> Draw:
    """Curves with bands of their intervals, panel beside panel; places on the axis are evenly spaced powers."""

    def draw(figure: Figure, theme: Theme) -> None:
        for axes, panel in zip(np.atleast_1d(figure.subplots(1, len(found))), found, strict=True):
            for k, curve in enumerate(panel.curves):
                _band(axes, curve, _colour(theme, curve.name, k))
            axes.set_title(panel.title, loc="left", fontsize=9.5, color=theme.ink)
            axes.set_xlabel(panel.x_label)
            axes.set_ylabel(panel.y_label)
            _power_axis(axes, ticks or panel.curves[0].x)
            if panel.log_y:
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_minor_locator(NullLocator())
            if panel.unit:
                axes.set_ylim(-0.02, 1.02)
        handles, names = figure.axes[0].get_legend_handles_labels()
        if len(names) > 1:
            figure.legend(handles, names, frameon=False, loc="outside right upper", handlelength=1.4)

    return draw


def _band(axes: Axes, curve: Curve, colour: str) -> None:
    x = [_power(value) for value in curve.x]
    low, high = [e.ci_low for e in curve.estimates], [e.ci_high for e in curve.estimates]
    axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    axes.plot(x, [e.value for e in curve.estimates], color=colour, lw=1.8, marker="o", ms=3.5, label=curve.name)


def _power(value: float) -> float:
    """Where a number stands on an axis of powers that begins at 0."""
    return math.log2(value + 1)


def _power_axis(axes: Axes, values: Sequence[float]) -> None:
    """A tick at each value that has room, the last one always."""
    kept: list[float] = []
    room = (_power(max(values)) - _power(min(values))) / 9
    for value in sorted(set(values), reverse=True):
        if not kept or _power(kept[-1]) - _power(value) >= room:
            kept.append(value)
    axes.xaxis.set_major_locator(FixedLocator([_power(value) for value in kept]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: f"{round(2**place - 1):,}"))
    axes.xaxis.set_minor_locator(NullLocator())


def grid(values: np.ndarray, rows: Sequence[str], columns: Sequence[str], x_label: str, y_label: str) -> Draw:
    """Numbers between 0 and 1 as a heat map that says them too; NaN stays empty."""

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        low, high = (float(np.nanmin(values)), float(np.nanmax(values))) if not np.isnan(values).all() else (0.0, 1.0)
        for (row, column), value in np.ndenumerate(values):
            if math.isnan(value):
                continue
            depth = (value - low) / max(high - low, 1e-9)
            axes.fill_between(
                [column - 0.48, column + 0.48], row - 0.46, row + 0.46, linewidth=0, color=theme.colours[0],
                alpha=0.07 + 0.83 * depth,
            )  # fmt: skip
            axes.text(
                column, row, f"{value:.2f}".removeprefix("0"), ha="center", va="center", fontsize=8.5,
                color=theme.on_colour if depth > 0.6 else theme.ink,
            )  # fmt: skip
        axes.set_xticks(range(len(columns)), list(map(drawable, columns)))
        axes.set_yticks(range(len(rows)), list(map(drawable, rows)), color=theme.ink)
        axes.set_xlim(-0.55, len(columns) - 0.45)
        axes.set_ylim(len(rows) - 0.45, -0.55)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)

    return draw
