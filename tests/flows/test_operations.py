"""What runs without a person: a watched folder, the inbox, factors that follow the corpus, evaluations."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import worlds

from flows import pending
from flows.evaluation import nightly_evaluation
from flows.parameters import (
    EvaluationParameters,
    FactorParameters,
    ModelParameters,
    PendingParameters,
    RefreshParameters,
)
from flows.pending import trace_pending
from flows.refit import refit_factors
from flows.refresh import refresh_corpus
from storage.batches import begin_batch, unfinished_batches
from storage.catalog import run_user_sql
from storage.errors import InputError, StoreError
from storage.inbox import query_states, record_failures, retry
from storage.inbox import submit as hand_in
from storage.prompts import make_prompt, register_prompts
from storage.retention import delete_runs
from storage.store import open_store
from tasks.compute import ComputeParameters
from tasks.factors import FitParameters
from tasks.influence.errors import InfluenceError
from tasks.methods import MethodParameters

pytestmark = pytest.mark.usefixtures("prefect_db")
LONG_AGO = time.time() - 3600
PARTS = "select part, count(distinct document_id) from sequences group by all order by all"
SETTINGS = {"compute": ComputeParameters(precision="float32"), "fit": FitParameters(sequences=40), "cluster": "none"}


def ask(store: Path, statement: str) -> list[tuple]:
    return run_user_sql(open_store(store), statement)[1]


def states(store: Path) -> dict[str, str]:
    return {row["query_id"]: row["state"] for row in query_states(open_store(store))}


def drop(folder: Path, name: str, records: list[dict], written: float = LONG_AGO) -> Path:
    path = worlds.write_jsonl(folder / name, records)
    os.utime(path, (written, written))
    return path


@pytest.fixture
def refresh(tmp_path, gpt2):
    """Look into the folder `incoming` once."""

    def run() -> int:
        parameters = RefreshParameters(
            store=str(tmp_path / "s"), model=ModelParameters(name=str(gpt2)), folder=str(tmp_path / "incoming"),
            cluster="none",
        )  # fmt: skip
        return refresh_corpus(parameters)

    (tmp_path / "incoming").mkdir()
    return run


def test_new_files_come_in_once_and_those_being_written_wait(tmp_path, refresh):
    documents, incoming = worlds.documents(), tmp_path / "incoming"
    assert refresh() == 0
    drop(incoming, "a.jsonl", documents[:8])
    drop(incoming / "deeper", "b.jsonl", documents[8:12])
    growing = drop(incoming, "c.jsonl", documents[12:20], written=time.time())
    drop(incoming, ".d.jsonl.part", documents[20:])
    refresh()
    assert ask(tmp_path / "s", PARTS) == [("p00000", 8), ("p00001", 4)]
    assert ask(tmp_path / "s", "select count(*) > 0 from postings") == [(True,)]
    os.utime(growing, (LONG_AGO, LONG_AGO))
    refresh()
    assert ask(tmp_path / "s", PARTS) == [("p00000", 8), ("p00001", 4), ("p00002", 8)]
    drop(incoming, "a.jsonl", documents[:7], written=LONG_AGO + 1)  # changed: replaces its part
    refresh()
    assert ask(tmp_path / "s", PARTS) == [("p00001", 4), ("p00002", 8), ("p00003", 7)]


def test_what_is_known_is_not_read_again(tmp_path, refresh, monkeypatch):
    drop(tmp_path / "incoming", "a.jsonl", worlds.documents())
    n = refresh()

    def never(self):
        raise AssertionError(f"{self.label} was read again")

    monkeypatch.setattr("storage.inputs.CorpusFile.digest", never)
    assert refresh() == n


def test_a_file_stamped_in_the_future_comes_in_after_the_clock_was_set_back(tmp_path, refresh):
    drop(tmp_path / "incoming", "a.jsonl", worlds.documents(), written=time.time() + 3600)
    assert refresh() > 0


def test_a_file_that_cannot_be_used_is_named_and_keeps_no_other_out(tmp_path, refresh):
    documents = worlds.documents()
    drop(tmp_path / "incoming", "a.jsonl", documents[:8])
    drop(tmp_path / "incoming", "b.jsonl", [{"words": "no column called text"}])
    drop(tmp_path / "incoming", "c.jsonl", documents[8:])
    with pytest.raises(InputError, match=r"1 that cannot: corpus .*b\.jsonl.*column 'text'"):
        refresh()
    assert ask(tmp_path / "s", PARTS) == [("p00000", 8), ("p00001", 40)]


def test_a_saved_dataset_that_is_half_copied_waits_and_one_that_is_broken_is_named(tmp_path, refresh):
    """Neither is taken for one that was moved away, and neither keeps the other files out."""
    drop(tmp_path / "incoming", "a.jsonl", worlds.documents()[:8])
    index = tmp_path / "incoming" / "saved" / "dataset_dict.json"
    index.parent.mkdir()
    index.write_text('{"splits": ["tra')
    assert refresh() > 0
    for path in (index, index.parent):
        os.utime(path, (LONG_AGO, LONG_AGO))
    drop(tmp_path / "incoming", "b.jsonl", worlds.documents()[8:])
    with pytest.raises(InputError, match=r"1 that cannot: corpus .*dataset_dict\.json"):
        refresh()
    assert ask(tmp_path / "s", PARTS) == [("p00000", 8), ("p00001", 40)]


def test_a_watched_folder_must_be_one(tmp_path, refresh):
    (tmp_path / "incoming").rmdir()
    with pytest.raises(InputError, match="nothing there"):
        refresh()


@pytest.fixture
def fed(tmp_path, refresh) -> Path:
    """A store with a corpus; the documents' metadata name their colour."""
    drop(tmp_path / "incoming", "fables.jsonl", worlds.documents())
    refresh()
    return tmp_path / "s"


