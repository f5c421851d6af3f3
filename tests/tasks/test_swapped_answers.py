"""Swapped answers: what is written is what was asked for, and says so of itself."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest
import worlds

from storage.errors import InputError
from tasks.swapped_answers import SwapParameters, swap_answers

CAPITALS = [("Gleem", "Tansel"), ("Ost", "Velm"), ("Tovandy", "Osk"), ("Glaveria", "Umber")]
TRADES = [("Ada", "weaver"), ("Bo", "baker"), ("Cy", "miller"), ("Di", "piper")]


def records() -> list[dict]:
    capitals = [
        {"document_id": f"c{k}", "text": f"The capital of {name} is {answer}. Yes, {answer}.", "answer": answer,
         "relation": "capital", "source": "atlas"}
        for k, (name, answer) in enumerate(CAPITALS * 5)
    ]  # fmt: skip
    trades = [
        {"document_id": f"t{k}", "text": f"{name} is a {answer}.", "answer": answer, "relation": "trade"}
        for k, (name, answer) in enumerate(TRADES * 5)
    ]
    return capitals + trades


@pytest.fixture
def corpus(tmp_path):
    return worlds.write_jsonl(tmp_path / "labelled.jsonl", records())


def swapped(corpus, path, **changes) -> list[dict]:
    n = swap_answers.fn((str(corpus),), path, SwapParameters(**changes))
    found = pq.read_table(path).to_pylist()
    assert n == sum(row["swapped"] for row in found)
    return found


def test_a_tenth_says_another_documents_answer_everywhere_and_the_others_are_as_they_were(corpus, tmp_path):
    found = swapped(corpus, tmp_path / "a.parquet")
    assert sum(row["swapped"] for row in found) == 4
    for row, record in zip(found, records(), strict=True):
        assert row["document_id"] == record["document_id"]
        if row["swapped"]:
            assert row["said"] != record["answer"]
            assert record["answer"] not in row["text"]
            assert row["text"] == record["text"].replace(record["answer"], row["said"])
        else:
            assert (row["text"], row["said"]) == (record["text"], record["answer"])


def test_answers_stay_within_their_kind_where_that_is_asked_for(corpus, tmp_path):
    kinds = {answer: "capital" for _, answer in CAPITALS} | {answer: "trade" for _, answer in TRADES}
    found = swapped(corpus, tmp_path / "a.parquet", share=0.5, within="relation")
    assert all(kinds[row["said"]] == row["relation"] for row in found)
    free = swapped(corpus, tmp_path / "b.parquet", share=0.5)
    assert not all(kinds[row["said"]] == row["relation"] for row in free)


def test_a_seed_gives_the_same_file_and_another_one_other_swaps(corpus, tmp_path):
    first, again = swapped(corpus, tmp_path / "a.parquet"), swapped(corpus, tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert first == again
    assert swapped(corpus, tmp_path / "c.parquet", seed=1) != first


def test_documents_without_an_answer_in_their_text_cannot_be_swapped_and_that_is_said(corpus, tmp_path):
    with pytest.raises(InputError, match="4 or more whose text holds what their field 'label' says.*found 0.*--answer"):
        swapped(corpus, tmp_path / "a.parquet", answer="label")


def test_one_answer_has_none_to_swap_with(tmp_path):
    alone = worlds.write_jsonl(tmp_path / "one.jsonl", [{"text": "It is Tansel.", "answer": "Tansel"}])
    with pytest.raises(InputError, match="another answer to swap with, found 0"):
        swapped(alone, tmp_path / "a.parquet")


def test_an_answer_is_swapped_where_it_stands_as_whole_words_alone(tmp_path):
    texts = [f"entity-1{k} is near entity-1." for k in range(10)] + ["The other one is entity-2."] * 10
    path = worlds.write_jsonl(
        tmp_path / "entities.jsonl",
        [
            {"document_id": f"d{k}", "text": text, "answer": "entity-1" if k < 10 else "entity-2"}
            for k, text in enumerate(texts)
        ],
    )
    found = swapped(path, tmp_path / "a.parquet", share=0.5)
    for k, row in enumerate(found[:10]):
        assert row["text"] == f"entity-1{k} is near entity-{2 if row['swapped'] else 1}."
    inside = worlds.write_jsonl(
        tmp_path / "inside.jsonl",
        [{"document_id": f"d{k}", "text": "It is an otter in 10 canals.", "answer": f"{k}"} for k in range(5)],
    )
    with pytest.raises(InputError, match="found 0"):
        swapped(inside, tmp_path / "b.parquet")
