"""Tokens through the walk: a trace, then its tokens by three definitions; what is wrong is named."""

from __future__ import annotations

import json
import shutil

import pytest
import worlds
from report_stores import Page

from flows.parameters import ModelParameters, QueryParameters, TraceParameters
from flows.tokens import TokenStudyParameters, tokens
from flows.trace import trace
from storage.catalog import run_user_sql
from storage.errors import HeadwaterError
from storage.retention import delete_runs
from storage.store import open_store
from storage.tables import read_part, write_part
from tasks.candidates import CandidateParameters
from tasks.compute import ComputeParameters
from tasks.corpus import CorpusParameters
from tasks.factors import FitParameters
from tasks.methods import MethodParameters

pytestmark = pytest.mark.usefixtures("prefect_db")

QUERIES = (
    QueryParameters(prompt="The otter went to the", completion=" harbour.", query_id="otter"),
    QueryParameters(prompt="Nobody saw the viper", completion=" leave.", query_id="viper <b>"),
)


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """A run of EK-FAC whose first two sequences of each query have tokens: its store and its model."""
    root = tmp_path_factory.mktemp("tokens")
    corpus = worlds.write_jsonl(root / "corpus.jsonl", worlds.documents(16))
    model = worlds.save_gpt2(root / "model")
    trace(
        TraceParameters(
            store=str(root / "s"), model=ModelParameters(name=str(model)), queries=QUERIES,
            corpus=CorpusParameters(inputs=(str(corpus),)), candidates=CandidateParameters(filters=("none",)),
            fit=FitParameters(sequences=16), method=MethodParameters(rescore=2),
            compute=ComputeParameters(precision="float32"), cluster="none",
        )
    )  # fmt: skip
    return root


def ask(root, statement: str) -> list[tuple]:
    return run_user_sql(open_store(root / "s"), statement)[1]


def study(root, **changes):
    return tokens(TokenStudyParameters.model_validate({"store": str(root / "s"), "first": 2, **changes}))


def test_output_influences_sum_to_the_influence_that_the_trace_stored(traced, tmp_path):
    page = study(traced, rises=(0.01, 0.001), output=str(tmp_path / "page.html"))
    sums = ask(
        traced,
        "select i.influence, sum(f.output_influence), count(*) from token_forms() f "
        "join influences i using (query_id, sequence_id) group by i.query_id, i.sequence_id, i.influence",
    )
    assert len(sums) >= 4
    for influence, total, n in sums:
        assert total == pytest.approx(influence, rel=1e-3)
        assert n > 5
    # The update at a position stands at the token after it.
    shifted = ask(
        traced,
        "select f.update_influence, t.influence from token_forms() f join (select query_id, sequence_id, position, "
        "sum(influence) as influence from token_influences group by all) t on t.query_id = f.query_id and "
        "t.sequence_id = f.sequence_id and t.position = f.position - 1",
    )
    assert all(found == expected for found, expected in shifted)
    assert len(shifted) == sum(n for _, _, n in sums) - len(sums)
    html = Page(tmp_path / "page.html")
    assert "viper <b>" in html.text
    assert {tag for tag, _ in html.tags}.isdisjoint({"script", "b"} - {"b"})
    statements = [block.statement for block in page.blocks]
    assert len(statements) == 3
    assert all(ask(traced, statement) for statement in statements)


def test_what_is_there_is_kept_until_something_else_is_asked(traced):
    study(traced, queries=["otter"], rises=(0.01,))
    store = open_store(traced / "s")
    [(run,)] = ask(traced, "select run_id from runs")
    path = store.file("token_responses", run, "0")
    written = path.stat().st_mtime_ns
    assert study(traced, queries=["otter"], rises=(0.01,)).numbers[0][1] == "1"
    assert path.stat().st_mtime_ns == written
    study(traced, queries=["otter"], rises=(0.1,))
    assert path.stat().st_mtime_ns > written
    found = ask(traced, "select distinct rise, alpha > 0 from token_responses where query_id = 'otter' order by 1")
    assert found == [(0.0, False), (0.1, True)]
    # α is the rise over the query's influence on itself, so the finite form comes near its limit as the step shrinks.
    errors = {}
    for rise in (1e-2, 1e-3):
        study(traced, queries=["otter"], rises=(rise,))
        sql = (
            "select avg(abs(r.output_influence - l.output_influence)) from token_responses r join token_responses l "
            "using (query_id, sequence_id, position) where r.rise > 0 and l.rise = 0 and r.query_id = 'otter'"
        )
        [(errors[rise],)] = ask(traced, sql)
    assert errors[1e-3] < 0.5 * errors[1e-2]


