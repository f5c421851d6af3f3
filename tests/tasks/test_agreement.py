"""The precision report and the self-check: they must see a difference where there is one."""

from __future__ import annotations

import pytest
import torch
import worlds
from rich.console import Console

from flows.check import print_gradient_check
from flows.ingest import ingest_corpus
from flows.parameters import IngestParameters
from storage.store import open_store
from tasks import agreement
from tasks.agreement import check_gradients, measure_agreement
from tasks.compute import ComputeParameters
from tasks.factors import FitParameters
from tasks.influence.errors import InfluenceError
from tasks.influence.gradients import sequence_gradients

pytestmark = pytest.mark.usefixtures("prefect_db")


@pytest.fixture(scope="module")
def store(tmp_path_factory, gpt2, corpus, prefect_db):
    path = tmp_path_factory.mktemp("agreement") / "s"
    parameters = {"store": str(path), "model": {"name": str(gpt2)}, "corpus": {"inputs": [str(corpus)]}}
    ingest_corpus(IngestParameters.model_validate(parameters | {"cluster": "none"}))
    return open_store(path)


@pytest.fixture(scope="module")
def report(store, gpt2):
    compute = ComputeParameters(precision="bfloat16")
    rows = measure_agreement(store, gpt2, [], FitParameters(), compute, rank=4096, sample=24)
    return {row.variant: row for row in rows}


def test_batch_size_and_attention_kernel_change_rounding_only(report):
    for variant in ("batch size 1", "attention kernel eager", "rank 4096"):
        assert report[variant].spearman_lowest > 0.9999, report[variant]
        assert report[variant].largest_difference < 1e-4, report[variant]
        assert report[variant].top_shared > 0.99


def test_bfloat16_and_blocks_are_seen_to_change_the_scores(report):
    for variant in ("bfloat16 scores, float32 fit", "bfloat16 fit and scores", "covariances in 2 blocks"):
        assert 1e-4 < report[variant].largest_difference < 1, report[variant]
        assert report[variant].spearman_lowest > 0.5


def test_a_float32_policy_is_not_compared_with_itself(store, gpt2):
    rows = measure_agreement(store, gpt2, [], FitParameters(), ComputeParameters(precision="float32"), 8, 8)
    assert [row.variant for row in rows] == [
        "batch size 1", "attention kernel eager", "rank 8", "covariances in 2 blocks"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_captured_gradients_are_those_of_autograd(name, request):
    found = check_gradients(request.getfixturevalue(name), "all", [1, 5, 9, 2, 7, 7, 3])
    assert found.difference < 1e-5
    assert found.modules == {"gpt2": 8, "llama": 14}[name]


def test_a_gradient_that_the_hooks_get_wrong_is_named(gpt2, monkeypatch):
    def wrong(calls, module):
        gradient = sequence_gradients(calls, module)
        return 1.5 * gradient if module.name.endswith("1.mlp.c_fc") else gradient

    monkeypatch.setattr(agreement, "sequence_gradients", wrong)
    found = check_gradients(gpt2, "mlp", [1, 5, 9, 2, 7, 7, 3])
    assert found.module == "transformer.h.1.mlp.c_fc"
    assert found.difference == pytest.approx(0.5, rel=1e-4)


def test_a_gradient_that_is_no_number_is_the_worst(gpt2, monkeypatch):
    def broken(calls, module):
        gradient = sequence_gradients(calls, module)
        return gradient * float("nan") if module.name.endswith("0.mlp.c_proj") else gradient

    monkeypatch.setattr(agreement, "sequence_gradients", broken)
    assert check_gradients(gpt2, "mlp", [1, 5, 9, 2]).module == "transformer.h.0.mlp.c_proj"
    with pytest.raises(InfluenceError, match="that hooks do not see"):
        print_gradient_check(gpt2, "mlp", None, Console())


def test_the_self_check_leaves_the_model_frozen(gpt2):
    from storage.checkpoints import load_model

    check_gradients(gpt2, "mlp", [1, 5, 9])
    assert not any(p.requires_grad for p in load_model(gpt2).parameters())
    assert torch.is_grad_enabled()


def test_queries_of_the_store_are_asked_where_there_are_any(store, gpt2, monkeypatch):
    from storage.prompts import make_prompt

    asked = []
    monkeypatch.setattr(agreement, "query_calls", lambda model, modules, queries: asked.extend(queries) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measure_agreement(
            store, gpt2, [make_prompt("The otter went to the", " harbour.", "q")], FitParameters(),
            ComputeParameters(precision="float32"), 8, 8,
        )  # fmt: skip
    assert len(asked) == 1
    assert worlds.documents()[0]["text"].startswith("The otter went to the")
