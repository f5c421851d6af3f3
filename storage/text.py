"""Text for people: that of a corpus made safe to show, and bytes in units that are read at a glance."""

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


def size(n_bytes: float | None) -> str:
    """Bytes in the unit that leaves one to three digits; – for none."""
    if n_bytes is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"
