"""The inbox: nothing comes in twice, and a query waits, fails, waits again and is answered."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from datetime import datetime
from itertools import count
from pathlib import Path

import pytest

from storage import inbox
from storage.batches import Batch, begin_batch, discount_attempt, end_batch, unfinished_batches
from storage.database import session
from storage.errors import InputError, MismatchError
from storage.inbox import count_states, query_states, record_failures, retry, submit, waiting_prompts
from storage.prompts import make_prompt, query_file, register_prompts
from storage.retention import delete_runs
from storage.schemas import SCHEMAS
from storage.store import create_store, open_store
from storage.tables import read_part, write_part

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path):
    store = create_store(tmp_path / "s")
    submit(store, [make_prompt("p", f" {name}", name) for name in ("late", "early")])
    return store


def answer(store, run_id: str, query_id: str) -> None:
    """A complete run that holds one query; columns that no statement here reads are null."""
    for relation, row in (
        ("run_queries", {"run_id": run_id, "query_id": query_id}),
        ("runs", {"run_id": run_id, "finished_at": datetime(2026, 1, 2)}),
    ):
        write_part(store, relation, run_id, columns={name: [row.get(name)] for name in SCHEMAS[relation].names})


def states(store) -> dict[str, str]:
    return {row["query_id"]: row["state"] for row in query_states(store)}


def test_queries_wait_in_the_order_in_which_they_were_handed_in(store):
    assert [p.query_id for p in waiting_prompts(store, 10)] == ["late", "early"]
    assert [p.query_id for p in waiting_prompts(store, 1)] == ["late"]


def test_a_query_waits_fails_waits_again_and_is_answered(store):
    record_failures(store, {"late": "too long"})
    assert states(store) == {"late": "failed", "early": "waiting"}
    assert retry(store) == ["late"]
    assert states(store) == {"late": "waiting", "early": "waiting"}
    record_failures(store, {"late": "still too long"})
    assert [(r["error"], r["failures"]) for r in query_states(store, ["late"])] == [("still too long", 2)]
    answer(store, "run-1", "late")
    assert states(store) == {"late": "answered", "early": "waiting"}
    assert count_states(store) == {"waiting": 1, "failed": 0, "answered": 1}


def test_a_query_of_a_deleted_run_stays_answered_until_somebody_asks_again(store):
    """Else a schedule would trace again whatever retention lets go."""
    for k in (1, 2):
        answer(store, f"run-{k}", "late")
        delete_runs(store, [f"run-{k}"])
        assert states(store) == {"late": "answered", "early": "waiting"}
        assert query_states(store, ["late"])[0]["run_id"] is None
        assert retry(store) == []  # all that failed; that is none
        assert retry(store, ["late"]) == ["late"]
        assert states(store)["late"] == "waiting"
    record_failures(store, {"late": "too long"})
    assert states(store)["late"] == "failed"
    answer(store, "run-3", "late")
    with pytest.raises(InputError, match="one that is answered"):
        retry(store, ["late"])


def test_an_interrupted_run_that_is_deleted_had_answered_nothing(store):
    answer(store, "run-1", "late")
    store.file("runs", "run-1").unlink()
    delete_runs(store, ["run-1"])
    assert states(store)["late"] == "waiting"


def test_a_damaged_run_can_be_deleted_and_its_queries_wait_again(store):
    answer(store, "run-1", "late")
    store.file("run_queries", "run-1").write_bytes(b"damaged")
    delete_runs(store, ["run-1"])
    store.file("run_queries", "run-1").unlink()
    assert states(store)["late"] == "waiting"


def test_a_query_of_a_trace_by_hand_does_not_wait_unless_it_is_submitted_too(store):
    by_hand = make_prompt("p", " by hand", "by hand")
    register_prompts(store, [by_hand])
    assert "by hand" not in states(store)
    assert [p.query_id for p in waiting_prompts(store, 10)] == ["late", "early"]
    assert submit(store, [by_hand]) == []  # known, in the same words
    assert [p.query_id for p in waiting_prompts(store, 10)] == ["late", "early", "by hand"]


def test_a_batch_is_known_until_it_ends_with_how_many_times_it_was_begun(store):
    assert unfinished_batches(store) == []
    assert [begin_batch(store, ["a", "../b"]), begin_batch(store, ["a", "../b"])] == [1, 2]
    assert begin_batch(store, ["../b", "a"]) == 1  # another order is another run
    discount_attempt(store, ["a", "../b"])
    assert sorted(unfinished_batches(store), key=lambda batch: batch.query_ids) == [
        Batch(("../b", "a"), 1), Batch(("a", "../b"), 1)
    ]  # fmt: skip
    end_batch(store, ["a", "../b"])
    assert [batch.query_ids for batch in unfinished_batches(open_store(store.root))] == [("../b", "a")]


def test_a_run_that_is_not_complete_answers_nothing(store):
    answer(store, "run-1", "late")
    store.file("runs", "run-1").unlink()
    assert states(store)["late"] == "waiting"


def test_only_a_failed_query_can_be_tried_again(store):
    for name, found in (("early", "one that is waiting"), ("nobody", "none of that id")):
        with pytest.raises(InputError, match=found):
            retry(store, [name])


def test_a_clock_that_was_set_back_neither_undoes_a_retry_nor_hides_a_failure(store, monkeypatch):
    days = count(20, -1)

    class Backwards(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2026, 1, next(days), tzinfo=tz)

    monkeypatch.setattr(inbox, "datetime", Backwards)
    for expected in ("failed", "waiting", "failed"):
        record_failures(store, {"late": "x"}) if expected == "failed" else retry(store, ["late"])
        assert states(store)["late"] == expected


def test_an_id_is_known_after_its_file_was_merged_with_others(store):
    """As compaction does: the rows in one file, then the files of single queries removed."""
    tables = [read_part(store, "queries", query_file(name)).to_pydict() for name in ("late", "early")]
    write_part(store, "queries", "merged", columns={k: [v for t in tables for v in t[k]] for k in tables[0]})
    with session(store) as connection:  # both copies are there
        assert connection.execute("select count(*) from queries").fetchall() == [(2,)]
    store.file("queries", query_file("late")).unlink()
    assert register_prompts(store, [make_prompt("p", " late", "late")]) == []
    with pytest.raises(MismatchError, match="another query_id"):
        register_prompts(store, [make_prompt("p", " other words", "late")])


def test_an_id_from_outside_never_forms_a_path(store):
    before = {path for path in store.root.parent.rglob("*") if path.is_dir()}
    for name in ("../../escaped", "/etc/passwd", "a\x00b", "", "ä" * 5000):
        register_prompts(store, [make_prompt("p", " c", name)])
    assert {path for path in store.root.parent.rglob("*") if path.is_dir()} == before
    assert len(list(store.relation("queries").glob("q-*.parquet"))) == 2 + 5


SUBMIT = """
import sys
from storage.inbox import submit
from storage.prompts import make_prompt
from storage.store import open_store
store, me = open_store(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
input()
for k in range(50):
    n = len(submit(store, [make_prompt("p", f" {me}", f"{me}-{k}")]))
    n += len(submit(store, [make_prompt("p", f" shared {k}", f"shared-{k}")]))
    print(n, flush=True)
"""


def test_ten_processes_submit_a_thousand_queries_and_none_is_lost_or_comes_in_twice(tmp_path):
    """Each has 50 of its own, and all ten submit the same further 50; a reader looks on all the while."""
    store = create_store(tmp_path / "s")
    program = [sys.executable, "-c", SUBMIT, str(store.root)]
    running = [
        subprocess.Popen([*program, str(k)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for k in range(10)
    ]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    seen = [0]
    while any(process.poll() is None for process in running):
        with session(store) as connection:
            seen.append(connection.execute("select count(*) from queries").fetchall()[0][0])
    assert [process.returncode for process in running] == [0] * 10
    assert seen == sorted(seen)
    new = sum(int(line) for process in running for line in process.stdout.read().split())
    with session(open_store(store.root)) as connection:
        ids = Counter(row[0] for row in connection.execute("select query_id from stored.queries").fetchall())
    wanted = {f"{me}-{k}" for me in [*range(10), "shared"] for k in range(50)}
    assert set(ids) == wanted
    assert set(ids.values()) == {1}
    assert new == len(wanted)
    assert {prompt.query_id for prompt in waiting_prompts(store, 2000)} == wanted
