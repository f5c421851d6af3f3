"""One progress report, shown where somebody looks: a bar in a terminal, an artifact in the Prefect UI."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

ARTIFACT_SECONDS = 2.0  # an artifact update is a request to the server; more often would slow the work
PACE_SECONDS = 86_400.0  # that the pace is measured over: in rich's 30 s not one training ends, so none would be left


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield `advance(n)`, which reports n more of `total` done."""
    console = Console(file=sys.stderr)
    bar = make_bar(console)
    artifact = _Artifact(label, total)
    with bar if console.is_terminal else nullcontext():
        row = bar.add_task(label, total=total)

        def advance(n: int) -> None:
            bar.advance(row, n)
            artifact.advance(n)

        yield advance
        artifact.finish()


def make_bar(console: Console) -> Progress:
    """What is done of a job, and how much time is left at the pace so far."""
    return Progress(
        TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console, transient=True, speed_estimate_period=PACE_SECONDS,
    )  # fmt: skip


class _Artifact:
    """The Prefect side: silent outside a task run, throttled inside one."""

    def __init__(self, label: str, total: int) -> None:
        self._done, self._total, self._last = 0, max(total, 1), time.monotonic()
        self._id: UUID | None = None
        if TaskRunContext.get():
            self._id = create_progress_artifact(progress=0.0, description=label)

    def advance(self, n: int) -> None:
        self._done += n
        if self._id and time.monotonic() - self._last > ARTIFACT_SECONDS:
            self._last = time.monotonic()
            update_progress_artifact(self._id, progress=min(100.0, 100.0 * self._done / self._total))

    def finish(self) -> None:
        if self._id:
            update_progress_artifact(self._id, progress=100.0)
