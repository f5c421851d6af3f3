"""Costs of stages: summed over the attempts at a run, which leave them in the store as they go."""

from __future__ import annotations

import pytest

from storage.store import create_store
from tasks.stage import Costs, recording, stage


@stage("sums")
def work(fail: bool = False) -> None:
    if fail:
        raise ZeroDivisionError


def test_costs_of_broken_off_attempts_are_added_up(tmp_path):
    store = create_store(tmp_path / "s")
    first = Costs()
    first.add({"corpus": {"seconds": 1.5, "bytes": 10, "memory_bytes": 70}})
    first.resume(store, "run-1")
    first.add({"scores": {"seconds": 2.0, "bytes": 5, "memory_bytes": 90}})
    second = Costs()
    second.add({"corpus": {"seconds": 0.25, "bytes": 0, "memory_bytes": 80}})
    second.resume(store, "run-1")
    second.add({"scores": {"seconds": 1.0, "bytes": 3, "memory_bytes": 60}})
    assert second.finish() == {
        "corpus": {"seconds": 1.75, "bytes": 10, "memory_bytes": 80},
        "scores": {"seconds": 3.0, "bytes": 8, "memory_bytes": 90},
    }


def test_a_stage_that_fails_leaves_its_costs_too(tmp_path):
    store = create_store(tmp_path / "s")
    with recording() as costs:
        costs.resume(store, "run-1")
        with pytest.raises(ZeroDivisionError):
            work.fn(fail=True)
    again = Costs()
    again.resume(store, "run-1")
    assert set(again.finish()) == {"sums"}
