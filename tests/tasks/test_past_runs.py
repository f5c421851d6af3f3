"""A complete run called back: the factors that it used, and errors that say what no longer belongs to it."""

from __future__ import annotations

import pytest
import tiny_runs

import tasks.past_runs
from storage.checkpoints import model_fingerprint
from storage.errors import InputError, MismatchError
from storage.factors import Fit, complete_fit
from storage.store import create_store
from storage.tables import read_part
from tasks.metrics import metric_id
from tasks.past_runs import recall_run


@pytest.fixture
def store(tmp_path):
    return create_store(tmp_path / "s")


def past(store, model, **row):
    tiny_runs.write_run(store, "run-1", model_fingerprint=model_fingerprint(model), **row)
    return recall_run(store, read_part(store, "runs", "run-1").to_pylist()[0], model)


def test_the_fit_that_a_run_used_is_told_by_its_factors_id(store, gpt2):
    run = past(store, gpt2)
    for fit_id in ("fit-1", "fit-2", "fit-3"):
        complete_fit(store, Fit(fit_id, (), 5, {}))
    assert run.find_fit() is None
    asked = (run.row["model_fingerprint"], "mlp", "ekfac", run.method.damping, run.compute)
    run = past(store, gpt2, factors_id=metric_id("fit-2", *asked))
    assert run.find_fit() == "fit-2"
    assert run.used("fit-2")
    with pytest.raises(MismatchError, match="expected factors that give ek-.*found fit-3, which gives others"):
        run.require_used("fit-3")


def test_what_its_stages_were_told_is_what_its_row_says(store, gpt2):
    scoring = past(store, gpt2).scoring("fit-1")
    assert (scoring.run_id, scoring.model, scoring.modules, scoring.fit_id) == ("run-1", gpt2, "mlp", "fit-1")
    assert (scoring.method, scoring.factors_id, scoring.compute.precision) == ("ekfac", "ek-1", "float32")
    assert [(p.query_id, p.completion) for p in scoring.prompts] == [("q0", " harbour.")]


def test_another_model_is_refused_and_both_are_named(store, gpt2, llama):
    past(store, gpt2)
    row = read_part(store, "runs", "run-1").to_pylist()[0]
    with pytest.raises(MismatchError, match=f"{row['model_fingerprint']} that made it.*{model_fingerprint(llama)}"):
        recall_run(store, row, llama)


@pytest.mark.parametrize("method", ["bm25", "tracin", "embedding", "random"])
def test_a_method_that_moves_no_weights_is_refused(store, gpt2, method):
    with pytest.raises(InputError, match=f"compares gradients .*found {method}. Trace with --method ekfac"):
        past(store, gpt2, method=method)


@pytest.mark.parametrize(("name", "corpus", "code"), [("corpus", "c2", "r"), ("numerics", "c", "r2")])
def test_factors_are_not_fitted_again_on_another_corpus_or_by_other_code(store, gpt2, monkeypatch, name, corpus, code):
    run = past(store, gpt2)
    monkeypatch.setattr(tasks.past_runs, "corpus_parts", lambda store: [])
    monkeypatch.setattr(tasks.past_runs, "corpus_fingerprint", lambda parts: corpus)
    monkeypatch.setattr(tasks.past_runs, "code_revision", lambda: code)
    with pytest.raises(MismatchError, match=f"factors ek-1 of run run-1.*the {name} {'c2' if corpus != 'c' else 'r2'}"):
        run.require_same_corpus()
    monkeypatch.setattr(tasks.past_runs, "corpus_fingerprint", lambda parts: "c")
    monkeypatch.setattr(tasks.past_runs, "code_revision", lambda: "r")
    run.require_same_corpus()
