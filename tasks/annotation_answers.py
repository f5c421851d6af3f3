"""Annotation answers: sheets that came back, read, held against what was asked, and kept.

Nothing is kept before every row of every sheet is understood; the same sheet again changes nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from storage.annotations import NAMED, Answer, Recorded, known_items, record_answers
from storage.errors import InputError, MismatchError
from storage.sheets import Line, read_sheet
from storage.store import Store
from tasks.annotation_sheets import ANNOTATOR, ANSWERS, ITEM

DESCRIPTION, RELATIONSHIP = ANSWERS
NOT_RELEVANT = re.compile(r"\W*irrelevant\W*", re.IGNORECASE)
# Words by which somebody may have meant it who wrote more, or wrote it otherwise.
LIKE_IT = re.compile(r"irrel|unrelated|(not|no)\s+(relevan|relat|connect)|nothing (to do|in common)", re.IGNORECASE)


@dataclass
class Readings:
    """What stood in the sheets."""

    answers: list[Answer] = field(default_factory=list)
    n_rows: int = 0
    n_empty: int = 0
    n_repeated: int = 0
    incomplete: list[str] = field(default_factory=list)  # rows with one answer of two
    doubtful: list[str] = field(default_factory=list)  # relationships that may mean irrelevant and are counted as more

    @property
    def annotators(self) -> Counter[str]:
        """Answers by annotator."""
        return Counter(answer.annotator for answer in self.answers)


def import_sheets(
    store: Store,
    paths: Sequence[str | Path],
    annotator: str | None = None,
    encoding: str | None = None,
    replace: bool = False,
) -> tuple[Readings, Recorded]:
    """Keep the answers of sheets; `annotator` is who filled in the rows that name nobody."""
    lines = [line for path in paths for line in _lines(path, annotator, encoding)]
    _require_items(store, lines)
    found = Readings()
    seen: dict[tuple[str, str], tuple[Answer, str]] = {}
    for line in lines:
        found.n_rows += 1
        answer = _answer(line, annotator, found)
        if answer is None:
            continue
        key = (answer.item_id, answer.annotator)
        if key in seen and seen[key][0] != answer:
            raise InputError(
                f"sheet {line.where}",
                expected=f"one answer of {answer.annotator} to {answer.item_id}",
                found=f"another than in {seen[key][1]}",
                remedy="Remove one of the two rows, or name the other person there.",
            )
        if key in seen:
            found.n_repeated += 1
            continue
        seen[key] = (answer, line.where)
        found.answers.append(answer)
    return found, record_answers(store, found.answers, replace)


def _lines(path: str | Path, annotator: str | None, encoding: str | None) -> Iterator[Line]:
    needed = (ITEM, *ANSWERS) if annotator else (ITEM, *ANSWERS, ANNOTATOR)
    for line in read_sheet(path, needed, (ANNOTATOR,) if annotator else (), encoding):
        yield Line(f"{path}, {line.where}", line.cells)


def _require_items(store: Store, lines: Sequence[Line]) -> None:
    """Refuse rows about what this store never asked about."""
    known = known_items(store)
    unknown = [line for line in lines if line.cells[ITEM] not in known]
    if not unknown:
        return
    if len(unknown) == len(lines):
        raise MismatchError(
            f"the {len(lines):,} rows to import",
            expected=f"items that store {store.root} asked about, of which there are {len(known):,}",
            found=f"none of them, the first {lines[0].cells[ITEM][:40]!r}",
            remedy="Name the store that the sheet was exported from (--store), or export from this one first.",
        )
    named = "; ".join(f"{line.where}: {line.cells[ITEM][:40]!r}" for line in unknown[:NAMED])
    raise InputError(
        f"{len(unknown):,} of {len(lines):,} rows to import",
        expected="items as they were exported",
        found=named,
        remedy=f"Restore the column {ITEM!r} of these rows, or remove them.",
    )


def _answer(line: Line, annotator: str | None, found: Readings) -> Answer | None:
    """The answer of a row; None, and counted, where it has none or half of one."""
    given = {name: unicodedata.normalize("NFC", line.cells[name]) for name in ANSWERS}
    if not any(given.values()):
        found.n_empty += 1
        return None
    if not all(given.values()):
        found.incomplete.append(f"{line.where}: no {next(name for name in ANSWERS if not given[name])}")
        return None
    who = " ".join(unicodedata.normalize("NFC", line.cells.get(ANNOTATOR) or annotator or "").split())
    if not who:
        raise InputError(
            f"sheet {line.where}",
            expected=f"a name under {ANNOTATOR!r} beside an answer",
            found="none",
            remedy="Write it there, or say who filled in all rows without one: --annotator NAME.",
        )
    is_relevant = NOT_RELEVANT.fullmatch(given[RELATIONSHIP]) is None
    if is_relevant and LIKE_IT.search(given[RELATIONSHIP]):
        found.doubtful.append(f"{line.where}: {given[RELATIONSHIP]}")
    return Answer(line.cells[ITEM], who, given[DESCRIPTION], given[RELATIONSHIP], is_relevant)
