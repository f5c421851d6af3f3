"""Every method through one interface: each fills `influences`, from what it needs alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import worlds
from rank_bm25 import BM25Plus
from safetensors.torch import save_file
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from flows.parameters import ModelParameters, QueryParameters, TraceParameters
from flows.trace import trace
from storage.catalog import run_user_sql
from storage.errors import HeadwaterError, InputError, MismatchError
from storage.pools import write_pool
from storage.store import open_store
from tasks import scores, trajectory
from tasks.candidates import CandidateParameters
from tasks.compute import ComputeParameters
from tasks.corpus import CorpusParameters
from tasks.methods import MethodParameters, TrajectoryParameters

pytestmark = pytest.mark.usefixtures("prefect_db")

PROMPT, COMPLETION = "The otter went to the", " harbour."
OTHERS = ("tracin", "embedding", "tracin+embedding", "bm25plus", "random_target", "random")
STEPS = (0, 10, 20)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A corpus, a model, and three checkpoints of it; the last two know their second moments."""
    root = tmp_path_factory.mktemp("methods")
    corpus = worlds.write_jsonl(root / "corpus.jsonl", worlds.documents(24))
    model = worlds.save_gpt2(root / "model")
    for step in STEPS:
        path = worlds.save_gpt2(root / "checkpoints" / f"checkpoint-{step}", seed=step)
        (path / "trainer_state.json").write_text(
            f'{{"log_history": [{{"step": {step}, "learning_rate": {step / 1e4}}}]}}'
        )
        if step:
            generator = torch.Generator().manual_seed(step)
            network = AutoModelForCausalLM.from_pretrained(path)
            moments = {n: torch.rand(p.shape, generator=generator) for n, p in network.named_parameters()}
            save_file(moments, path / "second_moments.safetensors")
    return root, corpus, model


def parameters(world, store: Path, method: MethodParameters, **changes) -> TraceParameters:
    _, corpus, model = world
    return TraceParameters(
        store=str(store),
        queries=(QueryParameters(prompt=PROMPT, completion=COMPLETION, query_id="otter"),),
        corpus=CorpusParameters(inputs=(str(corpus),)),
        method=method,
        compute=ComputeParameters(batch_size=5, precision="float32"),
        cluster="none",
        **{
            "model": ModelParameters(name=str(model)),
            "candidates": CandidateParameters(filters=("none",)),
            **changes,
        },
    )


def ask(store: Path, statement: str) -> list[tuple]:
    return run_user_sql(open_store(store), statement)[1]


def texts() -> list[str]:
    return [document["text"] for document in worlds.documents(24)]


