"""A stage: a Prefect task that knows its name and leaves its seconds and bytes with the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE

from storage.store import bytes_written

P = ParamSpec("P")
R = TypeVar("R")

_timings: ContextVar[dict[str, dict[str, float]] | None] = ContextVar("stage_timings", default=None)


def stage(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function a Prefect task called `name`.

    No Prefect cache and no retries: stages find their own finished parts in the store by digest, which
    survives a lost Prefect database; a cached path would not notice that its file was deleted.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            start, before = time.perf_counter(), bytes_written()
            try:
                return function(*args, **kwargs)
            finally:
                timings = _timings.get()
                if timings is not None:
                    timings[name] = {
                        "seconds": round(time.perf_counter() - start, 3),
                        "bytes": bytes_written() - before,
                    }

        return task(timed, name=name, task_run_name=name, cache_policy=NO_CACHE)

    return decorate


@contextmanager
def recording() -> Iterator[dict[str, dict[str, float]]]:
    """Collect what the stages called in the block took, by stage name."""
    timings: dict[str, dict[str, float]] = {}
    token = _timings.set(timings)
    try:
        yield timings
    finally:
        _timings.reset(token)
