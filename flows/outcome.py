"""What a run leaves in the Prefect UI when it fails: the reason and the next step, on a page and in its log."""

from __future__ import annotations

import re
from typing import Any

import torch
from prefect.artifacts import MarkdownArtifact
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import CrashedRun, ParameterTypeError
from prefect.flows import Flow
from prefect.logging.loggers import flow_run_logger
from prefect.states import get_state_exception

from storage.errors import HeadwaterError
from storage.pages import render
from tasks.influence.errors import InfluenceError
from tasks.logs import send_logs_to_prefect

send_logs_to_prefect()  # every flow imports this module, whatever process it runs in

AGAIN = "Then run it again, by Retry or by the same command: finished parts are kept."


def say_next_step(flow: Flow, run: FlowRun, state: State) -> None:
    """A hook of Prefect's: write why the run failed and what to do as a markdown artifact and into the run's log."""
    error: BaseException = get_state_exception(state, _sync=True)  # type: ignore[call-arg]  # as below
    step = next_step(error)
    values = {"flow": flow.name, "run": run.name, "state": state.name, "reason": str(error), "step": step}
    artifact = MarkdownArtifact(
        key="failed-" + re.sub(r"[^a-z0-9]+", "-", flow.name.lower()),
        description=f"Why {flow.name} stopped, and the next step",
        markdown=render("failure.md.j2", values),
        flow_run_id=run.id,
    )
    artifact.create(_sync=True)  # type: ignore[call-arg]  # Prefect's async dispatch takes it
    flow_run_logger(run).error("next step: %s", step)


def next_step(error: BaseException) -> str:
    """What a user can do about the error."""
    if isinstance(error, HeadwaterError):
        return f"{error.remedy} {AGAIN}"
    if isinstance(error, InfluenceError):
        return f"{str(error).rsplit('. ', 1)[-1]} {AGAIN}"
    if isinstance(error, ParameterTypeError):
        return "Correct the parameters that it names, and start a new run."
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return f"Use a smaller batch size, or set HEADWATER_MATRIX_MEMORY_GIB lower. {AGAIN}"
    if isinstance(error, (KeyboardInterrupt, SystemExit, CrashedRun)):
        return f"Look whether the machine or its memory gave out. {AGAIN}"
    return f"headwater did not foresee this: please report it with the log if it comes back. {AGAIN}"


# Every flow is declared with these: @flow(name=…, **EXPLAINED)
EXPLAINED: dict[str, Any] = {"on_failure": [say_next_step], "on_crashed": [say_next_step]}