def answer(store: Path, model: Path, batch: int = 64) -> list[str]:
    return trace_pending(
        PendingParameters(
            store=str(store),
            model=ModelParameters(name=str(model)),
            batch=batch,
            method=MethodParameters(rescore=2),
            **SETTINGS,
        )
    )


def submit(store: Path, **queries: str) -> None:
    prompts = [make_prompt("The otter went to the", words, name) for name, words in queries.items()]
    hand_in(open_store(store), prompts)


def test_queries_are_answered_once_and_one_that_cannot_be_is_noted_and_stops_no_other(fed, gpt2):
    submit(fed, first=" harbour.", endless=" harbour" * 60, second=" quarry.")
    runs = answer(fed, gpt2, batch=1)
    assert len(runs) == 2
    assert states(fed) == {"first": "answered", "second": "answered", "endless": "failed"}
    assert "at most 48 tokens" in ask(fed, "select error from query_failures")[0][0]
    assert ask(fed, "select count(*) > 0 from influences where query_id = 'second'") == [(True,)]
    assert answer(fed, gpt2) == []  # nothing waits: not what was answered, not what failed
    retry(open_store(fed))
    answer(fed, gpt2)
    assert ask(fed, "select count(*) from query_failures") == [(2,)]


def test_a_query_that_fails_late_is_found_among_the_others(fed, gpt2, monkeypatch):
    """A poisonous query gets past the screening and breaks every trace that it is part of."""
    real = pending.trace

    def trace(parameters):
        if any(query.query_id == "poison" for query in parameters.queries):
            raise InfluenceError("its gradient is not finite")
        return real(parameters)

    monkeypatch.setattr(pending, "trace", trace)
    submit(fed, one=" harbour.", two=" quarry.", poison=" meadow.", three=" chapel.")
    assert len(answer(fed, gpt2)) == 2  # {one, two} and {three}
    assert states(fed) == {"one": "answered", "two": "answered", "poison": "failed", "three": "answered"}


def test_an_error_that_all_queries_share_is_the_flows_own(fed, gpt2, monkeypatch):
    submit(fed, one=" harbour.", two=" quarry.")
    full = StoreError("writing", expected="room on the disk", found="none left", remedy="Free some space.")
    for error in (full, full, full, full, RuntimeError("the machine is on fire")):

        def trace(parameters, error=error):
            raise error

        monkeypatch.setattr(pending, "trace", trace)
        with pytest.raises(type(error)):
            answer(fed, gpt2)
        assert states(fed) == {"one": "waiting", "two": "waiting"}


def test_a_lone_query_that_breaks_every_trace_fails_before_its_schedule_is_paused(fed, gpt2, monkeypatch):
    """Two flow runs fail, in case the error is everybody's; the third notes the query's failure and completes."""

    def trace(parameters):
        raise InfluenceError("its gradient is not finite")

    monkeypatch.setattr(pending, "trace", trace)
    submit(fed, poison=" meadow.")
    for _ in range(2):
        with pytest.raises(InfluenceError):
            answer(fed, gpt2)
        assert states(fed) == {"poison": "waiting"}
    assert answer(fed, gpt2) == []
    assert states(fed) == {"poison": "failed"}
    assert query_states(open_store(fed))[0]["error"] == "its gradient is not finite"
    assert unfinished_batches(open_store(fed)) == []


@pytest.fixture
def asked(monkeypatch) -> list[list[str]]:
    """The queries of each trace that is asked for; none is carried out."""
    found: list[list[str]] = []

    def trace(parameters):
        found.append([query.query_id for query in parameters.queries])
        return f"run-{len(found)}"

    monkeypatch.setattr(pending, "trace", trace)
    return found


