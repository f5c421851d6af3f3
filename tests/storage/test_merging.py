"""Compaction under readers, and killed at every step: each run is read once, whole, all the time."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from datetime import timedelta
from pathlib import Path

import pytest
from tiny_runs import tables, write_run

from storage.catalog import build_catalog, run_user_sql
from storage.homes import HOUSED, NOWHERE, OWN, merged_file, read_homes
from storage.merging import (
    plan_merges,
    remove_superseded,
    reopen_run,
    settle,
    write_merged,
)
from storage.schemas import RUN_RELATIONS
from storage.store import create_store, open_store
from storage.tables import has_part, read_part

ROOT = Path(__file__).parents[2]
NOW, LATER = timedelta(0), timedelta(hours=1)
LARGE = 1 << 30


def compact(store, target=LARGE, grace=NOW):
    for batch in plan_merges(store, target, 2):
        write_merged(store, batch)
        settle(store, {run: (batch.home, size) for run, size in batch.n_bytes.items()})
    return remove_superseded(store, grace)


def own_files(store) -> list[str]:
    return [p.stem for p in store.relation("influences").glob("*.parquet") if p.stem != "schema"]


@pytest.fixture
def store(tmp_path):
    store = create_store(tmp_path / "s")
    for k in range(6):
        write_run(store, f"run-{k}", n=3 + k, day=k)
    return store


def test_merged_runs_have_the_rows_they_had_and_few_files(store):
    before = tables(store)
    assert sum(map(len, before.values())) > 100
    compact(store)
    assert tables(store) == before
    assert own_files(store) == []
    assert [p.name for p in store.relation("influences").rglob("*.parquet") if p.stem != "schema"] == ["1.parquet"]
    merged = _runs_in(merged_file(store, "influences", 1))
    assert merged == sorted(merged)  # so that the footer tells which row groups a run is in


def test_a_merged_run_is_merged_again_with_those_that_came_after(store):
    compact(store)
    write_run(store, "run-6", n=4)
    write_run(store, "run-7", n=5)
    before = tables(store)
    compact(store)
    assert tables(store) == before
    assert set(map(lambda r: r.home, read_homes(store).of_runs.values())) == {2}
    assert not merged_file(store, "influences", 1).exists()


def test_runs_that_are_large_stay_in_their_own_files(store):
    write_run(store, "run-large", n=3000)
    size = store.file("token_influences", "run-large").stat().st_size
    compact(store, target=size)
    assert own_files(store) == ["run-large"]


def test_everything_that_asks_for_a_run_by_name_finds_it_after_merging(store):
    from storage.database import part_view, session

    rows = read_part(store, "influences", "run-2").to_pylist()
    compact(store)
    assert read_part(store, "influences", "run-2").to_pylist() == rows
    assert read_part(store, "influences", "run-2", columns=["influence"]).column_names == ["influence"]
    assert has_part(store, "runs", "run-2")
    assert not has_part(store, "runs", "run-9")
    with session(store) as connection:
        part_view(connection, store, "mine", "influences", "run-2")
        assert connection.sql("from mine").to_arrow_table().to_pylist() == rows


def test_files_that_a_reader_may_have_listed_stay_for_the_grace(store):
    assert compact(store, grace=LATER) == 0
    assert len(own_files(store)) == 6
    write_run(store, "run-6")
    write_run(store, "run-7")
    assert compact(store, grace=LATER) == 0
    assert merged_file(store, "influences", 1).exists()  # a reader may still go by the first change
    assert remove_superseded(store, NOW) > 0
    assert own_files(store) == []
    assert not merged_file(store, "influences", 1).exists()
    assert len(run_user_sql(store, "from runs")[1]) == 8


@pytest.mark.parametrize("merged", [False, True])
def test_a_deleted_run_vanishes_at_once_and_can_be_traced_again(store, merged):
    if merged:
        compact(store, grace=LATER)  # its own files are still there
    settle(store, {"run-2": (NOWHERE, 0)})
    for name in ("runs", *RUN_RELATIONS):
        assert run_user_sql(store, f"select count(*) from {name} where run_id = 'run-2'")[1] == [(0,)], name
    assert not has_part(store, "candidates", "run-2")
    reopen_run(store, "run-2")
    assert not store.file("candidates", "run-2").exists()
    write_run(store, "run-2", n=11)
    assert run_user_sql(store, "select count(*) from influences where run_id = 'run-2'")[1] == [(11,)]


def test_compaction_takes_the_rows_of_deleted_runs_off_the_disk(store):
    compact(store)
    settle(store, {"run-2": (NOWHERE, 0)})
    compact(store)
    left = [r for relation in HOUSED for home in (1, 2) for r in _runs_in(merged_file(store, relation, home))]
    assert left
    assert "run-2" not in left
    assert "run-2" not in read_homes(store).of_runs
    assert read_homes(store).home("run-2") == OWN


def _runs_in(path):
    import pyarrow.parquet as pq

    return pq.read_table(path, partitioning=None)["run_id"].to_pylist() if path.exists() else []


def test_a_damaged_file_is_not_merged_into_a_sound_one(store):
    from storage.errors import StoreError

    path = store.file("influences", "run-3")
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match="influences/run-3.parquet.*sealed"):
        compact(store)
    assert read_homes(store).of_runs == {}


KILLED_AT = {
    "half-way through the merged files": "merging.PartWriter.close = nth(merging.PartWriter.close, 3)",
    "before the change": "merging.settle = die",
    "while the change is written": "merging.write_part = die",
    "before files are removed": "merging.remove_superseded = die",
    "while files are removed": "merging._remove = nth(merging._remove, 4)",
}
PROGRAM = """
import os, signal, sys
from datetime import timedelta
from storage import merging
from storage.locks import locked
from storage.store import open_store

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def nth(function, n):
    calls = []
    def counting(*args, **kwargs):
        calls.append(1)
        return die() if len(calls) == n else function(*args, **kwargs)
    return counting