def gradients(path: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Of the query and of every text, by parameter, from one backward pass each."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)

    def gradient(ids: list[int], first: int) -> dict[str, torch.Tensor]:
        given = torch.tensor([ids])
        logs = torch.log_softmax(model(input_ids=given).logits, -1)
        loss = -logs[0, first - 1 : -1].gather(-1, given[0, first:, None]).sum()
        found = torch.autograd.grad(loss, list(model.parameters()))
        return {name: g for (name, _), g in zip(model.named_parameters(), found, strict=True)}

    prompt, whole = (tokenizer(text)["input_ids"] for text in (PROMPT, PROMPT + COMPLETION))
    assert whole[: len(prompt)] == prompt  # so the completion's first token is the one after the prompt's
    return gradient(whole, len(prompt)), [gradient(tokenizer(text)["input_ids"], 1) for text in texts()]


@pytest.fixture(scope="module")
def explicit(world):
    """At each checkpoint: the gradients of the query and of every text."""
    return {step: gradients(world[0] / "checkpoints" / f"checkpoint-{step}") for step in STEPS}


@pytest.fixture(scope="module")
def compared(world, tmp_path_factory):
    """One run with every method that is no gradient method, over three checkpoints, EK-FAC its own."""
    store = tmp_path_factory.mktemp("compared") / "s"
    asked = TrajectoryParameters(checkpoints=str(world[0] / "checkpoints"), parameter_groups=("blocks", "embedding"))
    run = trace(parameters(world, store, MethodParameters(beside=("identity", *OTHERS), rescore=2, trajectory=asked)))
    return store, run


def test_the_last_checkpoint_is_passed_once_for_all_methods(world, tmp_path, monkeypatch):
    """Where it is the run's model: the scores and self-influences are those of a pass of their own."""
    root, _, _ = world
    passes = []

    def counting(of, real):
        def sweep(model, *rest):
            passes.append(of)
            return real(model, *rest)

        return sweep

    monkeypatch.setattr(scores, "sweep", counting("gradients", scores.sweep))
    monkeypatch.setattr(trajectory, "sweep_uses", counting("checkpoint", trajectory.sweep_uses))
    # A training's last checkpoint has what the optimizer leaves beside the weights; the model that it made has not.
    made = shutil.copytree(root / "checkpoints" / f"checkpoint-{STEPS[-1]}", tmp_path / "model")
    (made / "second_moments.safetensors").unlink()
    last = ModelParameters(name=str(made))
    asked = TrajectoryParameters(checkpoints=str(root / "checkpoints"))
    found = []
    for beside in (("identity", "tracin"), ("identity",)):
        passes.clear()
        method = MethodParameters(beside=beside, rescore=0, trajectory=asked)
        store = tmp_path / beside[-1]
        trace(parameters(world, store, method, model=last))
        found.append(ask(store, "select method, sequence_id, influence, relative_influence from influences "
                                "where method <> 'tracin' order by all"))  # fmt: skip
        assert passes == (["checkpoint"] * len(STEPS) if "tracin" in beside else ["gradients"])
    assert [row[:2] for row in found[0]] == [row[:2] for row in found[1]]
    left, right = (np.array([row[2:] for row in rows], dtype=float) for rows in found)
    assert np.abs(left - right).max() < 1e-5 * np.abs(right).max()
    assert len(right) == 48
    assert np.isfinite(left).all()


def test_a_trajectory_without_a_checkpoint_after_the_first_step_is_refused(world, tmp_path):
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(world[0] / "checkpoints" / "checkpoint-0", checkpoints / "checkpoint-0")
    method = MethodParameters(method="tracin", trajectory=TrajectoryParameters(checkpoints=str(checkpoints)))
    with pytest.raises(InputError, match="one after step 1 of the training or later, found none after step 0"):
        trace(parameters(world, tmp_path / "s", method))


def cosine(query: dict, text: dict, names, divisors=None) -> float:
    left, right = (
        torch.cat([(g[n] / (divisors[n] if divisors else 1)).flatten() for n in names]) for g in (query, text)
    )
    return float(functional.cosine_similarity(left, right, dim=0))


def test_tracin_is_the_mean_cosine_of_gradients_over_the_checkpoints_after_the_first_step(compared, explicit):
    store, _ = compared
    found = dict(ask(store, "select sequence_id, influence from influences where method = 'tracin'"))
    means = []
    for k in range(24):
        of_steps = []
        for step in STEPS[1:]:
            query, of_texts = explicit[step]
            names = [n for n in query if n.startswith("transformer.h.") or n == "transformer.wte.weight"]
            of_steps.append(cosine(query, of_texts[k], names))
        means.append(np.mean(of_steps))
    assert found == pytest.approx(dict(enumerate(means)), abs=1e-5)


def test_every_other_form_of_tracin_is_sql_over_the_same_run(world, compared, explicit):
    store, run = compared
    asked = "parameter_groups := ['block 1'], scaled := true, weights := 'learning_rate'"
    found = dict(ask(store, f"select sequence_id, influence from tracin_scores('{run}', {asked})"))
    sums = []
    for k in range(24):
        total = 0.0
        for step in STEPS[1:]:
            query, of_texts = explicit[step]
            names = [n for n in query if n.startswith("transformer.h.1.")]
            generator = torch.Generator().manual_seed(step)
            divisors = {n: torch.rand(g.shape, generator=generator).sqrt() + 1e-7 for n, g in query.items()}
            total += step / 1e4 * cosine(query, of_texts[k], names, divisors)
        sums.append(total)
    assert found == pytest.approx(dict(enumerate(sums)), abs=1e-7)
    dots = dict(
        ask(store, f"select sequence_id, influence from tracin_scores('{run}', normalise := 'none', first_step := 0)")
    )
    products = [
        np.mean([sum(float((q[n] * t[k][n]).sum()) for n in q) for q, t in explicit.values()]) for k in range(24)
    ]
    assert dots == pytest.approx(dict(enumerate(products)), rel=1e-4)
    with pytest.raises(HeadwaterError, match="no second moments"):
        ask(store, f"from tracin_scores('{run}', scaled := true, first_step := 0)")


def test_embeddings_are_compared_by_the_cosine_of_mean_hidden_states(world, compared):
    store, run = compared
    path = world[0] / "checkpoints" / "checkpoint-20"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)

    def means(text: str) -> list[torch.Tensor]:
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
        return [state[0].mean(0) for state in states]

    query, of_texts = means(PROMPT + COMPLETION), [means(text) for text in texts()]
    found = dict(ask(store, "select sequence_id, influence from influences where method = 'embedding'"))
    first = [float(functional.cosine_similarity(query[0], text[0], dim=0)) for text in of_texts]
    assert found == pytest.approx(dict(enumerate(first)), abs=1e-5)
    joined = dict(ask(store, f"select sequence_id, influence from embedding_scores('{run}', layers := [1, 2])"))
    both = [float(functional.cosine_similarity(torch.cat(query[1:]), torch.cat(text[1:]), dim=0)) for text in of_texts]
    assert joined == pytest.approx(dict(enumerate(both)), abs=1e-5)
    together = ask(
        store,
        "select max(abs(b.influence - (t.influence + e.influence) / 2)) from influences b "
        "join influences t using (sequence_id) join influences e using (sequence_id) "
        "where b.method = 'tracin+embedding' and t.method = 'tracin' and e.method = 'embedding'",
    )
    assert together[0][0] < 1e-12


