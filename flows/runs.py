"""What a Prefect server knows of a store: flow runs that run, wait or failed of late."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import get_current_settings

from storage.errors import InputError
from storage.places import find_place
from storage.store import Store

RECENT = timedelta(days=1)
ASKED = 200  # flow runs per request: the server's own limit
ENDED_BADLY = (StateType.FAILED, StateType.CRASHED)
ALIVE = (StateType.RUNNING, StateType.PENDING, StateType.CANCELLING, StateType.PAUSED, StateType.SCHEDULED)


def server_url() -> str | None:
    """Where the Prefect API is, if the environment or the profile names one."""
    return get_current_settings().api.url


def flow_runs(store: Store) -> tuple[list[dict[str, Any]], str | None]:
    """Flow runs about the store: those that run or wait, of each deployment the next one, and the last day's failures.

    The second value says why there are none where the server does not answer.
    """
    since = datetime.now(UTC) - RECENT
    recent = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[*ENDED_BADLY, *ALIVE])),
        expected_start_time=FlowRunFilterExpectedStartTime(after_=since),
    )
    try:
        with get_client(sync_client=True) as client:
            found = client.read_flow_runs(flow_run_filter=recent, limit=ASKED, sort=FlowRunSort.EXPECTED_START_TIME_ASC)
            names = {flow_id: client.read_flow(flow_id).name for flow_id in {run.flow_id for run in found}}
    except (httpx.HTTPError, RuntimeError) as error:
        return [], str(error).splitlines()[0] if str(error) else type(error).__name__
    seen: set[Any] = set()
    shown = []
    for run in found:
        if not _is_about(run, store) or run.state is None:
            continue
        if run.state.type == StateType.SCHEDULED and run.state.name == "Scheduled":
            if run.deployment_id in seen:
                continue
            seen.add(run.deployment_id)
        shown.append(
            {
                "flow": names[run.flow_id],
                "state": run.state.name,
                "at": run.start_time or run.expected_start_time,
                "message": run.state.message,
                "id": str(run.id),
            }
        )
    return shown, None


def _is_about(run: FlowRun, store: Store) -> bool:
    inner = run.parameters.get("parameters")
    named = (inner if isinstance(inner, dict) else run.parameters).get("store")
    try:
        return bool(named) and find_place(named) == store.root
    except InputError:  # another machine's address
        return False
