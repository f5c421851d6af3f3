"""A flow run as the explorer follows it, from what a Prefect server says; and children that end with their parent."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import Artifact, FlowRun, Log, TaskRun
from prefect.states import Completed, Failed, Running, State

from flows.following import StageSeen, look
from flows.parameters import TraceParameters
from flows.trace_systems import OwnSystem, find_system

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def task(name: str, state: State, seconds: float | None) -> TaskRun:
    end = None if seconds is None else BEGAN + timedelta(seconds=seconds)
    return TaskRun(task_key=name, dynamic_key="0", name=name, state=state, start_time=BEGAN, end_time=end)


def progress(of: TaskRun, percent: float, minute: int) -> Artifact:
    at = BEGAN + timedelta(minutes=minute)
    return Artifact(id=uuid4(), type="progress", data=percent, task_run_id=of.id, created=at, updated=at)


def server(run: FlowRun, tasks: list[TaskRun], artifacts: list[Artifact], logs: list[Log]) -> Any:
    return SimpleNamespace(
        read_flow_run=lambda _: run,
        read_task_runs=lambda **_: tasks,
        read_artifacts=lambda **_: artifacts,
        read_logs=lambda *_, **__: logs,
    )


def flow_run(state: State) -> FlowRun:
    return FlowRun(flow_id=uuid4(), state=state, start_time=BEGAN, end_time=BEGAN + timedelta(seconds=9))


def test_a_stage_s_progress_is_that_of_the_job_that_began_last():
    done, under_way = task("factors", Completed(), 2.5), task("scores", Running(), None)
    artifacts = [progress(under_way, 40.0, 2), progress(under_way, 100.0, 1), progress(done, 100.0, 0)]
    run = flow_run(Running())
    seen = look(server(run, [done, under_way], artifacts, []), run.id)
    assert seen.stages == (
        StageSeen("factors", "Completed", 2.5, 100.0),
        StageSeen("scores", "Running", 9.0, 40.0),
    )
    assert (seen.state, seen.is_over, seen.run_id) == ("Running", False, None)


def test_a_run_that_is_done_names_the_run_of_the_store():
    page = Artifact(id=uuid4(), type="markdown", key="headwater-run-12ab", data="x")
    run = flow_run(Completed())
    seen = look(server(run, [], [page, Artifact(id=uuid4(), type="markdown", key="other")], []), run.id)
    assert (seen.is_over, seen.is_done, seen.run_id) == (True, True, "run-12ab")


@pytest.mark.parametrize("lead", ["Flow run encountered an exception: ModelError: ", ""])
def test_a_failed_run_says_why_and_what_to_do_without_prefect_s_words(lead):
    run = flow_run(Failed(message=f"{lead}model x: expected y, found z. Do it."))
    logs = [Log(id=uuid4(), name="x", level=40, message=text, timestamp=BEGAN) for text in ("odd", "next step: Do it.")]
    seen = look(server(run, [], [], logs), run.id)
    assert seen.message == "model x: expected y, found z. Do it."
    assert (seen.is_over, seen.is_done, seen.step) == (True, False, "Do it.")


def test_a_deployment_is_handed_traces_and_without_one_children_carry_them_out(prefect_db):
    """At a real server without a worker: a trace waits there, is found, and is cancelled where it stands."""
    from prefect.client.orchestration import get_client

    from flows.trace import trace

    asked = TraceParameters.model_validate(
        {"store": "s", "model": {"name": "m"}, "queries": [{"prompt": "p", "completion": "c"}]}
    )
    assert isinstance(find_system(), OwnSystem)
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(trace), name="on-demand")
        try:
            system = find_system()
            assert system.goes_on
            run = system.begin(asked)
            assert client.read_flow_run(run).deployment_id == deployment
            assert client.read_flow_run(run).parameters["parameters"]["queries"][0]["completion"] == "c"
            assert (system.look(run).state, system.look(run).is_over) == ("Scheduled", False)
            assert str(run) in (system.link(run) or "")
            system.stop(run)
            assert (system.look(run).state, system.look(run).is_done) == ("Cancelled", False)
        finally:
            client.delete_deployment(deployment)


def test_a_child_hears_the_end_of_its_parent():
    program = "import os, time\nfrom flows.tethered import _watch\n_watch(lambda: os._exit(7))\ntime.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, start_new_session=True)
    assert child.stdin is not None
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.5)
    child.stdin.close()
    assert child.wait(30) == 7
