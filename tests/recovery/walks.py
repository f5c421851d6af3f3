"""Walks that die: a trace's stages as plain functions, in processes forked from a warm one, killed at a chosen moment.

The moments are the operations that change what stands in a store: before each rename, link and removal of a file. They
are seen by Python's audit hook, so that nothing of headwater is replaced to count them.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import storage  # noqa: F401  # sets the environment before torch is imported

# isort: split
import dask
import psutil
import pytest
import time_machine
import worlds
from prefect import Task

import flows.trace
import tasks.factors
import tasks.gradient_scores
from flows.parameters import ModelParameters, QueryParameters, TraceParameters
from storage.database import session
from storage.schemas import SCHEMAS
from storage.store import open_store
from tasks.candidates import CandidateParameters
from tasks.compute import ComputeParameters
from tasks.corpus import CorpusParameters
from tasks.factors import FitParameters
from tasks.methods import MethodParameters

CHANGES = {"os.rename": 1, "os.link": 1, "os.remove": 0, "os.rmdir": 0}  # audit event: which argument is the path
PATIENCE = 180  # seconds until a walk counts as hung

ROOT = Path(__file__).parents[2]

# Before the n-th change of a stage, counted from 0, or before its first of a kind, by audit event.
Moment = tuple[str, int | str]
forkserver = multiprocessing.get_context("forkserver")
forkserver.set_forkserver_preload(["recovery.walks"])


@dataclass(frozen=True)
class Change:
    """One operation on a store's files."""

    stage: str
    event: str
    path: str


def parameters(store: Path, model: Path, inputs: list[Path], **changes) -> TraceParameters:
    """A small trace that goes through every stage: three parts, two methods, a uniform sample to audit the filter."""
    return TraceParameters(
        **{
            "store": str(store),
            "model": ModelParameters(name=str(model)),
            "queries": (
                QueryParameters(prompt="The otter went to the", completion=" harbour.", query_id="otter"),
                QueryParameters(prompt="Nobody saw the viper", completion=" leave.", query_id="viper"),
            ),
            "corpus": CorpusParameters(inputs=tuple(map(str, inputs))),
            "candidates": CandidateParameters(top_k=12, unfiltered=12),
            "fit": FitParameters(sequences=40),
            "method": MethodParameters(rescore=3, beside=("identity", "bm25")),
            "compute": ComputeParameters(batch_size=8, precision="float32"),
            "cluster": "none",
            **changes,
        }
    )


def three_files(folder: Path) -> list[Path]:
    """The fables in three input files."""
    records = worlds.documents()
    return [worlds.write_jsonl(folder / f"{k}.jsonl", records[16 * k : 16 * k + 16]) for k in range(3)]


def start(
    asked: TraceParameters,
    log: Path,
    kill_at: Moment | None = None,
    sign: int = signal.SIGKILL,
    environment: dict[str, str] | None = None,
    worker_preload: str | None = None,
    clock: str | None = None,
) -> BaseProcess:
    """A process that walks, writes down every change in `log`, and sends itself a signal at a moment.

    `worker_preload` names a module that the workers of its Dask cluster load; `clock` is what its clock is set to.
    """
    options = {"environment": environment, "preload": worker_preload, "clock": clock}
    process = forkserver.Process(target=_walk, args=(asked, log, kill_at, sign), kwargs=options)
    with pytest.MonkeyPatch.context() as patch:  # Python 3.11's fork server does not take over sys.path
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
        process.start()
    return process


def walk(asked: TraceParameters, log: Path, kill_at: Moment | None = None) -> list[Change]:
    """Walk to the end, or to the kill, and return the changes that were made."""
    return ended(start(asked, log, kill_at), log, -signal.SIGKILL if kill_at else 0)


def ended(process: BaseProcess, log: Path, expected: int = 0) -> list[Change]:
    """Wait for a walk, which must end as expected, and return the changes that it made."""
    process.join(PATIENCE)
    assert process.exitcode == expected, f"exit code {process.exitcode}, after {changes_in(log)[-1:]}"
    return changes_in(log)


