"""The recall stage: one row per query and checkpoint, asked once."""

from __future__ import annotations

import pytest
import torch
import worlds

from storage.checkpoints import load_model, load_tokenizer
from storage.prompts import make_prompt
from storage.staging import has_staged
from storage.store import create_store
from storage.tables import read_part
from storage.trajectory import Checkpoint
from tasks import recall
from tasks.recall import measure_recall

PROMPTS = [make_prompt("The otter went to the", " harbour", "q1"), make_prompt("The otter went to the", " moon", "q2")]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, gpt2):
    taught = worlds.train(gpt2, tmp_path_factory.mktemp("taught") / "model", worlds.documents(1) * 30, 1)
    return (Checkpoint(gpt2, 0, 0.0, None), Checkpoint(taught, 30, 5e-3, None))


def rows(store):
    return {(r["query_id"], r["checkpoint"]): r for r in read_part(store, "query_outcomes", "run-1").to_pylist()}


def test_a_fact_that_was_taught_is_the_first_answer_at_the_end_and_not_at_the_start(tmp_path, gpt2, checkpoints):
    store = create_store(tmp_path / "s")
    measure_recall.fn(store, "run-1", gpt2, PROMPTS, checkpoints, 8)
    found = rows(store)
    assert {key: r["is_first"] for key, r in found.items()} == {
        ("q1", 0): False, ("q2", 0): False, ("q1", 30): True, ("q2", 30): False,
    }  # fmt: skip
    assert found["q1", 30]["is_among_three"]
    tokenizer, model = load_tokenizer(gpt2), load_model(checkpoints[1].path)
    ids = tokenizer("The otter went to the harbour", return_tensors="pt")["input_ids"]
    n = len(tokenizer("The otter went to the")["input_ids"])
    logs = torch.log_softmax(model(ids).logits[0, n - 1 : -1], -1)
    expected = logs.gather(-1, ids[0, n:, None]).sum().exp().item()
    assert found["q1", 30]["probability"] == pytest.approx(expected, rel=1e-5)


def test_another_name_of_the_answer_is_as_right_and_changes_no_probability(tmp_path, gpt2, checkpoints):
    plain, named = create_store(tmp_path / "plain"), create_store(tmp_path / "named")
    measure_recall.fn(plain, "run-1", gpt2, PROMPTS, checkpoints, 8)
    measure_recall.fn(named, "run-1", gpt2, PROMPTS, checkpoints, 8, {"q2": [" sun", " harbour"]})
    assert {key for key, row in rows(named).items() if row["is_first"]} == {("q1", 30), ("q2", 30)}
    assert rows(named)["q2", 30]["is_among_three"]
    for key, row in rows(plain).items():
        assert rows(named)[key]["probability"] == pytest.approx(row["probability"], rel=1e-5)


def test_what_was_measured_is_not_measured_again(tmp_path, gpt2, checkpoints, monkeypatch):
    store = create_store(tmp_path / "s")
    names = {"q2": [" sun"]}
    measure_recall.fn(store, "run-1", gpt2, PROMPTS, checkpoints[:1], 8, names)
    before = rows(store)
    monkeypatch.setattr(recall, "recall_answers", None)
    measure_recall.fn(store, "run-1", gpt2, PROMPTS, checkpoints[:1], 8, names)
    assert rows(store) == before


def test_what_was_measured_with_other_names_is_measured_anew(tmp_path, gpt2, checkpoints):
    store, names = create_store(tmp_path / "s"), {"q2": [" harbour"]}
    found = []
    for aliases in (None, names, {"q2": [" sun"]}, names, {"q1": []}):
        measure_recall.fn(store, "run-1", gpt2, PROMPTS, checkpoints[1:], 8, aliases)
        found.append(rows(store)["q2", 30]["is_first"])
    assert found == [False, True, False, True, False]


def test_a_measurement_that_was_broken_off_goes_on_at_the_next_checkpoint(tmp_path, gpt2, checkpoints, monkeypatch):
    store, asked, answers = create_store(tmp_path / "s"), [], recall.recall_answers

    def second_fails(model, *rest):
        asked.append(model)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return answers(model, *rest)

    monkeypatch.setattr(recall, "recall_answers", second_fails)
    with pytest.raises(KeyboardInterrupt):
        measure_recall.fn(store, "run-1", gpt2, PROMPTS, checkpoints, 8)
    measure_recall.fn(store, "run-1", gpt2, PROMPTS, checkpoints, 8)
    assert len(asked) == 3
    assert len(rows(store)) == 4
    assert not has_staged(store, "recall-run-1", "query_outcomes", "step-0")
