"""Progress: the time left is told of slow jobs too."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tasks.progress import make_bar


def test_the_time_left_is_known_of_jobs_that_take_minutes_each():
    now = [0.0]
    bar = make_bar(Console(file=io.StringIO(), get_time=lambda: now[0]))
    bar.get_time = lambda: now[0]
    row = bar.add_task("retraining", total=10)
    for minute in (2, 4, 6):
        now[0] = 60.0 * minute
        bar.advance(row, 1)
    assert bar.tasks[0].time_remaining == pytest.approx(7 * 120)
