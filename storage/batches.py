"""Batches of the inbox under way: which queries are traced together, and how many times that was begun.

Written down before a batch is traced, because which queries share a run is part of its identity: a trace that was
killed goes on only with the same ones, whatever was submitted since.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from storage.digests import digest_of
from storage.places import Place, entries
from storage.store import Store, read_json, write_json

FOLDER = "pending"  # under work/


@dataclass(frozen=True)
class Batch:
    """Queries whose common trace has not come to its end."""

    query_ids: tuple[str, ...]
    attempts: int  # traces of it that were begun


def unfinished_batches(store: Store) -> list[Batch]:
    """The batches that were begun, in the order of their names."""
    found = entries(store.root / "work" / FOLDER, ".json")
    values = [read_json(found[name].place) for name in sorted(found) if not name.startswith(".")]
    return [Batch(tuple(value["query_ids"]), value["attempts"]) for value in values]


def begin_batch(store: Store, query_ids: Sequence[str]) -> int:
    """Note that a trace of these queries begins; which attempt at them it is, counted from one."""
    attempts = _attempts(store, query_ids) + 1
    write_json(_note(store, query_ids), asdict(Batch(tuple(query_ids), attempts)))
    return attempts


def discount_attempt(store: Store, query_ids: Sequence[str]) -> None:
    """Take back the last attempt's count: it ended for a reason that is not the queries' own."""
    write_json(_note(store, query_ids), asdict(Batch(tuple(query_ids), _attempts(store, query_ids) - 1)))


def end_batch(store: Store, query_ids: Sequence[str]) -> None:
    """Forget a batch: its queries were answered, failed, or are traced otherwise."""
    _note(store, query_ids).unlink(missing_ok=True)


def _attempts(store: Store, query_ids: Sequence[str]) -> int:
    note = _note(store, query_ids)
    return read_json(note)["attempts"] if note.exists() else 0


def _note(store: Store, query_ids: Sequence[str]) -> Place:
    return store.root / "work" / FOLDER / f"{digest_of(list(query_ids))[:32]}.json"
