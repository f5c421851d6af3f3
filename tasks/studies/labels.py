"""Names in figures: as they are where the figures' font shows them right, else a number that the tables explain."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from tasks.fact_plots import drawable

LONGEST = 28  # characters of a name in a figure


def in_figures(names: Sequence[str], kind: str) -> dict[str, str]:
    """What each name is called in a figure, by the name: itself, or `kind` and its place where it cannot be drawn.

    Elsewhere a letter that the font lacks becomes a box; right-to-left scripts and marks matplotlib sets wrong.
    """
    return {
        name: _composed(name) if len(name) <= LONGEST and _is_drawable(name) else f"{kind} {place}"
        for place, name in enumerate(names, start=1)
    }


def in_tables(labels: dict[str, str]) -> dict[str, str]:
    """What each name is called in a table beside the figure: the name, after what the figure says instead."""
    return {name: name if label == _composed(name) else f"{label}: {name}" for name, label in labels.items()}


def _is_drawable(text: str) -> bool:
    """Whether every character of the text stands in the figures' font and is set there as it is read."""
    composed = _composed(text)
    return drawable(composed) == composed and all(
        unicodedata.category(character)[0] not in "CM" and unicodedata.bidirectional(character) not in {"R", "AL", "AN"}
        for character in composed
    )


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)
