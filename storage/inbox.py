"""The inbox: which queries wait for a trace, which failed and why, and the wish to try them again.

A query waits from its submission until a complete run holds it or an attempt fails; a retry lets it wait again.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from storage.database import rows, session
from storage.digests import digest_of
from storage.errors import InputError
from storage.prompts import Prompt
from storage.store import Store
from storage.tables import write_part

STATES = ("waiting", "failed", "answered")
LONGEST = 2000  # characters of an error that are kept
TICK = timedelta(microseconds=1)


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
            "failed_at": [_after(states.get(query_id, {}).get("retried_at")) for query_id in errors],
            "error": [error[:LONGEST] for error in errors.values()],
        }
        write_part(store, "query_failures", _name(columns), columns=columns)


def retry(store: Store, ids: Iterable[str] = ()) -> list[str]:
    """Let failed queries wait again, all of them without names; their ids. One that did not fail is refused."""
    asked = list(dict.fromkeys(ids))
    states = {row["query_id"]: row for row in query_states(store, asked)}
    for query_id in asked:
        state = states.get(query_id, {}).get("state")
        if state != "failed":
            raise InputError(
                f"query {query_id!r}",
                expected="one that failed",
                found=f"one that is {state}" if state else "none of that id",
                remedy="See which there are: headwater status --store PATH",
            )
    failed = [query_id for query_id, row in states.items() if row["state"] == "failed"]
    if failed:
        columns = {"query_id": failed, "retried_at": [_after(states[query_id]["failed_at"]) for query_id in failed]}
        write_part(store, "query_retries", _name(columns), columns=columns)
    return failed


def _after(earlier: datetime | None) -> datetime:
    """Now in UTC, or just after `earlier` where the machine's clock was set back since."""
    now = datetime.now(UTC).replace(tzinfo=None)
    return now if earlier is None else max(now, earlier + TICK)


def _name(columns: dict[str, list]) -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{digest_of(columns)[:8]}"