@contextmanager
def halted(asked: TraceParameters, log: Path, moment: Moment) -> Iterator[BaseProcess]:
    """A walk that stands still at a moment while the block runs, and goes on to its end afterwards."""
    process = start(asked, log, moment, signal.SIGSTOP)
    limit = time.monotonic() + PATIENCE
    while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
        assert process.is_alive(), f"ended before {moment}"
        assert time.monotonic() < limit, f"did not come to {moment}"
        time.sleep(0.02)
    try:
        yield process
    finally:
        os.kill(process.pid, signal.SIGCONT)
        process.join(PATIENCE)


def changes_in(log: Path) -> list[Change]:
    """What a log holds."""
    return [Change(*json.loads(line)) for line in log.read_text().splitlines()] if log.exists() else []


def _walk(
    asked: TraceParameters,
    log: Path,
    moment: Moment | None,
    sign: int,
    environment: dict[str, str] | None = None,
    preload: str | None = None,
    clock: str | None = None,
) -> None:
    os.environ.update(environment or {})
    dask.config.set({"distributed.worker.preload": [preload] if preload else []})
    tasks.factors.SMALLEST_BLOCK, tasks.gradient_scores.SIZE = 16, 12  # several jobs in each stage
    doing, moments = ["start"], [moment] if moment else []
    counts: dict[str, int] = {}
    descriptor = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    root = str(Path(asked.store).resolve()) + "/"

    def hook(event: str, arguments: tuple) -> None:
        if event not in CHANGES:
            return
        path = _absolute(event, arguments)
        if not path.startswith(root):
            return
        counts[doing[0]] = counts.get(doing[0], -1) + 1
        if moments and moments[0] in ((doing[0], counts[doing[0]]), (doing[0], event)):
            moments.clear()
            os.kill(os.getpid(), sign)
        os.write(descriptor, (json.dumps([doing[0], event, path.removeprefix(root)]) + "\n").encode())

    _make_plain(doing)
    sys.addaudithook(hook)
    if clock is not None:
        time_machine.travel(clock).start()
    try:
        flows.trace.trace.fn(asked)
    except Exception as error:
        os.write(descriptor, (json.dumps([doing[0], "error", str(error)]) + "\n").encode())
        raise


def _absolute(event: str, arguments: tuple) -> str:
    """The path that is changed; shutil.rmtree names files relative to an open directory."""
    path, directory = os.fspath(arguments[CHANGES[event]]), arguments[-1]
    if event in ("os.remove", "os.rmdir") and directory >= 0:
        path = os.path.join(os.readlink(f"/proc/self/fd/{directory}"), path)
    return str(path)


def _make_plain(doing: list[str]) -> None:
    """Let the flow call its stages without Prefect, and say which one is at work or was the last."""

    def telling(name: str, function: Callable) -> Callable:
        def told(*args, **kwargs):
            doing[0] = name
            result = function(*args, **kwargs)
            doing[0] = f"after {name}"
            return result

        return told

    for name, value in list(vars(flows.trace).items()):
        if isinstance(value, Task):
            setattr(flows.trace, name, telling(value.name, value.fn))
    flows.trace.complete_run = telling("completion", flows.trace.complete_run)
    flows.trace.discard = telling("discard", flows.trace.discard)


# Of every relation what may be compared: times and durations are each run's own.
OWN = {"runs": "exclude (started_at, finished_at, stages)", "queries": "exclude (submitted_at)"}


def tables(store: Path) -> dict[str, list[tuple]]:
    """All rows of all relations, as a reader sees them, in a fixed order."""
    with session(open_store(store)) as connection:
        return {
            relation: connection.execute(f"select * {OWN.get(relation, '')} from {relation} order by all").fetchall()
            for relation in SCHEMAS
        }
