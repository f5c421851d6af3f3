"""A stage: a Prefect task that knows its name and leaves its seconds, bytes and memory with the run and in its log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from typing import ParamSpec, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE

from storage.staging import read_note, write_note
from storage.store import Store
from tasks.cost import Cost, measuring

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)


class Costs:
    """What the stages of a run took, by name, over all attempts at it: sums, and the most memory.

    An attempt leaves its costs when a stage ends, once it knows which run it is: of a stage in which its process is
    killed nothing is known, nor of what came before if that was corpus or index.
    """

    def __init__(self) -> None:
        self._of: dict[str, dict[str, float]] = {}
        self._keep: Callable[[dict], None] | None = None

    def add(self, costs: dict[str, dict[str, float]]) -> None:
        """Count what stages took, now or in an earlier attempt."""
        for name, figures in costs.items():
            known = self._of.setdefault(name, {})
            for figure, value in figures.items():
                there = known.get(figure, 0)
                known[figure] = max(there, value) if "memory" in figure else round(there + value, 3)
        if self._keep is not None:
            self._keep(self._of)

    def resume(self, store: Store, run_id: str) -> None:
        """Go on from the costs that earlier attempts at the run left, and leave them for a later one."""
        earlier = read_note(store, run_id, "costs")
        self._keep = partial(write_note, store, run_id, "costs")
        self.add(earlier or {})

    def finish(self) -> dict[str, dict[str, float]]:
        """The figures by stage name, for the run's row; from here on nothing is left for another attempt."""
        self._keep = None
        return self._of


_costs: ContextVar[Costs | None] = ContextVar("stage_costs", default=None)


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
                    costs.add({name: cost.as_dict()})

        return task(measured, name=name, task_run_name=name, cache_policy=NO_CACHE)

    return decorate


@contextmanager
def recording() -> Iterator[Costs]:
    """Collect what the stages called in the block took, by stage name."""
    costs = Costs()
    token = _costs.set(costs)
    try:
        yield costs
    finally:
        _costs.reset(token)
