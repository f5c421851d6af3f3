"""Traces into one store at once, in real processes: each ends as it would alone, and equal work is done once."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from pathlib import Path

import pytest
import worlds
from recovery import walks
from recovery.walks import Change
from tables import assert_same

from flows.parameters import QueryParameters
from tasks.candidates import CandidateParameters

pytestmark = pytest.mark.e2e

HERON = (QueryParameters(prompt="The heron went to the", completion=" orchard.", query_id="heron"),)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    return walks.three_files(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory, gpt2, files):
    """The rows of two traces, each alone in its store, and one of the stores."""
    folder = tmp_path_factory.mktemp("alone")
    walks.walk(walks.parameters(folder / "first", gpt2, files), folder / "log")
    walks.walk(walks.parameters(folder / "second", gpt2, files, queries=HERON), folder / "log")
    return folder


def rows_of_runs(store: Path) -> dict[str, list[tuple]]:
    """Relations whose rows begin with their run's id, self-influences and corpus left out."""
    return {name: rows for name, rows in walks.tables(store).items() if rows and str(rows[0][0]).startswith("run-")}


def _key(row: tuple) -> str:
    return repr(row[:4])  # the keys, in every relation, before any number that was computed


def together(*stores: Path) -> dict[str, list[tuple]]:
    """The rows of the runs of several stores, as they would stand in one."""
    found = [rows_of_runs(store) for store in stores]
    names = sorted({name for tables in found for name in tables})
    return {name: sorted((row for tables in found for row in tables.get(name, [])), key=_key) for name in names}


RELATIVE = 6  # of `influences`, the column that self-influences enter


def assert_same_runs(store: Path, *alone: Path) -> None:
    """Rows are equal; a relative influence up to the last digits of float32, as a sequence's self-influence is that of
    the pass which met it first, among other sequences of a batch."""
    found, expected = together(store), together(*alone)
    assert found.keys() == expected.keys()
    relative = [
        [row[RELATIVE] for row in tables["influences"] if row[RELATIVE] is not None] for tables in (found, expected)
    ]
    assert relative[0] == pytest.approx(relative[1], rel=1e-6)
    for tables in (found, expected):
        tables["influences"] = [row[:RELATIVE] + row[RELATIVE + 1 :] for row in tables["influences"]]
    for name in expected:
        assert found[name] == expected[name], name


def written(walks_made: list[list[Change]]) -> Counter:
    """How often each file of the tables, the parts and the factors was put in its place, by all walks."""
    return Counter(
        change.path
        for changes in walks_made
        for change in changes
        if change.event == "os.rename"
        and change.path.startswith(("tables/", "parts/", "factors/"))
        and not change.path.endswith("schema.parquet")
    )


def walk_together(folder: Path, *asked) -> list[list[Change]]:
    logs = [folder / f"log{k}" for k in range(len(asked))]
    processes = [walks.start(parameters, log) for parameters, log in zip(asked, logs, strict=True)]
    return [walks.ended(process, log) for process, log in zip(processes, logs, strict=True)]


def test_two_different_traces_into_a_new_store_at_once(tmp_path, gpt2, files, alone):
    store = tmp_path / "s"
    changes = walk_together(
        tmp_path, walks.parameters(store, gpt2, files), walks.parameters(store, gpt2, files, queries=HERON)
    )
    assert_same_runs(store, alone / "first", alone / "second")
    shared = {path: n for path, n in written(changes).items() if not path.startswith("tables/self_influences")}
    assert max(shared.values()) == 1, shared  # corpus, index and fit were made by one of them


def test_two_equal_traces_at_once_do_the_work_once(tmp_path, gpt2, files, alone):
    store = tmp_path / "s"
    asked = walks.parameters(store, gpt2, files)
    changes = walk_together(tmp_path, asked, asked)
    assert_same_runs(store, alone / "first")
    assert set(written(changes).values()) == {1}


def test_a_run_does_not_wait_for_another_over_the_same_corpus_and_fit(tmp_path, gpt2, files, alone):
    store = Path(shutil.copytree(alone / "first", tmp_path / "s"))
    held = walks.parameters(store, gpt2, files, candidates=CandidateParameters(top_k=9))
    with walks.halted(held, tmp_path / "log0", ("scores", 0)) as other:
        walks.walk(walks.parameters(store, gpt2, files, queries=HERON), tmp_path / "log1")
        assert len(walks.tables(store)["runs"]) == 2
    assert other.exitcode == 0
    assert len(walks.tables(store)["runs"]) == 3


def test_a_run_keeps_to_its_corpus_while_another_adds_to_it(tmp_path, gpt2, files, alone):
    more = worlds.write_jsonl(tmp_path / "more.jsonl", [{"text": "The otter came home."}])
    first = walks.parameters(tmp_path / "s", gpt2, files)
    # Before its first query is created, when it holds no lock.
    with walks.halted(first, tmp_path / "log0", ("after lexical index", "os.link")) as other:
        walks.walk(walks.parameters(tmp_path / "s", gpt2, [more], queries=HERON), tmp_path / "log1")
    assert other.exitcode == 0
    found = walks.tables(tmp_path / "s")
    (heron,) = {row[0] for row in found["run_queries"] if row[1] == "heron"}
    rest = {name: [row for row in found[name] if row[0] != heron] for name in rows_of_runs(tmp_path / "s")}
    assert_same(rest, rows_of_runs(alone / "first"))  # another corpus would have another fit
    assert Counter(row[1] for row in found["candidates"] if row[0] == heron)["heron"] > 0


def test_a_run_whose_text_is_replaced_says_so_and_is_right_when_run_again(tmp_path, gpt2, files):
    mine = [Path(shutil.copy(file, tmp_path)) for file in files]
    asked = walks.parameters(tmp_path / "s", gpt2, mine)
    with walks.halted(asked, tmp_path / "log0", ("factors", 0)) as other:
        worlds.write_jsonl(mine[1], [{"text": "The badger went to the quarry. Nobody saw it."}] * 3)
        walks.walk(walks.parameters(tmp_path / "s", gpt2, mine, queries=HERON), tmp_path / "log1")
    assert other.exitcode == 1
    assert "the corpus has changed since" in walks.changes_in(tmp_path / "log0")[-1].path
    walks.walk(asked, tmp_path / "log2")
    found = walks.tables(tmp_path / "s")
    new = [f"{mine[1].stem}:{row}" for row in range(3)]
    assert sorted(row[0] for row in found["documents"]) == sorted(
        [d["document_id"] for k, d in enumerate(worlds.documents()) if k // 16 != 1] + new
    )
    sequences = {row[0] for row in found["sequences"]}
    assert {row[2] for row in found["influences"]} <= sequences
    assert {row[1] for row in found["run_queries"]} == {"heron", "otter", "viper"}
    assert len(found["runs"]) == 2


def test_catalogs_that_two_processes_build_at_once_open_throughout(tmp_path, alone):
    from storage.catalog import build_catalog, run_user_sql
    from storage.store import open_store

    store = open_store(shutil.copytree(alone / "first", tmp_path / "s"))
    build_catalog(store)
    stop, failures = threading.Event(), []

    def build():
        while not stop.is_set():
            try:
                build_catalog(store)
            except Exception as error:
                failures.append(error)

    builders = [threading.Thread(target=build) for _ in range(3)]
    for builder in builders:
        builder.start()
    try:
        for _ in range(20):
            assert run_user_sql(store, "select count(*) from runs")[1] == [(1,)]
    finally:
        stop.set()
        for builder in builders:
            builder.join()
    assert failures == []
