"""What people were asked about sequences and what they answered; an answer is replaced, never overwritten.

annotation_items/<sheet_id>.parquet   the items of one sheet, written before the sheet is
annotations/<time>-<digest>.parquet   the new answers of one import
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from storage.clock import store_time
from storage.database import rows, session
from storage.digests import digest_of
from storage.errors import InputError
from storage.locks import locked
from storage.schemas import SCHEMAS
from storage.store import Store
from storage.tables import part_names, read_part, write_part

NAMED = 5  # items in a message


@dataclass(frozen=True)
class Item:
    """A sequence that people are asked about, as one run ranked it for one query."""

    run_id: str
    query_id: str
    sequence_id: int
    method: str
    model: str
    influence: float
    influence_rank: int
    sparsity: float | None
    is_spurious: bool | None

    @property
    def item_id(self) -> str:
        """A name that says nothing of the rest, begins with a letter so that no spreadsheet takes it for a number,
        and is the same in every sheet."""
        return f"item-{digest_of([self.run_id, self.query_id, self.sequence_id])[:12]}"


@dataclass(frozen=True)
class Answer:
    """What one person said of one item."""

    item_id: str
    annotator: str
    description: str
    relationship: str
    is_relevant: bool


@dataclass(frozen=True)
class Recorded:
    """What became of some answers."""

    new: int
    known: int
    replaced: int


def write_items(store: Store, sheet_id: str, items: Sequence[Item]) -> None:
    """Keep the key of a sheet: what its items are. Writing the same sheet again changes nothing."""
    records = [{"sheet_id": sheet_id, "item_id": item.item_id, **asdict(item)} for item in items]
    columns = {name: [record[name] for record in records] for name in SCHEMAS["annotation_items"].names}
    write_part(store, "annotation_items", sheet_id, columns=columns)


def known_items(store: Store) -> set[str]:
    """Names of all items that people were asked about."""
    sheets = part_names(store, "annotation_items")
    tables = [read_part(store, "annotation_items", sheet, columns=["item_id"]) for sheet in sheets]
    return {name for table in tables for name in table["item_id"].to_pylist()}


def record_answers(store: Store, answers: Sequence[Answer], replace: bool) -> Recorded:
    """Keep what is new; an answer that somebody gave otherwise before is refused, or takes its place with `replace`."""
    with locked(store, "annotations"):
        with session(store) as connection:
            found = [Answer(**row) for row in rows(connection, "annotations/answers")]
        there = {(answer.item_id, answer.annotator): answer for answer in found}
        new = [answer for answer in answers if there.get((answer.item_id, answer.annotator)) != answer]
        changed = [answer for answer in new if (answer.item_id, answer.annotator) in there]
        if changed and not replace:
            named = ", ".join(f"{answer.item_id} by {answer.annotator}" for answer in changed[:NAMED])
            raise InputError(
                f"answers to import into store {store.root}",
                expected="those that are there already, or new ones",
                found=f"{len(changed):,} that somebody gave otherwise before: {named}",
                remedy="Add --replace, and they take the place of the earlier ones.",
            )
        if new:
            now = store_time(store)
            columns = {name: [getattr(answer, name) for answer in new] for name in Answer.__dataclass_fields__}
            name = f"{now:%Y%m%dT%H%M%S%f}-{digest_of(columns)[:8]}"
            write_part(store, "annotations", name, columns=columns | {"imported_at": [now] * len(new)})
    return Recorded(len(new) - len(changed), len(answers) - len(new), len(changed))
