"""Pruning: what a store can do without, found first and then removed: old runs, what only they used, leftovers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from storage.leftovers import Leftover, find_leftovers, remove_leftover
from storage.locks import is_held
from storage.retention import (
    RunSummary,
    Unused,
    delete_runs,
    list_runs,
    older_runs,
    remove_unused,
    stale_runs,
    unused_without,
)
from storage.sequences import corpus_fingerprint, current_parts
from storage.store import Store


@dataclass(frozen=True)
class Pruning:
    """What would go."""

    runs: tuple[RunSummary, ...]
    unused: tuple[Unused, ...]
    leftovers: tuple[Leftover, ...]

    @property
    def n_bytes(self) -> int:
        """What all of it takes."""
        return sum(item.n_bytes for item in (*self.runs, *self.unused, *self.leftovers))


def plan_pruning(
    store: Store, older_than: timedelta | None, keep: int | None, broken_off: timedelta | None, settled: timedelta
) -> Pruning:
    """Complete runs past an age and not among the latest `keep`, runs that were broken off so long ago, and the rest.

    None lets none of the runs go. What was made from the corpus as it is now stays for the next run, and so does what
    was written within the last `settled` time.
    """
    stale = [] if broken_off is None else stale_runs(store, broken_off)
    going = [*stale, *older_runs(store, older_than, keep)]
    names = {run.run_id for run in going}
    unused = unused_without(store, sorted(names), corpus_fingerprint(current_parts(store)))
    leftovers = find_leftovers(store, [run for run in list_runs(store) if run.run_id not in names], settled)
    known = {item.name for item in unused}
    return Pruning(tuple(going), tuple(unused), tuple(item for item in leftovers if item.name not in known))


def prune(store: Store, plan: Pruning, grace: timedelta) -> None:
    """Remove what was planned; files of runs that readers may have listed go after `grace`."""
    if plan.runs:
        delete_runs(store, [run.run_id for run in plan.runs], grace)
    for item in plan.unused:
        if not is_held(store, item.name):  # somebody fits them, or looks for them, at this moment
            remove_unused(store, item)
    for leftover in plan.leftovers:
        remove_leftover(leftover)
