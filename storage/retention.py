"""The runs of a store: complete, running or interrupted; what they take, what only they use, how they go."""

from __future__ import annotations

import json
import logging
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from storage.clock import store_time
from storage.database import rows, session
from storage.errors import InputError, StoreError
from storage.factors import fit_ids, read_fit
from storage.homes import HOUSED, NOWHERE, OWN, Homes, read_homes
from storage.locks import is_held, locked
from storage.merging import remove_superseded, settle
from storage.places import entries, remove_tree, tree_bytes
from storage.schemas import AFTERTHOUGHTS
from storage.staging import discard, read_note
from storage.store import Store, safe_name
from storage.tables import has_part, read_part, write_part

UNCURVED = {
    "identity", "bm25", "tfidf", "lucene", "random", "tracin", "embedding", "tracin+embedding", "bm25plus",
    "random_target",
}  # fmt: skip  # methods that need no factors
USES = "uses"  # the note of a run that is under way
GRACE = timedelta(hours=1)  # that a reader's longest query may take
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSummary:
    """A line of the list of runs; what an incomplete run does not know yet is None."""

    run_id: str
    state: str  # complete, running or interrupted
    at: datetime | None  # finished, or worked on last
    n_bytes: int
    method: str | None = None
    model: str | None = None
    n_queries: int | None = None
    n_sequences: int | None = None
    seconds: float | None = None
    facts: dict[str, Any] | None = None
    uses: dict[str, Any] | None = None  # of what was made what it reads: its row, or what it noted when it began


def list_runs(store: Store) -> list[RunSummary]:
    """Every run, those that are incomplete first, then the latest."""
    homes = read_homes(store)
    sizes = _own_bytes(store)
    with session(store) as connection:
        found = rows(connection, "housekeeping/runs")
    complete = [_summary(row, homes, sizes) for row in found]
    known = {run.run_id for run in complete}
    work = {path.name for path in (store.root / "work").glob("run-*") if path.is_dir()}
    open_runs = sorted({run for run in sizes if homes.home(run) == OWN} | work - set(homes.of_runs))
    return [_open_run(store, run, sizes.get(run, 0)) for run in open_runs if run not in known] + complete


def _summary(row: dict[str, Any], homes: Homes, sizes: dict[str, int]) -> RunSummary:
    run_id = row["run_id"]
    stages = json.loads(row["stages"])
    return RunSummary(
        run_id,
        "complete",
        row["finished_at"],
        homes.of_runs[run_id].n_bytes if homes.home(run_id) > OWN else sizes.get(run_id, 0),
        row["method"],
        row["model"],
        row["n_queries"],
        row["n_sequences"],
        sum(stage["seconds"] for stage in stages.values()),
        row,
        row,
    )


def _open_run(store: Store, run_id: str, table_bytes: int) -> RunSummary:
    staged, modified = tree_bytes(store.root / "work" / safe_name(run_id))
    listed = (entries(store.relation(relation), ".parquet").get(run_id) for relation in HOUSED)
    latest = max([modified, *(entry.modified for entry in listed if entry)])
    state = "running" if is_held(store, run_id) else "interrupted"
    at = _time(latest) if latest else None
    return RunSummary(run_id, state, at, table_bytes + staged, uses=read_note(store, run_id, USES))


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)


def _own_bytes(store: Store) -> dict[str, int]:
    """Bytes of each run's own files, complete or not."""
    sizes: dict[str, int] = {}
    for relation in HOUSED:
        for run, entry in entries(store.relation(relation), ".parquet").items():
            if run != "schema":
                sizes[run] = sizes.get(run, 0) + entry.n_bytes
    return sizes


def find_run(store: Store, run_id: str) -> RunSummary:
    """The run of that name, or the latest complete one."""
    found = list_runs(store)
    wanted = [r for r in found if (r.state == "complete" if run_id == "latest" else r.run_id == run_id)]
    if not wanted:
        known = ", ".join(run.run_id for run in found[:10])
        raise InputError(
            f"run {run_id!r} of store {store.root}",
            expected=f"latest or one of {known}" if known else "a run",
            found="no run of that name" if known else "none",
            remedy="List them: headwater runs list --store PATH",
        )
    return wanted[0]


def delete_runs(store: Store, run_ids: list[str], grace: timedelta = GRACE) -> int:
    """Let runs vanish from every relation at once; returns how many files could go at once.

    Their queries stay answered: what was deleted is not to be traced again until somebody asks for it.
    Files that readers may have listed leave the disk with the first compaction or deletion after `grace`.
    """
    with ExitStack() as held:
        for run_id in sorted(run_ids):
            held.enter_context(locked(store, run_id, timeout=0))  # a run that is at work is not deleted under itself
        with locked(store, "compact"):
            _keep_answers(store, run_ids)
            settle(store, {run_id: (NOWHERE, 0) for run_id in run_ids})
            for run_id in run_ids:
                for relation in AFTERTHOUGHTS:
                    store.file(relation, run_id).unlink(missing_ok=True)
                    remove_tree(store.relation(relation) / safe_name(run_id))
                discard(store, run_id)
            return remove_superseded(store, grace)


