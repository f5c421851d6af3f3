"""FTRACE-SYNTH: the published counts, unique answers, and that what is held out stands in no training text."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tasks.evaluation import ftrace_synth
from tasks.evaluation.ftrace_synth import RELATIONS, UTTERANCES, documents, make_set, queries, roman, surfaces


@pytest.fixture(scope="module")
def small():
    return make_set(12, seed=3)


def rows(columns):
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def texts(synth, form):
    return [row for batch in documents(synth, form) for row in rows(batch)]


def test_at_full_scale_the_counts_are_the_published_ones():
    full = make_set(5_000, seed=0)
    assert full.facts.shape == (50_000, 3)
    assert len(full.held_out) == 5_000
    assert full.pairs.shape == (797_500, 2)  # of 1,595,000 utterances; masked, 3,190,000 examples
    everything = np.concatenate([full.pairs.ravel(), full.held_out])
    assert np.array_equal(np.sort(everything), np.arange(1_600_000))
    by_fact = full.pairs // UTTERANCES
    assert not (by_fact[:, 0] == by_fact[:, 1]).any()
    stated = np.bincount(by_fact.ravel(), minlength=50_000)
    assert set(stated[full.held_out // UTTERANCES]) == {31}  # pairs: 124 proponents with four maskings of each
    assert len(np.unique(full.held_out // UTTERANCES)) == 5_000


def test_asked_from_either_side_a_fact_has_one_answer():
    facts = make_set(300, seed=1).facts
    assert len(np.unique(facts[:, [0, 1]], axis=0)) == len(np.unique(facts[:, [1, 2]], axis=0)) == 3_000
    assert (facts[:, 0] != facts[:, 2]).all()
    assert (facts[:, [0, 2]].min(), facts[:, [0, 2]].max()) == (1, 300)
    assert set(facts[:, 1]) == set(range(37))


def test_the_37_relations_have_two_paraphrases_of_their_own_one_to_end_in_either_argument():
    assert len(RELATIONS) == 37
    templates = [template for pair in RELATIONS.values() for template in pair]
    assert len(set(templates)) == 74
    for to_object, to_subject in RELATIONS.values():
        assert to_object.endswith(" {1}")
        assert to_object.count("{0}") == 1
        assert to_subject.endswith(" {0}")
        assert to_subject.startswith("{1} ")


@pytest.mark.parametrize(
    ("number", "numeral"),
    [(1, "I"), (4, "IV"), (9, "IX"), (14, "XIV"), (40, "XL"), (90, "XC"), (444, "CDXLIV"), (1987, "MCMLXXXVII"),
     (2026, "MMXXVI"), (4999, "MMMMCMXCIX")],
)  # fmt: skip
def test_roman_numerals(number, numeral):
    assert roman(number) == numeral


def test_an_utterance_says_its_fact_with_its_own_template_and_surfaces():
    synth = ftrace_synth.SynthSet(np.array([[14, 0, 3]]), np.array([]), np.array([[0, 31], [1 * 16 + 2 * 4 + 1, -1]]))
    assert [row["text"] for row in texts(synth, "causal")] == [
        "entity-14 was born in entity-3,III-entity is the birthplace of XIV-entity",
        "3-entity is the birthplace of entity-XIV",
    ]
    assert [row["facts"] for row in texts(synth, "causal")][1] == ["entity-14 | birthplace | entity-3"]
    assert surfaces(14) == ("entity-14", "14-entity", "entity-XIV", "XIV-entity")


def test_a_masked_pair_gives_four_texts_that_collapse_to_it():
    synth = ftrace_synth.SynthSet(np.array([[14, 0, 3], [2, 2, 5]]), np.array([]), np.array([[0, 32]]))
    found = texts(synth, "masked")
    assert [row["text"] for row in found] == [
        "___ was born in entity-3,the capital of ___ is entity-5 = entity-14 = entity-2",
        "___ was born in entity-3,the capital of entity-2 is ___ = entity-14 = entity-5",
        "entity-14 was born in ___,the capital of ___ is entity-5 = entity-3 = entity-2",
        "entity-14 was born in ___,the capital of entity-2 is ___ = entity-3 = entity-5",
    ]
    assert len({row["doc_id"] for row in found}) == 4
    assert {row["pair"] for row in found} == {"pair-0"}


@pytest.mark.parametrize(("form", "per_fact", "n_proponents"), [("causal", 1, 31), ("masked", 2, 124)])
def test_every_query_has_its_proponents_and_its_words_stand_in_no_training_text(small, form, per_fact, n_proponents):
    asked, trained = rows(queries(small, form)), texts(small, form)
    assert len(asked) == 12 * per_fact  # a tenth of 120 facts
    assert len({row["query_id"] for row in asked}) == len(asked)
    stated = Counter(fact for row in trained for fact in row["facts"])
    assert {stated[row["fact"]] for row in asked} == {n_proponents}
    clauses = {clause for row in trained for clause in row["text"].split(" = ")[0].split(",")}
    answers = {(c, a) for row in trained for c, a in zip(row["text"].split(" = ")[0].split(","),
               row["text"].split(" = ")[1:], strict=False)}  # fmt: skip
    for row in asked:
        if form == "causal":
            assert f"{row['prompt']} {row['answer']}" not in clauses
            assert sum(clause.startswith(row["prompt"] + " ") for clause in clauses) == 3  # the other surfaces
        else:
            question = row["prompt"].removesuffix(" =")
            assert (question, row["answer"]) not in answers
            assert sum(clause == question for clause, _ in answers) == 3


def test_either_side_is_asked_for(small):
    sides = Counter(row["asks_for"] for row in rows(queries(make_set(60, seed=0), "causal")))
    assert min(sides["subject"], sides["object"]) > 15  # of 60; a fair coin falls below in 1 of 10,000 sets
    for row in rows(queries(small, "causal")):
        subject, _, target = row["fact"].split(" | ")
        entity = int((target if row["asks_for"] == "object" else subject).removeprefix("entity-"))
        assert row["answer"] in row["aliases"]
        assert row["aliases"] == list(surfaces(entity))


def test_one_seed_gives_one_set_and_another_seed_another(small):
    again, other = make_set(12, seed=3), make_set(12, seed=4)
    assert np.array_equal(again.pairs, small.pairs)
    assert not np.array_equal(other.facts, small.facts)


def test_another_share_of_the_facts_may_be_asked_for():
    synth = make_set(30, seed=0, test_share=0.5)
    assert len(np.unique(synth.held_out // UTTERANCES)) == 150
    stated = np.bincount(synth.pairs.ravel() // UTTERANCES, minlength=300)
    assert sorted(stated) == [31] * 150 + [32] * 150
    assert set(stated[synth.held_out // UTTERANCES]) == {31}


def test_two_entities_are_the_least(small):
    assert len(make_set(2, seed=0).facts) == 20
    with pytest.raises(ValueError, match="at least two entities"):
        make_set(1, seed=0)
