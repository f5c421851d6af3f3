"""Self-influence of a whole corpus: measured once, resumed, shared with traces, and able to name an outlier."""

from __future__ import annotations

from pathlib import Path

import pytest
import worlds

from flows.ingest import ingest_corpus
from flows.parameters import IngestParameters, QueryParameters, SelfInfluenceParameters, TraceParameters
from flows.self_influence import self_influence
from flows.trace import trace
from storage.catalog import run_user_sql
from storage.store import open_store
from tasks import self_influence as stage
from tasks import selves

pytestmark = pytest.mark.usefixtures("prefect_db")


def ask(store: Path, statement: str) -> list[tuple]:
    return run_user_sql(open_store(store), statement)[1]


def survey(store: Path, model: Path, **changes):
    values = {"store": str(store), "model": {"name": str(model)}, "compute": {"precision": "float32"}}
    return self_influence(SelfInfluenceParameters.model_validate(values | {"cluster": "none"} | changes))


def ingest(store: Path, model: Path, *files: Path) -> Path:
    values = {"store": str(store), "model": {"name": str(model)}, "corpus": {"inputs": [str(f) for f in files]}}
    ingest_corpus(IngestParameters.model_validate(values | {"cluster": "none"}))
    return store


@pytest.fixture(scope="module")
def surveyed(tmp_path_factory, gpt2, corpus, prefect_db):
    store = ingest(tmp_path_factory.mktemp("surveyed") / "s", gpt2, corpus)
    survey(store, gpt2)
    return store


def test_every_sequence_of_the_corpus_has_one(surveyed):
    assert ask(surveyed, "select count(*) from self_influences") == ask(surveyed, "select count(*) from sequences")
    assert ask(surveyed, "select min(self_influence) > 0, min(gradient_norm) > 0 from self_influences") == [
        (True, True)
    ]


def test_a_second_survey_measures_nothing(surveyed, gpt2):
    assert survey(surveyed, gpt2)[1] == 0


def test_gradient_norms_of_a_grown_corpus_are_measured_for_the_new_files_only(tmp_path, gpt2, corpus):
    """Factors are fitted anew on a grown corpus; a norm depends on the model and the sequence alone."""
    store = ingest(tmp_path / "s", gpt2, corpus)
    first, _ = survey(store, gpt2, method="identity")
    more = worlds.write_jsonl(tmp_path / "more.jsonl", [{"document_id": "new", "text": "The toad slept."}])
    ingest(store, gpt2, more)
    assert survey(store, gpt2, method="identity") == (first, 1)


def test_a_trace_finds_what_a_survey_has_measured_and_agrees_with_it(tmp_path, gpt2, corpus, surveyed):
    queries = (QueryParameters(prompt="The otter went to the", completion=" harbour.", query_id="otter"),)
    values = {"model": {"name": str(gpt2)}, "queries": queries, "compute": {"precision": "float32"}, "cluster": "none"}
    store = ingest(tmp_path / "s", gpt2, corpus)
    trace(TraceParameters.model_validate(values | {"store": str(store), "candidates": {"filters": ["none"]}}))
    assert survey(store, gpt2)[1] == 0
    rows = "select sequence_id, self_influence, gradient_norm from self_influences order by all"
    for mine, theirs in zip(ask(store, rows), ask(surveyed, rows), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


def test_a_killed_survey_goes_on_where_it_stopped(tmp_path, gpt2, corpus, surveyed, monkeypatch):
    store = ingest(tmp_path / "s", gpt2, corpus)
    monkeypatch.setattr(selves, "BLOCK", 16)
    real, calls = stage.measure_block, []

    def power_cut(job):
        calls.append(job)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(job)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "measure_block", power_cut)
        with pytest.raises(KeyboardInterrupt):
            survey(store, gpt2)
    total = ask(store, "select count(*) from sequences")[0][0]
    assert survey(store, gpt2)[1] == total - 16
    rows = "select sequence_id, self_influence from self_influences order by all"
    for mine, theirs in zip(ask(store, rows), ask(surveyed, rows), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


def test_one_module_at_a_time_sums_to_the_same(tmp_path, gpt2, corpus, surveyed, monkeypatch):
    store = ingest(tmp_path / "s", gpt2, corpus)
    passes, real = [], selves.sweep

    def counting(model, chosen, *rest):
        passes.append(chosen)
        return real(model, chosen, *rest)

    monkeypatch.setattr(selves, "sweep", counting)
    monkeypatch.setattr(selves, "matrix_budget", lambda: 1)
    survey(store, gpt2)
    assert [len(modules) for modules in passes] == [1] * 4
    rows = "select sequence_id, self_influence from self_influences order by all"
    for mine, theirs in zip(ask(store, rows), ask(surveyed, rows), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


def test_the_macro_lists_the_largest_first_in_total_and_by_token(surveyed):
    found = ask(surveyed, "select rank, self_influence from largest_self_influences(k := 5)")
    largest = ask(surveyed, "select self_influence from self_influences order by 1 desc limit 5")
    assert found == [(k + 1, value) for k, (value,) in enumerate(largest)]
    by_token = ask(
        surveyed, """select self_influence_per_token from largest_self_influences(k := 5, "by" := 'token')"""
    )
    counted = ask(
        surveyed,
        "select self_influence / (n_tokens - 1) from self_influences join sequences using (sequence_id) "
        "order by 1 desc limit 5",
    )
    assert by_token == counted


def test_garbled_text_stands_out_of_a_corpus_that_the_model_has_learnt(tmp_path, gpt2):
    worlds.train(gpt2, tmp_path / "m", worlds.documents(), epochs=4)
    odd = {"document_id": "odd", "text": "otter slept the harbour viper there Nobody It lynx went the leave saw."}
    path = worlds.write_jsonl(tmp_path / "c.jsonl", [*worlds.documents(), odd])
    store = ingest(tmp_path / "s", tmp_path / "m", path)
    survey(store, tmp_path / "m")
    assert ask(store, """select document_id from largest_self_influences(k := 1, "by" := 'token')""") == [("odd",)]