def _keep_answers(store: Store, run_ids: list[str]) -> None:
    """Note which queries the complete ones of these runs answered, before they go."""
    pairs: list[tuple[str, str]] = []
    for run_id in run_ids:
        if has_part(store, "runs", run_id):
            try:
                found = read_part(store, "run_queries", run_id, columns=["query_id"])["query_id"].to_pylist()
            except StoreError as error:  # damaged, and deleted for that; its queries wait again
                log.warning("run %s is deleted without a note of which queries it answered: %s", run_id, error)
                continue
            pairs += [(query_id, run_id) for query_id in found]
    if pairs:
        now = store_time(store)
        queries, runs = map(list, zip(*pairs, strict=True))
        columns = {"query_id": queries, "run_id": runs, "deleted_at": [now] * len(pairs)}
        write_part(store, "deleted_answers", f"{now:%Y%m%dT%H%M%S%f}", columns=columns)


@dataclass(frozen=True)
class Unused:
    """Factors, or self-influences under some, that no run needs."""

    kind: str  # factors or self-influences
    name: str
    n_bytes: int


def unused_without(store: Store, run_ids: list[str], spared_corpus: str | None = None) -> list[Unused]:
    """What the named runs use and no other does, complete, running or interrupted.

    Not what was made from `spared_corpus`, a fingerprint.
    """
    runs = [run.uses for run in list_runs(store) if run.uses]
    going = [r for r in runs if r["run_id"] in run_ids and r["corpus_fingerprint"] != spared_corpus]
    staying = [r for r in runs if r["run_id"] not in run_ids]
    found = []
    for fit_id in fit_ids(store):
        if any(_made(store, fit_id, run) for run in going) and not any(_made(store, fit_id, run) for run in staying):
            found.append(Unused("factors", fit_id, tree_bytes(store.root / "factors" / fit_id)[0]))
    for factors_id in sorted(_factors_ids(going) - _factors_ids(staying)):
        size = tree_bytes(store.relation("self_influences") / safe_name(factors_id))[0]
        if size:
            found.append(Unused("self-influences", factors_id, size))
    return found


def _factors_ids(uses: list[dict[str, Any]]) -> set[str]:
    return {run["factors_id"] for run in uses if run["factors_id"]}


def _made(store: Store, fit_id: str, run: dict[str, Any]) -> bool:
    """Whether a run used a fit: it was made from the run's model, corpus, parameters and code."""
    source, parameters = read_fit(store, fit_id).made_from, json.loads(run["parameters"])
    if {parameters["method"]["method"], *parameters["method"]["beside"]} <= UNCURVED:
        return False
    facts = (run["model_fingerprint"], run["corpus_fingerprint"], parameters["fit"], run["code_revision"])
    return facts == (source["model"], source["corpus"], source["parameters"], source["code"])


def used_fits(store: Store, runs: list[RunSummary]) -> set[str]:
    """The fits that any of these runs used."""
    return {fit for fit in fit_ids(store) for run in runs if run.uses and _made(store, fit, run.uses)}


def remove_unused(store: Store, unused: Unused) -> bool:
    """Take factors or self-influences off the disk, unless a run has begun to use them; whether they went.

    They are computed anew when a run asks for them. A run notes what it uses before it looks whether it is there, and
    looks for factors under their lock, so that it either spares them or finds them gone.
    """
    if unused.kind == "factors":
        with locked(store, unused.name, timeout=0):
            if unused.name in used_fits(store, list_runs(store)):
                return False
            folder = store.root / "factors" / safe_name(unused.name)
            (folder / "manifest.json").unlink(missing_ok=True)  # first: without it the fit is absent
            remove_tree(folder)
        return True
    with locked(store, "compact"):
        if unused.name in _factors_ids([run.uses for run in list_runs(store) if run.uses]):
            return False
        remove_tree(store.relation("self_influences") / safe_name(unused.name))
    return True


def stale_runs(store: Store, settled: timedelta) -> list[RunSummary]:
    """The runs that were broken off and have not been worked on for so long."""
    limit = datetime.now(UTC).replace(tzinfo=None) - settled
    return [run for run in list_runs(store) if run.state == "interrupted" and run.at and run.at < limit]


def older_runs(store: Store, older_than: timedelta | None, keep: int | None) -> list[RunSummary]:
    """The complete runs that retention lets go: past the age and not among the latest `keep`."""
    if older_than is None and keep is None:
        return []
    complete = [run for run in list_runs(store) if run.state == "complete" and run.at]
    rest = complete[keep or 0 :]
    limit = None if older_than is None else store_time(store) - older_than
    return [run for run in rest if limit is None or (run.at and run.at < limit)]
