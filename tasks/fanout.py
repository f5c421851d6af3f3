"""The inside of a stage: many jobs over the workers that the flow opened, or one after another without any.

Prefect sees stages; Dask sees jobs. A job is a plain importable function of small arguments that writes its
own part and may run twice: Dask runs it again when its worker dies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from logging import LogRecord
from typing import Any, TypeVar
from uuid import uuid4

from distributed import Client, KilledWorker, as_completed

from storage.errors import HeadwaterError
from tasks.compute import Processor
from tasks.cost import Cost, include, measuring
from tasks.logs import keeping_logs, replay
from tasks.progress import progress

Job = TypeVar("Job")
Result = TypeVar("Result")
Resources = tuple[tuple[str, float], ...]
TOLD = "headwater_records"  # attribute of a job's error: what the job had logged


@dataclass(frozen=True)
class Workers:
    """Where jobs run: `lexical` for DuckDB and NumPy work, `model` for passes of the model; None is this process.

    Each opens its client when the first job needs it, so that a run with nothing to do starts no cluster.
    Resources are those of Dask: a job runs only on workers that have them. `processors` are those of the workers that
    pass the model, by address, where these are not processes of this machine that a flow started itself.
    """

    lexical: Callable[[], Client] | None = None
    model: Callable[[], Client] | None = None
    lexical_resources: Resources = ()
    model_resources: Resources = ()
    processors: Mapping[str, Processor] = field(default_factory=dict)


class WorkerLost(HeadwaterError):
    """A Dask job took its worker down several times."""


def fan_out(
    open_client: Callable[[], Client] | None,
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    label: str,
    resources: Resources = (),
) -> list[Result]:
    """Run `function` on every job; results in the order of the jobs, the first error raised here."""
    with progress(label, len(jobs)) as advance:
        if open_client is None or (len(jobs) <= 1 and not resources):
            return [_advanced(function(job), advance) for job in jobs]
        client = open_client()
        key = f"{label.replace(' ', '-')}-{uuid4().hex[:8]}"  # Dask's dashboard shows what stands before the number
        futures = client.map(partial(_observed, function), jobs, key=key, pure=False, resources=dict(resources) or None)
        try:
            for future in as_completed(futures):
                _, cost, records = future.result()
                include(cost)
                replay(records)
                advance(1)
        except KilledWorker as error:
            client.cancel(futures)
            raise WorkerLost(
                f"stage {label}",
                expected="workers that live through a job",
                found=str(error).splitlines()[0],
                remedy="Most often memory ran out: use a smaller --batch-size or fewer workers, then run again.",
            ) from error
        except BaseException as error:
            client.cancel(futures)
            replay(vars(error).pop(TOLD, ()))
            raise
        return [future.result()[0] for future in futures]


def run_where_the_model_is(workers: Workers, function: Callable[[Job], Result], job: Job, label: str) -> Result:
    """Run one job that passes the model: on a worker that has the resource for it, where any has, else in this process.

    Here it reports its own progress; from a worker comes only that it is done.
    """
    if workers.model_resources:
        return fan_out(workers.model, function, [job], label, workers.model_resources)[0]
    return function(job)


def _observed(function: Callable[[Job], Result], job: Job) -> tuple[Result, Cost, list[LogRecord]]:
    """A job on a worker: its result, what it took, and what it logged, for the process of the flow."""
    cost = Cost()
    with keeping_logs() as records, measuring(cost):
        try:
            result = function(job)
        except Exception as error:
            vars(error)[TOLD] = records  # goes with it to the process of the flow
            raise
    return result, cost, records


def _advanced(result: Any, advance: Callable[[int], None]) -> Any:
    advance(1)
    return result
