"""Tokens that answer when a model moves towards a query: rows against autograd, kept, refused, gone with their run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny_runs
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from storage.catalog import run_user_sql
from storage.errors import InputError
from storage.prompts import make_prompt
from storage.retention import delete_runs
from storage.schemas import SCHEMAS
from storage.store import create_store
from storage.tables import read_part, write_part
from tasks.compute import ComputeParameters
from tasks.fanout import Workers
from tasks.methods import MethodParameters
from tasks.scoring import Scoring
from tasks.token_responses import respond

RUN = "run-1"
TEXTS = {3: "The otter went to the harbour.", 5: "Nobody saw the viper leave.", 8: "It slept there."}
PROMPTS = (make_prompt("The otter went to the", " harbour.", "otter"), make_prompt("It slept", " there.", "sleep <b>"))


@pytest.fixture
def scoring(tmp_path, gpt2):
    """A run of the gradient dot over three texts, of which the first query has tokens of two."""
    store, tokenizer = create_store(tmp_path / "s"), AutoTokenizer.from_pretrained(gpt2)
    tiny_runs.write_run(store, RUN)
    ids = {s: tokenizer(text)["input_ids"] for s, text in TEXTS.items()}
    exact = {("otter", 3): 1, ("otter", 5): 2, ("sleep <b>", 8): 1}
    n = len(exact)
    write(
        store, "influences", run_id=[RUN] * n, query_id=[q for q, _ in exact], sequence_id=[s for _, s in exact],
        method=["ekfac"] * n, influence=[1.0] * n, exact=[True] * n, influence_rank=list(exact.values()),
    )  # fmt: skip
    rows = [(q, s, t, token) for q, s in exact for t, token in enumerate(ids[s])]
    write(
        store, "token_influences", run_id=[RUN] * len(rows), query_id=[q for q, *_ in rows],
        sequence_id=[s for _, s, *_ in rows], layer=[0] * len(rows), position=[t for *_, t, _ in rows],
        token_id=[token for *_, token in rows], token=["x"] * len(rows), influence=[0.5] * len(rows),
    )  # fmt: skip
    method, compute = MethodParameters(method="identity"), ComputeParameters(precision="float32")
    return Scoring(store, RUN, gpt2, "mlp", None, "id-1", method, compute, PROMPTS)


def write(store, relation, **columns):
    n = len(next(iter(columns.values())))
    write_part(store, relation, RUN, columns={c: columns.get(c, [None] * n) for c in SCHEMAS[relation].names})


def gradients(model, ids, first: int) -> list[torch.Tensor]:
    """Of −log p of each token from `first` on, in the parameters of the multilayer perceptrons."""
    logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    named = [p for name, p in model.named_parameters() if ".mlp." in name]
    return [
        torch.cat([g.flatten() for g in torch.autograd.grad(-logs[t - 1, ids[t]], named, retain_graph=True)])
        for t in range(first, len(ids))
    ]


def test_each_tokens_output_influence_is_its_gradients_inner_product_with_the_querys(scoring, gpt2):
    queries = respond.fn(scoring, ["otter", "sleep <b>"], 1, (1.0, 0.1), Workers())
    assert queries == ("otter", "sleep <b>")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(gpt2), AutoTokenizer.from_pretrained(gpt2)
    asked = tokenizer("The otter went to the harbour.")["input_ids"]
    query = sum(gradients(model, asked, len(tokenizer("The otter went to the")["input_ids"])))
    rows = read_part(scoring.store, "token_responses", RUN, "0").to_pylist()
    assert {row["sequence_id"] for row in rows} == {3}  # the first alone
    limit = [row for row in rows if row["rise"] == 0]
    assert [row["token_id"] for row in limit] == asked
    assert limit[0]["output_influence"] is None  # nothing predicts the first token
    expected = [float(g @ query) for g in gradients(model, asked, 1)]
    assert [row["output_influence"] for row in limit[1:]] == pytest.approx(expected, rel=1e-3, abs=1e-4)
    # A step of α raises log p of the query by α times its influence on itself; the error shrinks with the step.
    assert {row["rise"]: row["alpha"] for row in rows}[0.1] == pytest.approx(0.1 / float(query @ query), rel=1e-4)
    errors = {
        rise: sum(
            abs(row["output_influence"] - of["output_influence"])
            for row, of in zip([row for row in rows if row["rise"] == rise][1:], limit[1:], strict=True)
        )
        for rise in (1.0, 0.1)
    }
    assert errors[0.1] < 0.2 * errors[1.0]


def test_what_is_there_is_kept_until_something_else_is_asked(scoring):
    path = scoring.store.file("token_responses", RUN, "0")
    respond.fn(scoring, ["otter"], 2, (0.1,), Workers())
    written = path.stat().st_mtime_ns
    respond.fn(scoring, ["otter"], 5, (0.1,), Workers())  # of five there are two
    assert path.stat().st_mtime_ns == written
    respond.fn(scoring, ["otter"], 1, (0.1,), Workers())
    again = path.stat().st_mtime_ns
    assert again > written
    respond.fn(scoring, ["otter"], 1, (), Workers())
    assert path.stat().st_mtime_ns > again
    found = run_user_sql(scoring.store, "select distinct query_id, sequence_id, rise from token_responses")[1]
    assert found == [("otter", 3, 0.0)]


def test_responses_go_with_their_run(scoring):
    respond.fn(scoring, ["otter"], 1, (), Workers())
    assert run_user_sql(scoring.store, "select count(*) > 0 from token_responses")[1] == [(True,)]
    delete_runs(scoring.store, [RUN])
    assert run_user_sql(scoring.store, "select count(*) > 0 from token_responses")[1] == [(False,)]


def test_a_query_that_the_run_does_not_have_is_named(scoring):
    with pytest.raises(
        InputError, match="query 'heron' of run run-1: expected one of otter, sleep <b>, found no query"
    ):
        respond.fn(scoring, ["otter", "heron"], 1, (), Workers())


def test_a_run_without_token_scores_is_refused(scoring):
    lacking = replace(scoring, prompts=(*PROMPTS, make_prompt("A", " b", "bare")))
    with pytest.raises(InputError, match="expected sequences that were scored exactly.*Trace with --rescore above 0"):
        respond.fn(lacking, ["bare"], 1, (), Workers())
    assert respond.fn(lacking, ["bare", "otter"], 1, (), Workers()) == ("otter",)
