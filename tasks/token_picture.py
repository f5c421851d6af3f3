"""A PNG of tokens on the colours of their influence, for places that show pictures but no page."""

from __future__ import annotations

import unicodedata
from io import BytesIO

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tasks.fact_plots import drawable

FONT = "DejaVu Sans Mono"
COLUMNS, LINES, POINTS = 92, 9, 11
RED, TEAL = (0.77, 0.20, 0.15), (0.0, 0.47, 0.45)


def token_picture(tokens: list[str], influences: np.ndarray) -> bytes:
    """A PNG of the lines around the strongest token, each token on its colour."""
    places = _places(tokens)
    peak = places[int(np.abs(influences).argmax())][0]
    first = max(0, min(peak - LINES // 2, places[-1][0] - LINES + 1))
    height = min(LINES, places[-1][0] - first + 1)
    # One column is .602 em wide in this font, so that boxes and letters agree without being measured.
    inches = (COLUMNS + 2) * 0.602 * POINTS / 72, (height + 0.6) * 1.7 * POINTS / 72
    figure = Figure(figsize=inches, dpi=144)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-1, COLUMNS + 1), ylim=(height + 0.3, -0.3))
    axes.set_axis_off()
    strength = np.sqrt(np.abs(influences) / max(float(np.abs(influences).max()), np.finfo(float).tiny))
    for (line, column), token, influence, alpha in zip(places, tokens, influences, strength, strict=True):
        if first <= line < first + height:
            word, top = token.rstrip("\n"), line - first
            colour = (*(RED if influence > 0 else TEAL), 0.7 * alpha)
            axes.fill_between([column, column + _width(word)], top + 0.06, top + 0.94, color=colour, linewidth=0)
            axes.text(
                column, top + 0.55, drawable(word, FONT), va="center",
                family=FONT, size=POINTS, parse_math=False,
            )  # fmt: skip
    image = BytesIO()
    FigureCanvasAgg(figure).print_png(image)
    return image.getvalue()


def _places(tokens: list[str]) -> list[tuple[int, int]]:
    """Line and column of each token, broken at the picture's edge and after line ends."""
    places, line, column = [], 0, 0
    for token in tokens:
        width = _width(token.rstrip("\n"))
        if column and column + width > COLUMNS:
            line, column = line + 1, 0
        places.append((line, column))
        line, column = (line + 1, 0) if token.endswith("\n") else (line, column + width)
    return places


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
