"""A flow run as a reader follows it: its state, its stages with their progress, why it failed, what it made."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
    LogFilterLevel,
)
from prefect.client.schemas.objects import Artifact, FlowRun, TaskRun
from prefect.client.schemas.sorting import TaskRunSort

RUN_PAGE = "headwater-"  # begins the key of the artifact that a trace leaves about its run
STEP = "next step: "  # begins the line of a failed run's log that says what to do
ERROR = 40  # of logging's levels
LEAD = re.compile(r"^Flow run encountered an exception:?\s*(\w+(Error|Exception|Lost)\w*:\s*)?")  # Prefect's words


@dataclass(frozen=True)
class StageSeen:
    """A stage of a flow run: `percent` is None where it reports no progress."""

    name: str
    state: str
    seconds: float
    percent: float | None


@dataclass(frozen=True)
class Seen:
    """A flow run at one moment."""

    state: str
    message: str
    is_over: bool
    is_done: bool
    stages: tuple[StageSeen, ...] = ()
    run_id: str | None = None  # of the store, once the trace is done
    step: str | None = None  # what to do next, once it has failed


def look(client: SyncPrefectClient, flow_run: UUID) -> Seen:
    """What the server knows of a flow run now."""
    run = client.read_flow_run(flow_run)
    state = run.state
    if state is None:
        return Seen("Pending", "", is_over=False, is_done=False)
    named = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run]))
    tasks = client.read_task_runs(flow_run_filter=named, limit=200, sort=TaskRunSort.EXPECTED_START_TIME_ASC)
    of_run = ArtifactFilterFlowRunId(any_=[flow_run])
    artifacts = client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=of_run), limit=200)
    ends_badly = state.is_final() and not state.is_completed()
    return Seen(
        state.name or state.type.value.title(),
        LEAD.sub("", state.message or ""),
        is_over=state.is_final(),
        is_done=state.is_completed(),
        stages=tuple(_stage(task, artifacts, _end(run)) for task in tasks),
        run_id=_made(artifacts) if state.is_completed() else None,
        step=_step(client, flow_run) if ends_badly else None,
    )


def _end(run: FlowRun) -> datetime:
    return run.end_time or datetime.now(UTC)


def _stage(task: TaskRun, artifacts: list[Artifact], now: datetime) -> StageSeen:
    """A stage may report the progress of several jobs, one after the other: the last that began counts."""
    shown = [a for a in artifacts if a.type == "progress" and a.task_run_id == task.id and a.created]
    latest = max(shown, key=lambda artifact: artifact.created or now, default=None)
    seconds = ((task.end_time or now) - task.start_time).total_seconds() if task.start_time else 0.0
    state = task.state.name if task.state and task.state.name else "Pending"
    percent = None if latest is None or not isinstance(latest.data, int | float) else float(latest.data)
    return StageSeen(task.name, state, max(0.0, seconds), percent)


def _made(artifacts: list[Artifact]) -> str | None:
    """The run of the store that the trace's own page is about."""
    keys = [a.key for a in artifacts if a.type == "markdown" and a.key and a.key.startswith(RUN_PAGE)]
    return keys[0].removeprefix(RUN_PAGE) if keys else None


def _step(client: SyncPrefectClient, flow_run: UUID) -> str | None:
    """What to do next, from the run's log: its page says the same in Markdown."""
    of_run = LogFilterFlowRunId(any_=[flow_run])
    logs = client.read_logs(LogFilter(flow_run_id=of_run, level=LogFilterLevel(ge_=ERROR)), limit=200)
    steps = [entry.message for entry in logs if entry.message.startswith(STEP)]
    return steps[-1].removeprefix(STEP) if steps else None