{kill}
store = open_store(sys.argv[1])
with locked(store, "compact"):
    for batch in merging.plan_merges(store, 1 << 30, 2):
        merging.write_merged(store, batch)
        merging.settle(store, {{run: (batch.home, size) for run, size in batch.n_bytes.items()}})
    merging.remove_superseded(store, timedelta(0))
"""


@pytest.mark.parametrize("kill", KILLED_AT.values(), ids=KILLED_AT)
def test_a_compaction_that_is_killed_leaves_every_row_and_the_next_one_finishes(store, kill):
    before = tables(store)
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(kill=kill), store.root], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert tables(store) == before
    compact(store)
    assert tables(store) == before
    assert own_files(store) == []
    assert len([p for p in store.relation("influences").rglob("*.parquet") if p.stem != "schema"]) == 1


READER = textwrap.dedent("""
    import sys, duckdb
    from storage.catalog import open_reader
    from storage.database import reading
    from storage.store import open_store
    connection = open_reader(open_store(sys.argv[1]))
    expected = [tuple(map(int, sys.argv[2:4])) + (float(sys.argv[4]),)]
    statement = (
        "select count(distinct i.run_id), count(*), sum(i.influence) "
        "from influences i join runs r on r.run_id = i.run_id "
        "join token_influences t on t.run_id = i.run_id and t.sequence_id = i.sequence_id"
    )
    answers = 0
    print("ready", flush=True)
    while not sys.stdin.closed and not __import__("select").select([sys.stdin], [], [], 0)[0]:
        found = reading(lambda: connection.execute(statement).fetchall())
        assert found == expected, (answers, found, expected)
        answers += 1
    print(answers)
""")


def test_a_reader_sees_every_run_once_through_many_compactions(tmp_path):
    store = create_store(tmp_path / "s")
    for k in range(40):
        write_run(store, f"run-{k:02d}", n=5)
    build_catalog(store)
    arguments = [sys.executable, "-c", READER, store.root, "40", "200", "600.0"]
    reader = subprocess.Popen(arguments, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert reader.stdout is not None
    assert reader.stdout.readline() == "ready\n"
    files = (store.file(relation, "run-00") for relation in HOUSED)
    size = sum(file.stat().st_size for file in files if file.exists())
    for target in (2 * size + 1, 5 * size, LARGE):  # ever fuller files, and the ones before removed at once
        compact(open_store(store.root), target)
        assert reader.poll() is None, "the reader failed"
    homes = {r.home for r in read_homes(store).of_runs.values()}
    answers, _ = reader.communicate("stop\n", timeout=60)
    assert reader.returncode == 0
    assert int(answers) > 5
    assert len(homes) == 1
    assert read_homes(store).number > 10