def test_bm25plus_is_that_of_rank_bm25_and_the_random_target_says_who_says_the_completion(compared):
    store, _ = compared
    index = BM25Plus([text.split() for text in texts()])
    expected = dict(enumerate(index.get_scores((PROMPT + COMPLETION).split()).tolist()))
    assert dict(ask(store, "select sequence_id, influence from influences where method = 'bm25plus'")) == pytest.approx(
        expected
    )
    says = dict(ask(store, "select sequence_id, influence from influences where method = 'random_target'"))
    assert (
        {k for k, score in says.items() if score >= 1} == {k for k, t in enumerate(texts()) if "harbour." in t} != set()
    )
    assert all(0 <= score < 2 for score in says.values())


def test_an_answer_that_is_part_of_a_longer_word_is_not_said(world, tmp_path):
    asked = parameters(world, tmp_path / "s", MethodParameters(method="random_target"))
    part = QueryParameters(prompt=PROMPT, completion=" har", query_id="part")
    trace(asked.model_copy(update={"queries": (part, *asked.queries)}))
    said = "select query_id, count(*) from influences where influence >= 1 group by query_id"
    assert dict(ask(tmp_path / "s", said)) == {"otter": sum("harbour." in text for text in texts())}


def test_whole_gradients_in_groups_of_queries_and_batches_change_nothing(world, compared, tmp_path, monkeypatch):
    store, run = compared
    asked = TrajectoryParameters(checkpoints=str(world[0] / "checkpoints"))
    two = parameters(world, tmp_path / "s", MethodParameters(method="tracin", trajectory=asked))
    more = QueryParameters(prompt="Nobody saw the viper", completion=" leave.", query_id="viper")
    monkeypatch.setattr(trajectory, "matrix_budget", lambda: 1)  # one query at a time
    other = trace(two.model_copy(update={"queries": (more, *two.queries)}))
    columns = "checkpoint, parameter_group, sequence_id, dot, query_norm, sequence_norm, scaled_dot"
    statement = f"select {columns} from checkpoint_influences where query_id = 'otter' and run_id = '{{}}' order by all"
    rows, expected = ask(tmp_path / "s", statement.format(other)), ask(store, statement.format(run))
    assert [row[:3] for row in rows] == [row[:3] for row in expected]
    for column in (3, 4, 5, 6):
        pairs = [(a[column], b[column]) for a, b in zip(rows, expected, strict=True)]
        assert all((a is None) == (b is None) for a, b in pairs)
        found, wanted = ([pair[side] for pair in pairs if pair[0] is not None] for side in (0, 1))
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-6 * max(map(abs, wanted)))


