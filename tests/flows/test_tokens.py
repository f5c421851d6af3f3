"""Tokens through the walk: a trace by EK-FAC, then its tokens by three definitions."""

from __future__ import annotations

import shutil

import pytest
import worlds
from report_stores import Page

from flows.parameters import ModelParameters, QueryParameters, TraceParameters
from flows.tokens import TokenStudyParameters, tokens
from flows.trace import trace
from storage.catalog import run_user_sql
from storage.errors import HeadwaterError
from storage.store import open_store
from tasks.candidates import CandidateParameters
from tasks.compute import ComputeParameters
from tasks.corpus import CorpusParameters
from tasks.factors import FitParameters
from tasks.methods import MethodParameters

pytestmark = [pytest.mark.usefixtures("prefect_db"), pytest.mark.slow]  # a trace and four flows

QUERIES = (
    QueryParameters(prompt="The otter went to the", completion=" harbour.", query_id="otter"),
    QueryParameters(prompt="Nobody saw the viper", completion=" leave.", query_id="viper <i>"),
)
SUMS = """
    select i.influence, sum(f.output_influence), count(*) from token_forms() f
    join influences i using (query_id, sequence_id) group by i.query_id, i.sequence_id, i.influence
"""


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """A run of EK-FAC whose first two sequences of each query have tokens."""
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
    page = study(traced, rises=(0.1,), output=str(tmp_path / "page.html"))
    sums = ask(traced, SUMS)
    assert len(sums) == 4
    for influence, total, n in sums:
        assert total == pytest.approx(influence, rel=1e-3)
        assert n > 5
    html = Page(tmp_path / "page.html")
    assert "viper <i>" in html.text
    assert not [attributes for tag, attributes in html.tags if tag == "i" and attributes]
    assert all(ask(traced, block.statement) for block in page.blocks)
    # Factors that were removed meanwhile are fitted again, and the numbers are the same.
    shutil.rmtree(traced / "s" / "factors")
    shutil.rmtree(traced / "s" / "tables" / "token_responses")
    study(traced, rises=())
    for (_, total, _), (_, before, _) in zip(ask(traced, SUMS), sums, strict=True):
        assert total == pytest.approx(before, rel=1e-3)


def test_the_command_says_how_far_the_forms_agree(traced, headwater, tmp_path):
    output = tmp_path / "tokens.html"
    code, out, err = headwater(
        "study", "tokens", "--store", traced / "s", "--query", "otter", "--first", 2, "--rises", ".1", "-o", output
    )
    assert (code, err) == (0, "")
    assert "update and output" in out
    assert "0.1 nats" in out
    assert output.stat().st_size < 500_000


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"run": "run-9"}, "run 'run-9'.*expected latest or one of run-"),
        ({"model": {"name": "/nowhere/model"}}, "model /nowhere/model: expected a directory, found none"),
    ],
)
def test_what_is_not_there_is_named(traced, asked, message):
    with pytest.raises(HeadwaterError, match=message):
        study(traced, **asked)
