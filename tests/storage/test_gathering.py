from __future__ import annotations

import subprocess
import sys
import tracemalloc
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import write_run

from storage.catalog import run_user_sql
from storage.gathering import folders, gather, remove_gathered
from storage.inbox import record_failures, retry, submit
from storage.prompts import make_prompt, register_prompts, stored_prompts
from storage.retention import delete_runs
from storage.store import create_store
from storage.tables import write_part

ROOT = Path(__file__).parents[2]
NOW, LATER, LARGE = timedelta(0), timedelta(hours=1), 1 << 30


@pytest.fixture
def store(tmp_path):
    store = create_store(tmp_path / "s")
    for k in range(5):
        register_prompts(store, [make_prompt("The otter", f" slept {k} times.", f"q{k}")])
    for name, ids in {"run-1-0": [1, 2, 3], "run-2-0": [3, 4], "p0-0-2": [9, 7]}.items():
        columns = {"factors_id": ["ek-1"] * len(ids), "sequence_id": ids, "self_influence": [float(i) for i in ids],
                   "gradient_norm": [2.0 * i for i in ids]}  # fmt: skip
        write_part(store, "self_influences", "ek-1", name, columns=columns)
    return store


def gather_all(store, least=2):
    return [gather(store, folder, LARGE, least) for folder in folders(store)]


def files(store, *names):
    return sorted(p.stem for p in store.relation(names[0]).joinpath(*names[1:]).glob("*.parquet") if p.stem != "schema")


def rows(store):
    return [run_user_sql(store, f"from {name} order by all")[1] for name in ("queries", "self_influences")]


def test_gathered_rows_are_the_same_before_during_and_after(store):
    before = rows(store)
    assert [len(found) for found in before] == [5, 6]
    assert gather_all(store) == [5, 0, 0, 0, 0, 3]
    assert rows(store) == before
    assert [remove_gathered(store, folder, LATER) for folder in folders(store)] == [0] * 6
    assert [remove_gathered(store, folder, NOW) for folder in folders(store)] == [5, 0, 0, 0, 0, 3]
    assert files(store, "queries") == files(store, "self_influences", "ek-1") == ["merged-00000001"]
    assert rows(store) == before
    ids = run_user_sql(store, "select sequence_id from stored.self_influences")[1]
    assert ids == [(1,), (2,), (3,), (4,), (7,), (9,)]  # sorted, so that a range of ids is found quickly


def test_what_is_gathered_already_is_not_gathered_again(store):
    gather_all(store)
    assert gather_all(store) == [0] * 6
    register_prompts(store, [make_prompt("The heron", " flew.", "q9")])
    assert gather_all(store) == [0] * 6
    assert gather_all(store, least=1) == [2, 0, 0, 0, 0, 0]  # the merged file and the new one
    assert [remove_gathered(store, folder, NOW) for folder in folders(store)] == [7, 0, 0, 0, 0, 3]
    assert [p.query_id for p in stored_prompts(store)] == ["q0", "q1", "q2", "q3", "q4", "q9"]


def test_a_gathered_query_cannot_come_in_a_second_time(store):
    gather_all(store)
    for folder in folders(store):
        remove_gathered(store, folder, NOW)
    assert register_prompts(store, [make_prompt("The otter", " slept 1 times.", "q1")]) == []
    assert len(stored_prompts(store)) == 5


def test_a_query_that_comes_in_while_others_are_gathered_is_kept(store):
    gather_all(store)
    register_prompts(store, [make_prompt("The heron", " flew.", "q9")])
    for folder in folders(store):
        remove_gathered(store, folder, NOW)
    assert len(files(store, "queries")) == 2
    assert len(stored_prompts(store)) == 6


INBOX = ("query_submissions", "query_failures", "query_retries", "deleted_answers", "query_states")


def test_the_inbox_says_the_same_before_during_and_after(store):
    """Failures count: while an attempt stands in two files, it is one."""
    submit(store, [make_prompt("The otter", f" slept {k} times.", f"q{k}") for k in range(5)])
    for k in (0, 1, 1):
        record_failures(store, {f"q{k}": "too long"})
        retry(store, [f"q{k}"])
    record_failures(store, {"q1": "too long", "q2": "too long"})
    for run in ("run-1", "run-2"):
        write_run(store, run)  # they answer q0
        delete_runs(store, [run], NOW)

    def inbox():
        return [run_user_sql(store, f"from {name} order by all")[1] for name in INBOX]

    before = inbox()
    assert [len(found) for found in before] == [5, 5, 3, 2, 5]
    states = dict(run_user_sql(store, "select query_id, (state, failures) from query_states")[1])
    assert states["q1"] == ("failed", 3)
    assert gather_all(store) == [5, 5, 4, 3, 2, 3]
    assert inbox() == before
    assert [remove_gathered(store, folder, NOW) for folder in folders(store)] == [5, 5, 4, 3, 2, 3]
    assert inbox() == before
    assert submit(store, [make_prompt("The otter", " slept 1 times.", "q1")]) == []  # its file is gone, and it is known
    assert inbox() == before


def test_no_row_becomes_an_object_of_python(store):
    """Whose memory no limit holds: as objects the keys of these files were some 20 MB."""
    n = 200_000
    for k in range(2):
        ids = np.arange(n) + k * n // 2
        columns = {"factors_id": ["ek-2"] * n, "sequence_id": ids, "self_influence": 1.0 * ids, "gradient_norm": ids}
        write_part(store, "self_influences", "ek-2", f"run-{k}", columns=columns)
    (folder,) = [folder for folder in folders(store) if folder.names == ("ek-2",)]
    tracemalloc.start()
    assert gather(store, folder, LARGE, 2) == 2
    assert remove_gathered(store, folder, NOW) == 2
    assert tracemalloc.get_traced_memory()[1] < 6 * 2**20  # two for the modules that DuckDB loads
    tracemalloc.stop()
    asked = "select count(*), sum(self_influence) from self_influences where factors_id = 'ek-2'"
    assert run_user_sql(store, asked)[1] == [(n * 3 // 2, float(sum(range(n * 3 // 2))))]


KILLED_AT = {
    "while the merged file is written": "gathering.PartWriter.close = die",
    "while files are removed": "gathering.remove_file = nth(gathering.remove_file, 3)",
}
PROGRAM = """
import os, signal, sys
from datetime import timedelta
from storage import gathering
from storage.store import open_store

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def nth(function, n):
    calls = []
    def counting(*args):
        calls.append(1)
        return die() if len(calls) == n else function(*args)
    return counting

{kill}
store = open_store(sys.argv[1])
for folder in gathering.folders(store):
    gathering.gather(store, folder, 1 << 30, 2)
    gathering.remove_gathered(store, folder, timedelta(0))
"""


@pytest.mark.parametrize("kill", KILLED_AT.values(), ids=KILLED_AT)
def test_gathering_that_is_killed_loses_and_doubles_nothing(store, kill):
    before = rows(store)
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(kill=kill), store.root], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert rows(store) == before
    gather_all(store)
    for folder in folders(store):
        remove_gathered(store, folder, NOW)
    assert rows(store) == before
    assert len(files(store, "queries")) == len(files(store, "self_influences", "ek-1")) == 1
