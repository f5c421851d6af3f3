"""Answers among the tokens of their documents, and what of a gradient is theirs: held against autograd."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import cases
import numpy as np
import oracles
import pytest
import torch
import worlds

from storage.catalog import run_user_sql
from storage.checkpoints import load_model, load_tokenizer, model_fingerprint, read_model
from storage.errors import MismatchError, ModelError
from storage.inputs import write_documents
from storage.sequences import corpus_parts
from storage.store import create_store
from storage.tables import read_part
from tasks import answer_influence
from tasks.answer_influence import measure_answers
from tasks.answer_trajectory import measure_trajectories
from tasks.answers import answer_positions, read_answers
from tasks.compute import ComputeParameters
from tasks.corpus import CorpusParameters, ingest
from tasks.factors import FitParameters, fit_factors
from tasks.fanout import Workers
from tasks.influence.modules import select_modules
from tasks.learning.tokenizer import train_tokenizer
from tasks.metrics import Damping, fit_of, load_metric, metric_id
from tasks.selves import Curvature


@pytest.mark.parametrize(
    ("text", "answer", "counted"),
    [
        ("a Gleem is", "Gleem", ["ĠGleem"]),  # the space that begins the token straddles
        ("Gleem is", "Gleem", ["Gleem"]),
        ("a Gleem is Gleem", "Gleem", ["ĠGleem", "ĠGleem"]),
        ("a Gleems Gleem", "Gleem", ["ĠGleem"]),  # whole words alone
        ("Gleem is it", "is it", ["Ġis", "Ġ", "i", "t"]),
        ("a Gleem is", "is", ["Ġis"]),
        ("a Gleem", None, []),
    ],
)
@pytest.mark.parametrize("trim_offsets", [False, True])
@pytest.mark.parametrize("special", [False, True])
def test_tokens_that_hold_a_part_of_the_answer_are_the_answers(text, answer, counted, trim_offsets, special):
    tokenizer = cases.tokenizer(special, special, trim_offsets)
    encoded = tokenizer(text, return_offsets_mapping=True)
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    assert [tokens[k] for k in answer_positions(answer, text, encoded["offset_mapping"])] == counted


RECORDS = [
    ("d0", "The otter went to the harbour. It slept there. Nobody saw the otter leave the harbour.", "harbour"),
    ("d1", "The heron went to the quarry", "quarry"),
    ("d2", "Nobody saw the badger leave.", None),
    ("d3", "otter: so it is said", "otter"),
]


@pytest.fixture
def store(tmp_path, gpt2):
    """Four documents, the first of them cut into pieces of six tokens."""
    records = [{"document_id": name, "text": text, "said": said} for name, text, said in RECORDS]
    write_documents(tmp_path / "corpus.parquet", records)
    store = create_store(tmp_path / "s")
    cut = CorpusParameters(inputs=(str(tmp_path / "corpus.parquet"),), sequence_length=6)
    ingest.fn(store, gpt2, cut, Workers())
    return store


def measured(store, gpt2, method: str, modules: str = "mlp") -> tuple[Curvature, list[dict]]:
    compute = ComputeParameters(precision="float32")
    fit = FitParameters(sequences=50, modules=modules) if method == "ekfac" else None
    fit_id = fit_factors.fn(store, gpt2, fit, compute, Workers()) if fit else None
    name = metric_id(fit_id, model_fingerprint(gpt2), modules, method, Damping(), compute)
    curvature = Curvature(store, gpt2, modules, fit_id, name, method, Damping(), compute)
    assert measure_answers.fn(curvature, Workers()) == len(all_sequences(store, gpt2))
    assert measure_answers.fn(curvature, Workers()) == 0  # what is there is kept
    part = read_part(store, "answer_influences", name, f"{corpus_parts(store)[0].name}-0")
    return curvature, sorted(part.to_pylist(), key=lambda row: row["sequence_id"])


def all_sequences(store, gpt2):
    return [answer.sequence for answer in read_answers(store, gpt2, 0, 1000)]


def test_pieces_of_a_document_count_its_answer_where_each_holds_it(store, gpt2):
    tokenizer = load_tokenizer(gpt2)
    found = all_sequences(store, gpt2)
    said: dict[str, str] = {}
    names = [name for name, text, _ in RECORDS for _ in range(0, len(tokenizer(text)["input_ids"]) - 1, 6)]
    for name, sequence in zip(names, found, strict=True):
        counted = tokenizer.decode([sequence.token_ids[k] for k in sequence.counted])
        said[name] = said.get(name, "") + counted.replace(" ", "")
    assert len(found) > len(RECORDS)
    assert said == {"d0": "harbourharbour", "d1": "quarry", "d2": "", "d3": "otter"}
    assert [answer.sequence for answer in read_answers(store, gpt2, 2, 4)] == found[2:5]


def test_a_corpus_cut_by_another_tokenizer_is_refused(store, tmp_path):
    train_tokenizer(["Something else entirely."], 260).save_pretrained(tmp_path / "other")
    with pytest.raises(MismatchError, match="sequence 0 of store.*others: its corpus was cut by another tokenizer"):
        all_sequences(store, tmp_path / "other")


def answer_gradients(model, sequence) -> tuple[float, dict[str, torch.Tensor]]:
    """−log p of the counted tokens, and its gradient in [W b] of each matrix of the MLPs, by autograd."""
    model = model.double()
    model.zero_grad()
    logits = model(torch.tensor([list(sequence.token_ids)])).logits[0]
    logs = torch.log_softmax(logits, -1)
    loss = -sum((logs[k - 1, sequence.token_ids[k]] for k in sequence.counted if k > 0), torch.zeros(()).double())
    names = [f"transformer.h.{k}.mlp.{part}" for k in range(2) for part in ("c_fc", "c_proj")]
    layers = [model.get_submodule(name) for name in names]
    for layer in layers:
        layer.requires_grad_()
    if loss.requires_grad:
        loss.backward()
    zero = torch.zeros_like
    found = {  # Conv1D holds its matrix as [i, o]
        name: torch.cat(
            [(w.grad if w.grad is not None else zero(w)).T, (b.grad if b.grad is not None else zero(b))[:, None]], 1
        )
        for name, layer in zip(names, layers, strict=True)
        for w, b in [(layer.weight, layer.bias)]
    }
    return float(loss.detach()), found


def test_an_answers_loss_and_gradient_norm_are_autograds_of_its_tokens_alone(store, gpt2):
    _, rows = measured(store, gpt2, "identity")
    for row, sequence in zip(rows, all_sequences(store, gpt2), strict=True):
        loss, gradients = answer_gradients(read_model(gpt2), sequence)
        norm = sum(float(g.square().sum()) for g in gradients.values())
        assert row["n_tokens"] == sum(k > 0 for k in sequence.counted)
        assert row["loss"] == pytest.approx(loss, rel=1e-5, abs=1e-9)
        assert row["self_influence"] == pytest.approx(norm, rel=1e-4, abs=1e-12)
        assert row["gradient_norm"] == pytest.approx(np.sqrt(norm), rel=1e-4, abs=1e-9)
    assert sum(row["n_tokens"] == 0 and row["self_influence"] == 0 for row in rows) >= 2


def test_under_ekfac_it_is_the_gradient_through_the_damped_matrix_written_out(store, gpt2):
    name = "transformer.h.0.mlp.c_proj"
    curvature, rows = measured(store, gpt2, "ekfac", modules=name)
    [module] = select_modules(load_model(gpt2), curvature.modules)
    fit = fit_of(store, curvature.fit_id, gpt2)
    m = load_metric(store, fit, module, "ekfac", Damping(), torch.device("cpu"))
    q_out, q_in = (side.blocks[0].double() for side in (m.out, m.inp))
    damped = oracles.spectral(q_out, q_in, m.eigenvalues) + m.damping * torch.eye(16 * 65)
    for row, sequence in zip(rows, all_sequences(store, gpt2), strict=True):
        gradient = answer_gradients(read_model(gpt2), sequence)[1][name].flatten()
        expected = float(gradient @ torch.linalg.solve(damped, gradient))
        assert row["self_influence"] == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_on_the_way_a_loss_and_a_gradient_norm_are_those_of_the_checkpoint(store, tmp_path):
    model = worlds.save_gpt2(tmp_path / "model")
    rates = {0: 0.0, 3: 0.5, 9: 0.25}
    for step in rates:
        worlds.save_gpt2(model / f"checkpoint-{step}", seed=step)
    legs = [{"step": step, "learning_rate": rate} for step, rate in rates.items()]
    (model / "training.json").write_text(json.dumps({"legs": legs}))
    curvature, _ = measured(store, model, "identity")
    sequences = all_sequences(store, model)
    assert measure_trajectories.fn(curvature, Workers()) == len(rates) * len(sequences)
    assert measure_trajectories.fn(curvature, Workers()) == 0  # what is there is kept
    rows = run_user_sql(
        store,
        "select checkpoint, sequence_id, learning_rate, loss, gradient_norm from answer_trajectories "
        f"where factors_id = '{curvature.factors_id}' order by all",
    )[1]
    assert [row[:2] for row in rows] == [(step, s.sequence_id) for step in rates for s in sequences]
    for (step, _, rate, loss, norm), sequence in zip(rows, sequences * len(rates), strict=True):
        network = read_model(model / f"checkpoint-{step}")
        expected, gradients = answer_gradients(network, sequence)
        assert rate == rates[step]
        assert loss == pytest.approx(expected, rel=1e-5, abs=1e-9)
        length = sum(float(g.square().sum()) for g in gradients.values()) ** 0.5
        assert norm == pytest.approx(length, rel=1e-4, abs=1e-9)
    counting = sum(any(k > 0 for k in sequence.counted) for sequence in sequences)
    assert len({row[3] for row in rows if row[3] > 0}) == len(rates) * counting

    shutil.rmtree(model / "checkpoint-3")
    assert measure_trajectories.fn(curvature, Workers()) == 0  # what was measured needs no checkpoint
    again = replace(curvature, factors_id="other")
    with pytest.raises(ModelError, match=r"checkpoint-3: expected what the training saved there, found nothing"):
        measure_trajectories.fn(again, Workers())
    (model / "training.json").unlink()
    with pytest.raises(ModelError, match="expected one that headwater train made"):
        measure_trajectories.fn(again, Workers())


def test_what_the_answers_of_other_documents_do_to_one_is_the_product_of_their_gradients(store, gpt2, monkeypatch):
    """Two rows are held at a time, one module after another; pieces of one document do not contradict one another."""
    monkeypatch.setattr(answer_influence, "matrix_budget", lambda: 2 * 2 * 4 * 64 * 17)
    curvature, rows = measured(store, gpt2, "identity")
    answers = read_answers(store, gpt2, 0, 1000)
    gradients = [
        torch.cat([g.flatten() for g in answer_gradients(read_model(gpt2), a.sequence)[1].values()]) for a in answers
    ]
    products = torch.stack(gradients) @ torch.stack(gradients).T
    opponents = read_part(
        store, "answer_opponents", curvature.factors_id, f"{corpus_parts(store)[0].name}-0"
    ).to_pylist()
    some_contradict = 0
    for r, row in enumerate(rows):
        others = [z for z, a in enumerate(answers) if a.document_id != answers[r].document_id and products[z, z] > 0]
        relative = {z: float(products[r, z] / products[z, z].sqrt()) for z in others}
        against = {z: -value for z, value in relative.items() if value < 0}
        assert row["contradiction"] == pytest.approx(sum(against.values()), rel=1e-4, abs=1e-9)
        assert row["support"] == pytest.approx(sum(v for v in relative.values() if v > 0), rel=1e-4, abs=1e-9)
        own = [o for o in opponents if o["sequence_id"] == row["sequence_id"]]
        assert [o["opponent_id"] for o in own] == sorted(against, key=lambda z: -against[z])[:10]
        assert [o["opponent_rank"] for o in own] == list(range(1, len(own) + 1))
        for o in own:
            assert o["influence"] == pytest.approx(float(products[r, o["opponent_id"]]), rel=1e-4, abs=1e-9)
            assert o["relative_influence"] == pytest.approx(-against[o["opponent_id"]], rel=1e-4)
        some_contradict += len(own)
    assert some_contradict > 0
