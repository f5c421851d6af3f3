"""The tail-patch stage: one row per pair, and only pairs that are new are measured."""

from __future__ import annotations

import math

import pytest

from storage.prompts import make_prompt
from storage.store import create_store
from storage.tables import read_part
from tasks import tail_patch
from tasks.corpus import CorpusParameters, ingest
from tasks.fanout import Workers
from tasks.tail_patch import TailPatchParameters, measure_tail_patches

PROMPTS = [make_prompt("The otter went to the", " harbour.", "q1"), make_prompt("The heron", " went", "q2")]
PAIRS = [("q1", 0), ("q2", 0), ("q1", 5)]


@pytest.fixture
def store(tmp_path, gpt2, corpus):
    made = create_store(tmp_path / "s")
    ingest.fn(made, gpt2, CorpusParameters(inputs=(str(corpus),)), Workers())
    return made


def measure(store, gpt2, pairs, **parameters):
    measure_tail_patches.fn(store, "run-1", gpt2, PROMPTS, pairs, TailPatchParameters(**parameters))
    found = read_part(store, "tail_patches", "run-1").to_pylist()
    return {(row["query_id"], row["sequence_id"]): row for row in found}


def test_a_step_on_the_sentence_itself_teaches_most(store, gpt2):
    found = measure(store, gpt2, PAIRS)
    assert set(found) == set(PAIRS)
    own, other = found["q1", 0], found["q1", 5]  # sequence 0 says that the otter went to the harbour
    assert own["log_probability_change"] > max(0, other["log_probability_change"])
    for row in found.values():
        change = math.log(row["probability_after"] / row["probability_before"])
        assert row["log_probability_change"] == pytest.approx(change, rel=1e-4, abs=1e-6)
        assert row["learning_rate"] == 0.03


def test_only_new_pairs_are_measured_and_another_rate_measures_all(store, gpt2, monkeypatch):
    seen, patches = [], tail_patch.tail_patches

    def counted(model, queries, sequences, asked_of, *rest):
        seen.append({s: len(asked) for s, asked in asked_of.items()})
        return patches(model, queries, sequences, asked_of, *rest)

    monkeypatch.setattr(tail_patch, "tail_patches", counted)
    monkeypatch.setattr(tail_patch, "BLOCK", 1)
    first = measure(store, gpt2, PAIRS)
    assert measure(store, gpt2, PAIRS) == first
    again = measure(store, gpt2, [*PAIRS, ("q2", 7)])
    assert seen == [{0: 2}, {5: 1}, {7: 1}]
    assert {pair: again[pair] for pair in PAIRS} == first
    faster = measure(store, gpt2, PAIRS, learning_rate=0.06)
    assert seen[3:] == [{0: 2}, {5: 1}]
    assert set(faster) == set(PAIRS)
    assert faster["q1", 0]["log_probability_change"] > first["q1", 0]["log_probability_change"]
