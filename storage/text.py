"""Corpus text made safe to show: what controls a terminal or hides order becomes visible."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """`text` with control and format characters replaced: newlines and tabs by arrows, the rest by their code."""
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    if character == "\n":
        return "↵"
    if character == "\t":
        return "⇥"
    if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co"} and character != "\u200d":
        return f"<{ord(character):04x}>"
    return character
