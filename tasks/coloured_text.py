"""A text whose tokens carry numbers, as pages without scripts show it: red raised, teal lowered, on a printed scale."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from storage.pages import number

LEVELS = 20  # steps of colour from none to the strongest; tokens.css has one rule for each
JOINERS = "\u200c\u200d"
SCALE = (-1.0, -0.25, 0.0, 0.25, 1.0)  # shares of the largest value that the scale names, at equal distances


@dataclass(frozen=True)
class ColouredText:
    """Tokens of one sequence in order, and a number for each; none where there is none."""

    name: str
    tokens: Sequence[str]
    values: Sequence[float | None]


def coloured(text: ColouredText) -> dict[str, Any]:
    """What the template shows: each token with its side, its step of colour and its number, and the scale."""
    largest = max((abs(value) for value in text.values if value is not None), default=0.0)
    return {
        "name": text.name,
        "tokens": [
            {"word": word, "kind": _kind(word, value, largest), "said": f"token {k}: {_said(value)}"}
            for k, (word, value) in enumerate(zip(text.tokens, text.values, strict=True))
        ],
        "steps": [f"{_side(k)} level-{abs(k)}" for k in range(-LEVELS, LEVELS + 1)],
        "scale": [_said(part * largest) for part in SCALE],
    }


def _kind(word: str, value: float | None, largest: float) -> str:
    joined = " joined" if word and all(unicodedata.category(c)[0] == "M" or c in JOINERS for c in word) else ""
    return f"{_side(value or 0.0)} level-{_level(value or 0.0, largest)}{joined}"


def _side(value: float) -> str:
    return "lowered" if value < 0 else "raised"


def _level(value: float, largest: float) -> int:
    """The square root of the share, as everywhere: small values stay in sight."""
    return round(LEVELS * math.sqrt(abs(value) / largest)) if largest > 0 else 0


def _said(value: float | None) -> str:
    if value is None:
        return "nothing predicts it"
    return ("+" if value > 0 else "") + number(float(f"{value:.4g}"))