def test_a_run_of_tracin_alone_has_layers_and_fits_no_factors(world, tmp_path):
    store = tmp_path / "s"
    run = trace(parameters(world, store, MethodParameters(method="tracin")))
    assert not (store / "factors").exists() or not list((store / "factors").iterdir())
    [(factors,)] = ask(store, "select factors_id from runs")
    assert factors == "none"
    off = ask(
        store,
        "select max(abs(s.total - i.influence)) from influences i "
        "join (select sequence_id, sum(influence) as total from layer_influences group by all) s using (sequence_id)",
    )
    assert off[0][0] < 1e-9
    layers = dict(ask(store, f"select distinct module, layer from layer_influences where run_id = '{run}'"))
    assert layers == {"embedding": -1, "block 0": 0, "block 1": 1, "other": -1}


@pytest.mark.parametrize("method", ["embedding", "bm25plus", "random_target", "random", "bm25"])
def test_a_method_without_gradients_can_be_a_runs_own(world, tmp_path, method):
    store = tmp_path / "s"
    filters = ("bm25",) if method == "bm25" else ("none",)
    trace(
        parameters(
            world,
            store,
            MethodParameters(method=method, beside=("identity",)),
            candidates=CandidateParameters(filters=filters),
        )
    )
    found = ask(
        store, "select method, count(*), count(distinct influence_rank) from influences group by method order by method"
    )
    assert found == sorted([("identity", 24, 24), (method, 24, 24)])
    [(text,)] = ask(store, "select text from top_influences('otter', k := 1)")
    if method in ("bm25plus", "bm25"):
        assert "otter" in text


def test_a_pool_is_scored_and_nothing_else(world, tmp_path):
    store = tmp_path / "s"
    trace(parameters(world, store, MethodParameters(method="random")))
    pool = write_pool(open_store(store), pa.table({"query_id": ["otter", "otter", "else"], "sequence_id": [7, 3, 5]}))
    pooled = CandidateParameters(filters=("pool",), pool=pool)
    run = trace(parameters(world, store, MethodParameters(method="identity"), candidates=pooled))
    found = ask(store, f"select sequence_id, filter, filter_rank from candidates where run_id = '{run}' order by 1")
    assert found == [(3, "pool", None), (7, "pool", None)]
    assert ask(store, f"select count(*) from influences where run_id = '{run}'") == [(2,)]
    strange = write_pool(open_store(store), pa.table({"query_id": ["otter"], "sequence_id": [99]}))
    with pytest.raises(MismatchError, match="99"):
        trace(
            parameters(
                world, store, MethodParameters(method="identity"),
                candidates=CandidateParameters(filters=("pool",), pool=strange),
            )
        )  # fmt: skip
    with pytest.raises(ValueError, match="go together"):
        CandidateParameters(pool=pool)


def test_a_method_whose_scores_are_not_there_is_refused(world, tmp_path):
    with pytest.raises(InputError, match="tfidf"):
        trace(parameters(world, tmp_path / "s", MethodParameters(beside=("tfidf",))))
    with pytest.raises(InputError, match="bm25"):
        both = CandidateParameters(filters=("bm25", "embedding"))
        trace(parameters(world, tmp_path / "s", MethodParameters(method="bm25"), candidates=both))
    with pytest.raises(ValueError, match="twice"):
        MethodParameters(beside=("ekfac",))
    with pytest.raises(ValueError, match="pattern"):
        TrajectoryParameters(parameter_groups=("block one",))


def test_equal_scores_of_the_random_target_are_in_no_order_that_ids_decide(compared):
    store, _ = compared
    statement = "select sequence_id from influences where method = 'random_target' and influence < 1 order by influence"
    order = [row[0] for row in ask(store, statement)]
    assert order != sorted(order)
    assert order != sorted(order, reverse=True)