def test_factors_that_were_removed_are_fitted_again(traced):
    shutil.rmtree(traced / "s" / "factors")
    before = ask(traced, "select query_id, sequence_id, position, output_influence from token_forms() order by all")
    shutil.rmtree(traced / "s" / "tables" / "token_responses")
    study(traced, rises=())
    after = ask(traced, "select query_id, sequence_id, position, output_influence from token_forms() order by all")
    assert [row[:3] for row in after] == [row[:3] for row in before]
    assert [row[3] for row in after if row[3] is not None] == pytest.approx(
        [row[3] for row in before if row[3] is not None], rel=1e-3, abs=1e-3
    )


def altered(root, tmp_path, **changes):
    """A copy of the store whose run has other facts."""
    shutil.copytree(root / "s", tmp_path / "s")
    store = open_store(tmp_path / "s")
    [(run,)] = ask(root, "select run_id from runs")
    row = read_part(store, "runs", run).to_pylist()[0]
    write_part(store, "runs", run, columns={name: [value] for name, value in (row | changes).items()})
    return store, run


@pytest.mark.parametrize(
    ("changes", "asked", "message"),
    [
        ({}, {"queries": ["heron"]}, "query 'heron' of run run-.*expected one of otter, viper <b>, found no query"),
        ({}, {"run": "run-9"}, "run 'run-9'.*expected latest or one of run-"),
        ({"method": "bm25"}, {}, "expected a method that compares gradients .*found bm25. Trace with --method ekfac"),
        ({"model_fingerprint": "0123"}, {}, "expected the model 0123 that made it.*--model"),
        ({"model": "/nowhere/model"}, {}, "model /nowhere/model: expected a directory, found none"),
        ({"factors_id": "ek-0", "corpus_fingerprint": "ab"}, {}, "factors ek-0 of run.*the corpus ab that they were"),
        ({"factors_id": "ek-0"}, {}, "expected factors that give ek-0, as it used them, found fit-"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_asked_is_named_with_the_next_step(traced, tmp_path, changes, asked, message):
    altered(traced, tmp_path, **changes)
    with pytest.raises(HeadwaterError, match=message):
        tokens(TokenStudyParameters.model_validate({"store": str(tmp_path / "s"), **asked}))


def test_a_run_without_token_scores_is_refused(traced, tmp_path):
    store, run = altered(traced, tmp_path)
    found = read_part(store, "influences", run)
    write_part(
        store, "influences", run,
        columns={name: [False] * len(found) if name == "exact" else found[name].to_pylist() for name in found.column_names},
    )  # fmt: skip
    with pytest.raises(
        HeadwaterError, match="expected sequences that were scored exactly.*Trace with --rescore above 0"
    ):
        tokens(TokenStudyParameters(store=str(tmp_path / "s")))


def test_responses_go_with_their_run(traced, tmp_path):
    store, run = altered(traced, tmp_path)
    assert run_user_sql(store, "select count(*) from token_responses")[1] != [(0,)]
    delete_runs(store, [run])
    assert run_user_sql(store, "select count(*) from token_responses")[1] == [(0,)]


def test_the_command_says_how_far_the_forms_agree(traced, headwater, tmp_path):
    output = tmp_path / "tokens.html"
    code, out, err = headwater(
        "study", "tokens", "--store", traced / "s", "--query", "otter", "--first", 2, "--rises", ".01", "-o", output
    )
    assert (code, err) == (0, "")
    assert "update and output" in out
    assert "0.01 nats" in out
    assert output.stat().st_size < 500_000
    assert json.dumps(str(output))[1:-1] in out.replace("\n", "")
