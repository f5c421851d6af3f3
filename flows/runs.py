"""What a Prefect server knows of a store: flow runs that run, wait or failed of late."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import get_current_settings

from storage.errors import InputError
from storage.places import find_place
from storage.store import Store

RECENT = timedelta(days=1)
ASKED = 200  # flow runs per request: the server's own limit
ENDED_BADLY = (StateType.FAILED, StateType.CRASHED)
ALIVE = (StateType.RUNNING, StateType.PENDING, StateType.CANCELLING, StateType.PAUSED)


def server_url() -> str | None:
    """Where the Prefect API is, if the environment or the profile names one."""
    return get_current_settings().api.url


def flow_runs(store: Store) -> tuple[list[dict[str, Any]], str | None]:
    """Flow runs about the store: those that run, of each deployment the next one, and the last day's failures.

    Of the failures the latest stand first. The second value says why there are none where the server does not answer.
    """
    late = FlowRunFilterExpectedStartTime(after_=datetime.now(UTC) - RECENT)
    try:
        with get_client(sync_client=True) as client:

            def about(*asked: Any) -> list[FlowRun]:
                return [run for run in _read(client, *asked) if run.state is not None and _is_about(run, store)]

            found = [  # what runs is asked for alone, so that nothing else, and no age, can crowd it out
                *about(ALIVE, FlowRunSort.EXPECTED_START_TIME_ASC),
                *_next_ones(about((StateType.SCHEDULED,), FlowRunSort.EXPECTED_START_TIME_ASC)),
                *about(ENDED_BADLY, FlowRunSort.EXPECTED_START_TIME_DESC, late),
            ]
            names = {flow_id: client.read_flow(flow_id).name for flow_id in {run.flow_id for run in found}}
    except (httpx.HTTPError, RuntimeError) as error:
        return [], str(error).splitlines()[0] if str(error) else type(error).__name__
    return [_shown(run, run.state, names[run.flow_id]) for run in found if run.state is not None], None


def _read(
    client: SyncPrefectClient,
    states: tuple[StateType, ...],
    sort: FlowRunSort,
    started: FlowRunFilterExpectedStartTime | None = None,
) -> list[FlowRun]:
    wanted = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(states))), expected_start_time=started
    )
    return client.read_flow_runs(flow_run_filter=wanted, limit=ASKED, sort=sort)


def _next_ones(runs: list[FlowRun]) -> list[FlowRun]:
    """Of what a schedule has planned the next run alone; what is late, or waits for another try, all of it."""
    planned: dict[Any, FlowRun] = {}
    for run in runs:
        if run.state is not None and run.state.name == "Scheduled":
            planned.setdefault(run.deployment_id or run.id, run)
    kept = {run.id for run in planned.values()}
    return [run for run in runs if run.id in kept or (run.state is not None and run.state.name != "Scheduled")]


def _shown(run: FlowRun, state: State, flow: str) -> dict[str, Any]:
    at = run.start_time or run.expected_start_time
    return {"flow": flow, "state": state.name, "at": at, "message": state.message, "id": str(run.id)}


def _is_about(run: FlowRun, store: Store) -> bool:
    inner = run.parameters.get("parameters")
    named = (inner if isinstance(inner, dict) else run.parameters).get("store")
    try:
        return bool(named) and find_place(named) == store.root
    except InputError:  # another machine's address
        return False
