"""A stage: a Prefect task that knows its name and leaves its seconds, bytes and memory with the run and in its log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.cost import Cost, measuring

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)

_costs: ContextVar[dict[str, dict[str, float]] | None] = ContextVar("stage_costs", default=None)


def stage(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function a Prefect task called `name`.

    No Prefect cache and no retries: stages find their own finished parts in the store by digest, which
    survives a lost Prefect database; a cached path would not notice that its file was deleted.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def measured(*args: P.args, **kwargs: P.kwargs) -> R:
            cost = Cost()
            try:
                with measuring(cost):
                    return function(*args, **kwargs)
            finally:
                log.info("%s: %s", name, cost)
                costs = _costs.get()
                if costs is not None:
                    costs[name] = cost.as_dict()

        return task(measured, name=name, task_run_name=name, cache_policy=NO_CACHE)

    return decorate


@contextmanager
def recording() -> Iterator[dict[str, dict[str, float]]]:
    """Collect what the stages called in the block took, by stage name."""
    costs: dict[str, dict[str, float]] = {}
    token = _costs.set(costs)
    try:
        yield costs
    finally:
        _costs.reset(token)
