"""The inside of a stage: many jobs over the workers that the flow opened, or one after another without any.

Prefect sees stages; Dask sees jobs. A job is a plain importable function of small arguments that writes its
own part and may run twice: Dask runs it again when its worker dies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from distributed import Client, KilledWorker, as_completed

from storage.errors import HeadwaterError
from storage.store import bytes_written, count_written
from tasks.progress import progress

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Workers:
    """Where jobs run: `lexical` for DuckDB and NumPy work, `model` for passes of the model; None is this process.

    Each opens its client when the first job needs it, so that a run with nothing to do starts no cluster.
    """

    lexical: Callable[[], Client] | None = None
    model: Callable[[], Client] | None = None
    model_resources: tuple[tuple[str, float], ...] = ()


class WorkerLost(HeadwaterError):
    """A Dask job took its worker down several times."""


def fan_out(
    open_client: Callable[[], Client] | None,
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    label: str,
    resources: tuple[tuple[str, float], ...] = (),
) -> list[Result]:
    """Run `function` on every job; results in the order of the jobs, the first error raised here."""
    with progress(label, len(jobs)) as advance:
        if open_client is None or (len(jobs) <= 1 and not resources):
            return [_advanced(function(job), advance) for job in jobs]
        client = open_client()
        futures = client.map(partial(_counted, function), jobs, pure=False, resources=dict(resources) or None)
        try:
            for future in as_completed(futures):
                count_written(future.result()[1])
                advance(1)
        except KilledWorker as error:
            client.cancel(futures)
            raise WorkerLost(
                f"stage {label}",
                expected="workers that live through a job",
                found=str(error).splitlines()[0],
                remedy="Most often memory ran out: use a smaller --batch-size or fewer workers, then run again.",
            ) from error
        except BaseException:
            client.cancel(futures)
            raise
        return [future.result()[0] for future in futures]


def _counted(function: Callable[[Job], Result], job: Job) -> tuple[Result, int]:
    before = bytes_written()
    return function(job), bytes_written() - before


def _advanced(result: Any, advance: Callable[[int], None]) -> Any:
    advance(1)
    return result