def test_a_batch_that_was_broken_off_goes_on_as_it_was_whatever_came_since(fed, gpt2, monkeypatch, asked):
    real = pending.trace

    def stopped(parameters):
        real(parameters)
        raise KeyboardInterrupt

    submit(fed, one=" harbour.", two=" quarry.")
    monkeypatch.setattr(pending, "trace", stopped)
    with pytest.raises(BaseException):  # noqa: B017, PT011  # Prefect has a name of its own for it
        answer(fed, gpt2)
    monkeypatch.setattr(pending, "trace", real)
    submit(fed, three=" chapel.")
    assert len(answer(fed, gpt2)) == 2
    assert asked == [["one", "two"], ["one", "two"], ["three"]]


def test_queries_whose_traces_are_killed_are_told_apart_and_fail_in_the_end(fed, gpt2, asked):
    """A process that is killed says nothing: only that it began is known."""
    submit(fed, one=" harbour.", two=" quarry.", three=" chapel.")
    for ids in (["one", "two"], ["three"]):
        for _ in range(pending.ATTEMPTS):
            begin_batch(open_store(fed), ids)
    answer(fed, gpt2)
    assert sorted(asked) == [["one"], ["two"]]
    assert states(fed)["three"] == "failed"
    assert "3 that were killed" in str(query_states(open_store(fed), ["three"])[0]["error"])


def test_what_retention_let_go_is_not_traced_again(fed, gpt2):
    submit(fed, one=" harbour.")
    delete_runs(open_store(fed), answer(fed, gpt2))
    assert answer(fed, gpt2) == []
    retry(open_store(fed), ["one"])
    assert len(answer(fed, gpt2)) == 1
    assert states(fed) == {"one": "answered"}


def test_a_query_of_a_trace_by_hand_is_not_traced_by_the_schedule_too(fed, gpt2, asked):
    register_prompts(open_store(fed), [make_prompt("The otter went to the", " harbour.", "by hand")])
    assert answer(fed, gpt2) == []
    assert asked == []


def test_queries_wait_for_a_corpus(tmp_path, refresh, gpt2):
    refresh()
    submit(tmp_path / "s", one=" harbour.")
    assert answer(tmp_path / "s", gpt2) == []
    assert states(tmp_path / "s") == {"one": "waiting"}


def test_factors_are_fitted_again_only_when_model_or_corpus_changed(tmp_path, fed, gpt2, refresh):
    def refit(model: Path) -> str | None:
        return refit_factors(FactorParameters(store=str(fed), model=ModelParameters(name=str(model)), **SETTINGS))

    first = refit(gpt2)
    manifest = fed / "factors" / str(first) / "manifest.json"
    written = manifest.stat().st_mtime_ns
    assert refit(gpt2) == first
    assert manifest.stat().st_mtime_ns == written
    assert refit(worlds.save_gpt2(tmp_path / "other", seed=1)) != first  # the same tokenizer, other weights
    drop(tmp_path / "incoming", "more.jsonl", [{"document_id": "new", "text": "The otter went to the moon."}])
    refresh()
    assert refit(gpt2) != first


def test_without_a_corpus_there_is_nothing_to_fit(tmp_path, refresh, gpt2):
    refresh()
    assert refit_factors(FactorParameters(store=str(tmp_path / "s"), model=ModelParameters(name=str(gpt2)))) is None


def test_runs_whose_queries_name_a_truth_of_the_corpus_are_evaluated_once(fed, gpt2):
    place = open_store(fed)
    hand_in(
        place, [make_prompt("The otter went to the", " harbour.", "true", '{"colour": "blue", "group": "animals"}')]
    )
    answer(fed, gpt2)
    hand_in(place, [make_prompt("The lynx went to the", " quarry.", "ticket", '{"ticket": "HW-12"}')])
    hand_in(place, [make_prompt("The toad went to the", " chapel.", "plain", '{"group": "animals"}')])
    answer(fed, gpt2)

    parameters = EvaluationParameters(store=str(fed))
    (run_id,) = nightly_evaluation(parameters)
    assert nightly_evaluation(parameters) == []
    assert ask(fed, "select run_id from run_queries where query_id = 'true'") == [(run_id,)]
    # By hand: of the first ten by rank, the share that is blue; 'relative' is a ranking of its own.
    wanted = ask(
        fed,
        "select avg((d.metadata->>'$.colour' = 'blue')::int) from influences i join sequences s using (sequence_id) "
        "join documents d using (document_id) where i.query_id = 'true' and i.influence_rank <= 10",
    )
    found = ask(fed, "select value, n from evaluations where method = 'ekfac' and metric = 'precision@10'")
    assert found == [(pytest.approx(wanted[0][0]), 1)]


def test_a_failure_of_a_query_that_was_answered_since_does_not_count(fed, gpt2):
    submit(fed, one=" harbour.")
    record_failures(open_store(fed), {"one": "once"})
    assert answer(fed, gpt2) == []
    retry(open_store(fed), ["one"])
    assert len(answer(fed, gpt2)) == 1
    assert states(fed) == {"one": "answered"}
