"""The machine's clock set back by years: the latest run is still the one that completed last, and no time goes back."""

from __future__ import annotations

import duckdb
import pytest
import time_machine
from recovery import walks

from flows.parameters import QueryParameters
from storage.clock import store_time
from storage.store import create_store
from tasks.candidates import CandidateParameters

OTTER = QueryParameters(prompt="The otter went to the", completion=" harbour.", query_id="otter")
LATER = QueryParameters(prompt="The raven went to the", completion=" market.", query_id="a later one")


@pytest.mark.e2e
def test_the_latest_run_is_the_one_that_completed_last(tmp_path, gpt2):
    files, store = walks.three_files(tmp_path / "corpus"), tmp_path / "s"
    clocks = ("2031-05-01T12:00:00+00:00", "2024-02-29T12:00:00+00:00", "2024-02-28T12:00:00+00:00")
    queries = ((OTTER,), (OTTER, LATER), (OTTER,))
    runs = []
    for k, (clock, asked) in enumerate(zip(clocks, queries, strict=True)):
        candidates = CandidateParameters(top_k=8 + k)
        parameters = walks.parameters(store, gpt2, files, queries=asked, candidates=candidates)
        walks.ended(walks.start(parameters, tmp_path / "log", clock=clock), tmp_path / "log")
        connection = duckdb.connect(str(store / "headwater.duckdb"), read_only=True)
        runs += connection.execute("select run_id from runs order by finished_at desc limit 1").fetchall()
        assert connection.execute("select run_id from chosen_run('otter', 'latest')").fetchall() == runs[-1:]
    assert len(set(runs)) == 3
    connection = duckdb.connect(str(store / "headwater.duckdb"), read_only=True)
    times = connection.execute("select started_at, finished_at from runs order by finished_at").fetchall()
    flat = [time for pair in times for time in pair]
    assert flat == sorted(flat)
    assert flat[0].year == 2031
    order = connection.execute("select query_id from queries order by submitted_at").fetchall()
    assert order == [("otter",), ("a later one",)]


def test_a_stores_clock_never_gives_an_earlier_time(tmp_path, caplog):
    store = create_store(tmp_path / "s")
    given = []
    for clock in ("2030-01-01T00:00:00+00:00", "2030-01-01T00:00:00+00:00", "2020-01-01T00:00:00+00:00"):
        with time_machine.travel(clock, tick=False):
            given.append(store_time(store))
    assert given == sorted(set(given))
    assert "times go on from there" in caplog.text
    with time_machine.travel("2040-01-01T00:00:00+00:00", tick=False):
        assert store_time(store).year == 2040
