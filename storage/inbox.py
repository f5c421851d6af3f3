"""The inbox: which queries wait for a trace, which failed and why, and the wish to try them again.

A query waits from its submission until a complete run holds it or an attempt fails. It stays answered when that run is
deleted; a retry lets it wait again. Queries of a trace by hand do not wait, unless somebody submits them too.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from storage.clock import TICK, store_time
from storage.database import rows, session
from storage.digests import digest_of
from storage.errors import InputError
from storage.prompts import Prompt, query_file, register_prompts
from storage.store import Store
from storage.tables import create_part, has_part, write_part

STATES = ("waiting", "failed", "answered")
LONGEST = 2000  # characters of an error that are kept
RELATION = "query_submissions"


def submit(store: Store, prompts: list[Prompt]) -> list[Prompt]:
    """Hand queries in for the next scheduled trace; those that the store did not know before.

    Safe from many processes at once. Killed in between, a query is registered and does not wait: submit it again.
    """
    new = register_prompts(store, prompts)
    asked = [prompt.query_id for prompt in prompts if not has_part(store, RELATION, query_file(prompt.query_id))]
    if asked:
        now = store_time(store, len(asked))
        for k, query_id in enumerate(asked):
            columns = {"query_id": [query_id], "submitted_at": [now + k * TICK]}
            create_part(store, RELATION, query_file(query_id), columns=columns)
    return new


def waiting_prompts(store: Store, most: int) -> list[Prompt]:
    """The queries that wait, those submitted first standing first, at most so many."""
    with session(store) as connection:
        return [Prompt(**row) for row in rows(connection, "inbox/waiting", most=most)]


def count_states(store: Store) -> dict[str, int]:
    """How many queries are in each state."""
    with session(store) as connection:
        found = {row["state"]: row["n"] for row in rows(connection, "inbox/counts")}
    return {state: found.get(state, 0) for state in STATES}


def query_states(store: Store, ids: Iterable[str] = ()) -> list[dict[str, Any]]:
    """State, run, last error and times of the named queries, of all without names; the latest submitted first."""
    with session(store) as connection:
        return rows(connection, "inbox/states", ids=list(ids))


def record_failures(store: Store, errors: dict[str, str]) -> None:
    """Note that queries, by id, could not be traced, and why; they wait no longer."""
    if errors:
        states = {row["query_id"]: row for row in query_states(store, errors)}
        columns = {
            "query_id": list(errors),
            "failed_at": [_after(states.get(query_id, {}), "retried_at", "deleted_at") for query_id in errors],
            "error": [error[:LONGEST] for error in errors.values()],
        }
        write_part(store, "query_failures", _name(columns), columns=columns)


def retry(store: Store, ids: Iterable[str] = ()) -> list[str]:
    """Let queries wait again: those named, which failed or whose run was deleted, or all that failed; their ids."""
    asked = list(dict.fromkeys(ids))
    states = {row["query_id"]: row for row in query_states(store, asked)}
    for query_id in asked:
        row = states.get(query_id)
        if row is None or not (row["state"] == "failed" or _is_deleted(row)):
            raise InputError(
                f"query {query_id!r}",
                expected="one that failed, or whose run was deleted",
                found=f"one that is {row['state']}" if row else "none of that id",
                remedy="See which there are: headwater status --store PATH",
            )
    chosen = asked or [query_id for query_id, row in states.items() if row["state"] == "failed"]
    if chosen:
        times = [_after(states[query_id], "failed_at", "deleted_at") for query_id in chosen]
        columns = {"query_id": chosen, "retried_at": times}
        write_part(store, "query_retries", _name(columns), columns=columns)
    return chosen


def _is_deleted(row: dict[str, Any]) -> bool:
    return row["state"] == "answered" and row["run_id"] is None


def _after(state: dict[str, Any], *events: str) -> datetime:
    """Now in UTC, or just after the last of the events where the machine's clock was set back since."""
    earlier = [state[event] + TICK for event in events if state.get(event)]
    return max([datetime.now(UTC).replace(tzinfo=None), *earlier])


def _name(columns: dict[str, list]) -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{digest_of(columns)[:8]}"
