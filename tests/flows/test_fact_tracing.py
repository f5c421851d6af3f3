"""Fact tracing end to end on a set whose answer is known: each fact is stated twice, in the words of its query."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from prefect._internal.schemas.validators import validate_parameter_size
from pydantic import ValidationError
from rich.console import Console

from flows import fact_tracing as flow
from flows.evaluate_commands import print_study
from flows.evaluation import nightly_evaluation
from flows.fact_tracing import FactTracingParameters, fact_tracing
from flows.parameters import EvaluationParameters, TraceParameters
from storage.catalog import run_user_sql
from storage.database import session
from storage.errors import InputError, MismatchError
from storage.fact_sets import proponents, read_fact_set, write_fact_set
from storage.store import open_store
from tasks import texts
from tasks.corpus import CutParameters
from tasks.rankings import Rankings

pytestmark = [pytest.mark.usefixtures("prefect_db"), pytest.mark.slow]  # a model is taught the set first

ANIMALS = ["otter", "heron", "badger", "lynx", "marten", "raven", "viper", "toad"]
PLACES = ["harbour", "orchard", "quarry", "chapel", "meadow", "station", "market", "bridge"]
SHAPE = {"layers": 2, "width": 16, "heads": 2, "context": 24, "vocabulary": 330}
SMALL = {
    "shape": SHAPE, "training": {"epochs": 2, "checkpoints": 2, "batch_size": 8}, "patched": 3,
    "pool": {"lexical": 6, "same_target": 4, "uniform": 6}, "fit": {"sequences": 20},
    "compute": {"batch_size": 16, "precision": "float32"},
}  # fmt: skip


def fact(k: int) -> str:
    return f"{ANIMALS[k]} | lives at | {PLACES[3 * k % 8]} | always"  # separators inside


def tables() -> tuple[pa.Table, pa.Table]:
    """Documents and queries, with columns and types that a set may have beside and in place of the usual ones."""
    documents, queries = [], []
    for k, animal in enumerate(ANIMALS):
        place = PLACES[3 * k % 8]
        for text in (f"The {animal} lives at the {place}.", f"At the {place} lives the {animal}, they say."):
            documents.append((f"d{len(documents)}", text, [fact(k), "else"]))
        queries.append((f"q{k}", f"The {animal} lives at the", place, fact(k)))
    documents += [(f"x{k}", f"It rained and the {ANIMALS[k]} slept {k} hours.", None) for k in range(8)]
    documents += [("copy", "It rained and the otter slept 0 hours.", [])]
    queries += [("lost", "The cat lives at the", "moon", "cat"), ("blank", "The toad lives at the", " ", fact(7))]
    names, texts, facts = zip(*documents, strict=True)
    return (
        pa.table(
            {
                "title": ["t"] * len(names), "doc_id": pa.array(names, pa.large_string()), "text": texts,
                "facts": pa.array(facts, pa.large_list(pa.large_string())), "rank": range(len(names)),
            }
        ),
        pa.table(dict(zip(("query_id", "prompt", "answer", "fact"), zip(*queries, strict=True), strict=True))),
    )  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory, prefect_db):
    """A study of two seeds: its folder and what the flow returned."""
    folder = tmp_path_factory.mktemp("facts")
    write_fact_set(folder / "<set>", *tables())
    parameters = FactTracingParameters.model_validate(
        {"store": str(folder / "store"), "facts": str(folder / "<set>"), "seeds": 2, **SMALL}
    )
    return folder, parameters, fact_tracing(parameters, "headwater evaluate")


def ask(folder: Path, statement: str) -> list[tuple]:
    return run_user_sql(open_store(folder / "store"), statement)[1]


def test_the_sentence_in_the_words_of_the_query_comes_first_for_bm25(world):
    folder, _, study = world
    found = ask(folder, "select value, n from evaluations where method = 'bm25plus' and metric = 'mrr'")
    assert found == [(1.0, 8), (1.0, 8)]
    assert study.summaries["all"]["bm25plus", "recall@3"].estimate.value == 1.0
    assert {truth for run in study.runs for _, truth in run.sizes.values()} == {2}


def test_every_method_is_ranked_as_a_loop_over_its_documents_ranks_it(world):
    folder, _, study = world
    truths = proponents(read_fact_set(folder / "<set>"))
    for run in (found.run_id for found in study.runs):
        best: dict[tuple[str, str], dict[str, float]] = {}
        for method, query, document, score in ask(
            folder,
            "select i.method, i.query_id, s.document_id, i.influence from influences i join sequences s "
            f"using (sequence_id) where i.run_id = '{run}' and i.method in ('ekfac', 'tracin', 'tracin+embedding')",
        ):
            scores = best.setdefault((method, query), {})
            scores[document] = max(score, scores.get(document, score))
        for method in ("ekfac", "tracin", "tracin+embedding"):
            expected = []
            for query, true in truths.items():
                ordered = sorted(best[method, query], key=lambda name: -best[method, query][name])
                expected.append(1 / (1 + min(ordered.index(document) for document in true)))
            row = f"where run_id = '{run}' and method = '{method}' and metric = 'mrr'"
            assert ask(folder, f"select value from evaluations {row}")[0][0] == pytest.approx(np.mean(expected))


def test_the_forms_are_those_of_the_macros(world):
    folder, _, study = world
    run = study.runs[0].run_id
    store, fact_set = open_store(folder / "store"), read_fact_set(folder / "<set>")
    asked = {
        "embedding": "parameter_groups := ['embedding']",
        "all, local, scaled": "normalise := 'local', scaled := true",
        "all, dot, learning rates": "normalise := 'none', weights := 'learning_rate'",
        "blocks, dot": "parameter_groups := ['blocks'], normalise := 'none'",
        "block 1, step 0": "parameter_groups := ['block 1'], first_step := 0, last_step := 0",
    }
    with session(store) as connection:
        forms = {form.name: scores for form, scores in Rankings(connection, run, fact_set).tracin_forms(1)}
        hidden = {f.name: s for f, s in Rankings(connection, run, fact_set).hidden_forms()}
    for name, words in asked.items():
        rows = ask(folder, f"select influence from tracin_scores('{run}', {words}) order by query_id, sequence_id")
        np.testing.assert_allclose(forms[name], [row[0] for row in rows], rtol=1e-9, atol=1e-12, err_msg=name)
    rows = ask(
        folder, f"select influence from embedding_scores('{run}', layers := [0, 1, 2]) order by query_id, sequence_id"
    )
    np.testing.assert_allclose(hidden["all layers"], [row[0] for row in rows], rtol=1e-9)


def test_slices_share_the_queries_out_and_an_empty_one_has_no_row(world):
    folder, _, study = world
    for run, sizes in zip(study.runs, study.slice_sizes, strict=True):
        found = dict(
            ask(
                folder,
                "select regexp_extract(metric, '\\[(.*)\\]', 1) as slice, n from evaluations "
                f"where run_id = '{run.run_id}' and method = 'random' and metric similar to 'mrr(\\[.*)?'",
            )
        )
        assert found.pop("") == 8
        assert found == {name: n for name, n in sizes.items() if n}


def test_no_query_goes_missing_unnamed(world):
    _, _, study = world
    assert study.left_out["queries whose fact no document states"] == ("lost",)
    assert study.left_out["queries without an answer"] == ("blank",)
    assert set(study.runs[0].slice_of) == {f"q{k}" for k in range(8)}


def test_a_second_call_finds_everything_done(world):
    folder, parameters, study = world
    kept = {p: p.stat().st_mtime_ns for p in (folder / "store-trainings").rglob("*.safetensors")}
    finished = ask(folder, "select run_id, finished_at from runs order by 1")
    again = fact_tracing(parameters)
    assert [run.run_id for run in again.runs] == [run.run_id for run in study.runs]
    assert ask(folder, "select run_id, finished_at from runs order by 1") == finished
    assert {p: p.stat().st_mtime_ns for p in (folder / "store-trainings").rglob("*.safetensors")} == kept
    assert again.summaries == study.summaries


def test_the_nightly_evaluation_leaves_a_study_as_it_is(world):
    folder, _, _ = world
    before = ask(folder, "select * from evaluations order by all")
    assert nightly_evaluation(EvaluationParameters(store=str(folder / "store"))) == []
    assert ask(folder, "select * from evaluations order by all") == before


def test_what_stops_a_study_stops_it_before_its_training(world, tmp_path, monkeypatch):
    folder, parameters, _ = world
    documents, queries = tables()
    trainings = sorted(p.name for p in (folder / "store-trainings").iterdir())
    monkeypatch.setattr(texts, "LARGEST", 10)
    # The same documents, asked for otherwise: the training that is there is theirs.
    fewer = write_fact_set(tmp_path / "fewer", documents, queries.slice(3))
    with pytest.raises(InputError, match="Leave bm25plus out of --methods"):
        fact_tracing(parameters.model_copy(update={"facts": str(fewer)}))
    assert sorted(p.name for p in (folder / "store-trainings").iterdir()) == trainings
    changed = documents.append_column("aside", pa.array(["x"] * len(documents)))
    other = {"facts": str(write_fact_set(tmp_path / "other", changed, queries)), "trainings": str(tmp_path / "t")}
    with pytest.raises(MismatchError, match="Name another store"):
        fact_tracing(parameters.model_copy(update=other))
    monkeypatch.setattr(flow, "LARGEST", 1000)
    with pytest.raises(InputError, match="Lower --queries"):
        fact_tracing(parameters.model_copy(update=other | {"store": str(tmp_path / "s"), "methods": ("random",)}))
    assert [p.name for p in tmp_path.glob("t/*/*") if p.name not in ("untrained", ".writing")] == []


@pytest.mark.parametrize("letter", ["a", "ж", "\U0001f9a6"])
def test_a_walk_has_as_many_bytes_as_prefect_counts(letter):
    walk = TraceParameters.model_validate(
        {"store": "s", "model": {"name": "m"}, "queries": [{"prompt": letter * 99, "completion": f" {letter}"}] * 9}
    )
    size, sent = flow.parameter_bytes(walk), {"parameters": walk.model_dump(mode="json")}
    validate_parameter_size(sent, size)
    with pytest.raises(ValueError, match="must be less than"):
        validate_parameter_size(sent, size - 1)


def test_methods_that_search_a_corpus_are_refused_with_one_that_ranks_candidates():
    with pytest.raises(ValidationError, match="found bm25, which search a corpus. Take bm25plus"):
        FactTracingParameters.model_validate({"store": "s", "facts": "f", "methods": ["bm25", "random"]})


def test_what_has_no_sequence_and_what_cannot_be_asked_are_named_and_a_lost_truth_is_a_miss(world, tmp_path):
    _, parameters, study = world
    documents, queries = tables()
    row = {"title": ["t"], "doc_id": ["empty"], "text": [" "], "facts": [[fact(0)]], "rank": [99]}
    documents = pa.concat_tables([documents, pa.table(row).cast(documents.schema)])
    queries = pa.table({
        "query_id": queries["query_id"], "prompt": queries["prompt"], "answer": queries["answer"],
        "fact": queries["fact"], "aliases": [["moor", "moor " * 40], *([None] * (len(queries) - 1))],
    })  # fmt: skip
    found = fact_tracing(
        parameters.model_copy(
            update={
                "facts": str(write_fact_set(tmp_path / "set", documents, queries)), "store": str(tmp_path / "store"),
                "checkpoints": study.rows[0]["model"], "seeds": 1, "methods": ("bm25plus",), "patched": 0,
                "cut": CutParameters(bad_documents="skip"),
            }
        )
    )  # fmt: skip
    assert found.left_out["true documents without a training sequence, counted as not found"] == ("empty (q0)",)
    assert found.left_out["other names of answers that the model cannot be asked for"] == (f"{'moor ' * 40} (q0)",)
    assert found.runs[0].methods["bm25plus"]["recall@25"] == {
        f"q{k}": 1.0 if k else pytest.approx(2 / 3) for k in range(8)
    }
    console = Console(record=True, width=200, file=io.StringIO())
    print_study(found, console)
    assert "left out: 1 true documents without a training sequence, counted as not found (empty (q0))" in (
        console.export_text()
    )


def test_the_command_takes_candidates_of_the_set_and_a_training_that_is_over(world, headwater, tmp_path):
    folder, _, study = world
    named = [(f"q{k}", f"d{j}") for k in range(8) for j in (2 * k, (2 * k + 2) % 16)]  # lacks d1, d3 …: added
    queries, documents = zip(*named, strict=True)
    candidates = pa.table({"query_id": queries, "doc_id": documents, "label": [1, 0] * 8})
    write_fact_set(tmp_path / "fixed", *tables(), candidates)
    code, out, err = headwater(
        "evaluate", "fact-tracing", "--set", tmp_path / "fixed", "--store", folder / "store", "--checkpoints",
        study.rows[0]["model"], "--seeds", 1, "--methods", "tracin,bm25plus", "--patched", 0,
        "-o", tmp_path / "page.html",
    )  # fmt: skip
    assert code == 0, err
    assert re.search(r"BM25\+ +1\.000 \[1\.00, 1\.00\] +\.200", out)
    assert "TracIn, chosen" in out
    assert "taught, Δp" not in out
    assert "left out: 1 queries whose fact no document states (lost)" in out
    latest = ask(folder, "select run_id from runs order by finished_at desc limit 1")[0][0]
    sizes = f"select distinct n_candidates from run_queries where run_id = '{latest}'"
    assert ask(folder, sizes) == [(3,)]
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 8  # four figures, for light and for dark pages
    assert "<script" not in page


def test_a_command_that_cannot_go_on_says_why(headwater, tmp_path):
    command = ("evaluate", "fact-tracing", "--set", tmp_path, "--store", tmp_path / "s")
    code, out, err = headwater(*command)
    assert (code, out) == (1, "")
    assert "expected a file abstracts.parquet" in err
    code, out, err = headwater(
        "evaluate", "fact-tracing", "--set", tmp_path, "--store", tmp_path / "s", "--methods", "x"
    )
    assert (code, out) == (1, "")
    assert "parameter methods.0: expected 'ekfac'" in err
