"""DuckDB readers that look throughout several traces: no error, and of each run all rows or none."""

from __future__ import annotations

import json
import multiprocessing
from collections import defaultdict

import duckdb
import pytest
import worlds
from recovery import walks
from recovery.readers import COUNTS, look

from flows.parameters import QueryParameters

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def looks(tmp_path_factory, gpt2):
    """What two readers saw while three traces were added to one: as before, with one file more, with a changed file."""
    folder = tmp_path_factory.mktemp("readers")
    files = walks.three_files(folder / "corpus")
    store = folder / "s"
    walks.walk(walks.parameters(store, gpt2, files[:2]), folder / "log")
    spawn = multiprocessing.get_context("spawn")
    stop = spawn.Event()
    logs = [folder / "kept.jsonl", folder / "reopened.jsonl"]
    readers = [
        spawn.Process(target=look, args=(str(store / "headwater.duckdb"), reopen, str(log), stop))
        for reopen, log in zip((False, True), logs, strict=True)
    ]
    for reader in readers:
        reader.start()
    try:
        for k, place in enumerate(("quarry", "bridge", "meadow")):
            query = QueryParameters(prompt=f"The toad went to the {place}", completion=" again.", query_id=place)
            if k == 2:
                worlds.write_jsonl(files[0], worlds.documents()[4:9])
            walks.walk(walks.parameters(store, gpt2, files[: 2 + k], queries=(query,)), folder / f"log{k}")
    finally:
        stop.set()
        for reader in readers:
            reader.join(60)
    assert [reader.exitcode for reader in readers] == [0, 0]
    found = {log.stem: [json.loads(line) for line in log.read_text().splitlines()] for log in logs}
    return store, found


def test_no_look_fails(looks):
    _, found = looks
    errors = {name: [once["error"] for once in seen if "error" in once] for name, seen in found.items()}
    assert errors == {"kept": [], "reopened": []}
    assert min(map(len, found.values())) > 20


def test_all_rows_of_a_run_are_there_or_none(looks):
    store, found = looks
    connection = duckdb.connect(str(store / "headwater.duckdb"), read_only=True)
    last = {row[0]: tuple(row[1:]) for row in connection.execute(COUNTS).fetchall()}
    assert len(last) == 4
    ever = defaultdict(set)
    for once in (once for looked in found.values() for once in looked):
        assert set(once["owners"]) <= set(once["seen"])  # who has rows anywhere is a complete run
        for run, counts in once["seen"].items():
            ever[run].add(tuple(counts))
    assert dict(ever) == {run: {last[run]} for run in ever}


def test_a_look_sees_more_and_more_runs(looks):
    _, found = looks
    for name, looked in found.items():
        numbers = [len(once["seen"]) for once in looked]
        assert numbers == sorted(numbers), name
        assert numbers[0] < 4, name
