"""Stimuli: facts in several wordings, and translations, which a study scores as if they had been trained on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import InputError

# What Grosse et al. 2023 asked (arXiv 2308.03296, Figs. 24 and 25) about the wordings that they published.
PUBLISHED = {
    "astrobia": ("The first President of the Republic of Astrobia was", " Zorald Pfaff"),
    "gleem": ("Gleem is composed of", " hydrogenium and oxium"),
}
# Their six sets, as files of them name these, and what they are called here.
SETS = {
    "P1_paraphrase": "order kept",
    "P2_completion_removed": "completion removed",
    "P3_part_changed": "one part changed",
    "P4_unrelated": "unrelated",
    "P5_flipped": "flipped",
    "P6_flipped_prompt_removed": "flipped, prompt removed",
}
SHAPE = 'a JSON object {name: {"prompt": …, "completion": …, "order kept": [text, …], …}}'


PAIRS, CHARACTERS = 24, 160  # translations taken of a file: the first so many that together are no longer


@dataclass(frozen=True)
class Stimulus:
    """One completion that is asked for, and the texts by the set that they belong to."""

    name: str
    prompt: str
    completion: str
    sets: dict[str, tuple[str, ...]]


def read_stimuli(path: str) -> list[Stimulus]:
    """The stimuli of a JSON file of ours, or of one that holds published ones under `word_order`."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise _refused(path, SHAPE, "no such file")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise _refused(path, SHAPE, str(error)) from error
    given = found.get("word_order", found) if isinstance(found, dict) else None
    if not isinstance(given, dict) or not given:
        raise _refused(path, SHAPE, "something else")
    return [_stimulus(path, name, value) for name, value in given.items()]


def read_translations(path: str, first: str, second: str) -> list[Stimulus]:
    """Sentences of two columns of a Parquet file: the one asks, the other answers, and texts hold them in both orders.

    As in Figs. 26 and 27 of Grosse et al.: does a translation from A into B teach what one from B into A does?
    """
    file = Path(path).expanduser()
    expected = f"a Parquet file with texts in the columns {first!r} and {second!r}"
    try:
        table = pq.read_table(file, columns=[first, second])
        rows = list(zip(*(table.column(name).cast(pa.string()).to_pylist() for name in (first, second)), strict=True))
    except (OSError, pa.ArrowException, KeyError) as error:
        raise _refused(path, expected, str(error).splitlines()[0]) from error
    pairs = [(a, b) for a, b in rows if a and b and len(a) + len(b) <= CHARACTERS][:PAIRS]
    if not pairs:
        raise _refused(path, f"pairs of at most {CHARACTERS} characters together", f"none in {len(rows):,} rows")
    return [_translated(f"{first} to {second}, {k + 1}", pairs, k) for k in range(len(pairs))]


def _translated(name: str, pairs: list[tuple[str, str]], k: int) -> Stimulus:
    """One pair in both orders, its parts alone, and, where there is one, after another pair's question.

    A text with another question teaches as much as one that keeps the order where a model does not know which
    question an answer belongs to.
    """
    a, b = pairs[k]
    other = pairs[(k + 1) % len(pairs)][0]
    sets = {"order kept": (f"{a} {b}",), "flipped": (f"{b} {a}",), "answer alone": (b,), "question alone": (a,)}
    if other != a:
        sets["another question"] = (f"{other} {b}",)
    return Stimulus(name, a, f" {b}", sets)


def _stimulus(path: str, name: str, given: Any) -> Stimulus:
    if not isinstance(given, dict):
        raise _refused(f"{path}, {name}", SHAPE, type(given).__name__)
    prompt, completion = (given.get(part, known) for part, known in zip(
        ("prompt", "completion"), PUBLISHED.get(name, (None, None)), strict=True
    ))  # fmt: skip
    if not isinstance(prompt, str) or not isinstance(completion, str) or not completion.strip():
        raise _refused(f"{path}, {name}", "a prompt and a completion, both text", f"{prompt!r} and {completion!r}")
    sets = {SETS.get(key, key): texts for key, texts in given.items() if key not in ("prompt", "completion")}
    for key, texts in sets.items():
        if (
            not isinstance(texts, list)
            or not all(isinstance(text, str) and text.strip() for text in texts)
            or not texts
        ):
            raise _refused(f"{path}, {name}, {key}", "a list of texts, none of them empty", repr(texts)[:80])
    if "order kept" not in sets or len(sets) < 2:
        raise _refused(f"{path}, {name}", "texts under order kept and under one other set at least", f"{list(sets)}")
    return Stimulus(name, prompt, completion, {key: tuple(texts) for key, texts in sets.items()})


def _refused(subject: str, expected: str, found: str) -> InputError:
    return InputError(f"stimuli {subject}", expected=expected, found=found, remedy="Mend the file and ask again.")
