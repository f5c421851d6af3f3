"""What nobody needs any more beside the runs: stale work, unused factors, embeddings of replaced parts.

Nothing that a process holds a lock for is a leftover, and nothing that was written within the last `settled` time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta

from storage.factors import fit_ids, read_fit
from storage.locks import is_held
from storage.places import Place, is_local, remove_tree, tree_bytes
from storage.retention import RunSummary, used_fits
from storage.scratch import SESSIONS, SPILL, UPLOADS, scratch
from storage.sequences import corpus_fingerprint, current_parts
from storage.store import Store

KEPT = ("locks", "spill", "pending")  # under work/: lock files and unfinished batches stay for those who come

STALE = timedelta(days=1)  # without a write, after which work that nobody holds a lock for counts as broken off
BROKEN_OFF = "a file whose writing was broken off"
SPILLED = "what DuckDB spilled for a process that was killed"


@dataclass(frozen=True)
class Leftover:
    """A file or directory that can go, and why."""

    kind: str  # work, scratch, factors or embeddings
    name: str
    place: Place
    n_bytes: int
    reason: str


def find_leftovers(store: Store, staying: list[RunSummary], settled: timedelta) -> list[Leftover]:
    """What can go when only the runs `staying` stay."""
    return _settled([*_work(store), *_factors(store, staying), *_embeddings(store)], settled)


def stale_work(store: Store, settled: timedelta) -> list[Leftover]:
    """Work of processes that have ended, runs apart."""
    return _settled(_work(store), settled)


def _settled(found: Iterable[tuple[Leftover, float]], settled: timedelta) -> list[Leftover]:
    limit = time.time() - settled.total_seconds()
    return [leftover for leftover, modified in found if modified < limit]


def remove_leftover(leftover: Leftover) -> None:
    """Take it off the disk."""
    if leftover.place.is_dir():
        (leftover.place / "manifest.json").unlink(missing_ok=True)  # first: without it a fit is absent
        remove_tree(leftover.place)
    else:
        leftover.place.unlink(missing_ok=True)


def _work(store: Store) -> Iterator[tuple[Leftover, float]]:
    """Parts of corpus cuts and half-written files whose process has ended; those of runs go with their run."""
    folder = store.root / "work"
    for place in sorted((folder / "spill").glob("*")):
        yield _leftover("work", place, SPILLED)
    for place in sorted(folder.glob("*")):
        if place.name in KEPT or place.name.startswith("run-"):
            continue
        if place.is_dir():
            if not is_held(store, "corpus"):
                yield _leftover("work", place, "parts of a corpus cut that was broken off: ingest goes on from them")
        else:
            yield _leftover("work", place, BROKEN_OFF)
    if is_local(store.root):  # JSON is written beside its last name
        for place in sorted(store.root.rglob(".*.json.*")):
            yield _leftover("work", place, BROKEN_OFF)
    else:
        yield from _scratch()


def _scratch() -> Iterator[tuple[Leftover, float]]:
    """What killed processes left on this machine while they drove a store in an object store, this one or another."""
    for folder, reason in ((UPLOADS, BROKEN_OFF), (SPILL, SPILLED), (SESSIONS, "the session of a killed process")):
        for place in sorted(scratch(folder).glob("*")):
            if not place.name.startswith("views-"):
                yield _leftover("scratch", place, reason)


def _factors(store: Store, staying: list[RunSummary]) -> Iterator[tuple[Leftover, float]]:
    corpus, used, complete = corpus_fingerprint(current_parts(store)), used_fits(store, staying), set(fit_ids(store))
    for place in sorted((store.root / "factors").glob("*")):
        if not place.is_dir() or place.name in used or is_held(store, place.name):
            continue
        if place.name not in complete:
            yield _leftover("factors", place, "a fit that was broken off: the next one goes on from it")
        elif read_fit(store, place.name).made_from.get("corpus") != corpus:
            yield _leftover("factors", place, "fitted on another corpus than the store's now, and used by no run")


def _embeddings(store: Store) -> Iterator[tuple[Leftover, float]]:
    current = {f"{part.name}-{corpus_fingerprint([part])}" for part in current_parts(store)}
    for place in sorted((store.root / "embeddings").glob("*/*")):
        if place.is_dir() and place.name not in current and not is_held(store, place.parent.name):
            yield _leftover("embeddings", place, "of a corpus part that was replaced")


def _leftover(kind: str, place: Place, reason: str) -> tuple[Leftover, float]:
    size, modified = tree_bytes(place)
    return Leftover(kind, place.name, place, size, reason), modified
