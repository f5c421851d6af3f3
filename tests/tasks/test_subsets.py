"""Subsets that a study plans, and what it refuses before anything is trained."""

from __future__ import annotations

import pytest
import worlds
from pydantic import ValidationError

from storage.errors import InputError
from storage.prompts import make_prompt
from storage.store import create_store
from tasks.corpus import CorpusParameters, ingest
from tasks.fanout import Workers
from tasks.influence.errors import InfluenceError
from tasks.learning.loop import TrainingParameters
from tasks.subsets import SubsetParameters, describe_study, encode, n_left_out, plan_subsets

HALVES = SubsetParameters()
PROMPT = make_prompt("The otter went to the", " harbour.", "otter")


@pytest.fixture
def store(tmp_path, gpt2):
    made = create_store(tmp_path / "s")
    corpus = worlds.write_jsonl(tmp_path / "corpus.jsonl", worlds.documents(24))
    ingest.fn(made, gpt2, CorpusParameters(inputs=(str(corpus),)), Workers())
    return made


def study_of(store, gpt2, subsets=HALVES, **training):
    return describe_study(store, gpt2, TrainingParameters(**training), [PROMPT], subsets)


def test_a_study_plans_everything_in_several_orders_and_halves_in_the_same_one(store, gpt2):
    subsets = SubsetParameters(subsets=12, seeds=2)
    planned = plan_subsets(study_of(store, gpt2, subsets, seed=5), subsets)
    assert [(r.kind, r.seed, len(r.left_out)) for r in planned[:3]] == [("full", 5, 0), ("full", 6, 0), ("full", 7, 0)]
    halves = planned[3:]
    assert {(r.kind, r.seed, len(r.left_out)) for r in halves} == {("subset", 5, 12)}
    assert len({r.left_out for r in halves}) == 12
    more = plan_subsets(study_of(store, gpt2, subsets, seed=5), SubsetParameters(subsets=14, seeds=2))
    assert more[: len(planned)] == planned


def test_subsets_with_orders_of_their_own_share_no_seed_with_each_other_or_the_whole(store, gpt2):
    subsets = SubsetParameters(subsets=12, seeds=2, order="own")
    seeds = [r.seed for r in plan_subsets(study_of(store, gpt2, subsets), subsets)]
    assert len(set(seeds)) == len(seeds)


def test_a_study_is_named_by_what_decides_its_losses(store, gpt2, llama):
    named = study_of(store, gpt2).study_id
    assert study_of(store, gpt2, checkpoints=3).study_id == named
    assert study_of(store, gpt2, SubsetParameters(subsets=80, seeds=9)).study_id == named
    others = [
        study_of(store, llama), study_of(store, gpt2, learning_rate=1e-3), study_of(store, gpt2, seed=1),
        study_of(store, gpt2, SubsetParameters(kept=0.25)), study_of(store, gpt2, SubsetParameters(seed=1)),
        study_of(store, gpt2, SubsetParameters(order="own")),
        describe_study(store, gpt2, TrainingParameters(), [make_prompt("The otter", " went", "otter")],
                       SubsetParameters()),
    ]  # fmt: skip
    assert len({named, *(other.study_id for other in others)}) == 8


def test_subsets_lack_at_least_one_sequence_and_never_all():
    assert n_left_out(1000, SubsetParameters(kept=0.99)) == 10
    assert n_left_out(20, SubsetParameters(kept=0.999, subsets=10)) == 1
    assert n_left_out(20, SubsetParameters(kept=0.001, subsets=10)) == 19
    assert n_left_out(20, SubsetParameters(kept=None, size=13)) == 7


@pytest.mark.parametrize(
    ("n", "subsets", "says"),
    [
        (1, SubsetParameters(), "at least two training sequences.*found 1\\. Add documents"),
        (30, SubsetParameters(kept=None, size=30), "at most 29, found 30 sequences in the corpus\\. Lower --size"),
        (30, SubsetParameters(kept=0.99, subsets=31), "30 different ones in a corpus of 30\\. Lower --subsets"),
    ],
)
def test_subsets_that_cannot_be_drawn_are_refused(n, subsets, says):
    with pytest.raises(InputError, match=says):
        n_left_out(n, subsets)


def test_an_epoch_with_more_steps_than_a_subset_has_sequences_is_refused(store, gpt2):
    subsets = SubsetParameters(kept=0.25)
    with pytest.raises(InputError, match="12 steps of an epoch on all of them.*Raise --batch-size to 4"):
        plan_subsets(study_of(store, gpt2, subsets, batch_size=2), subsets)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"subsets": 9}, "at least 10 retrainings, of which an interval can be made, found 9"),
        ({"queries": 4}, "none, or at least 5"),
        ({"kept": 0.5, "size": 10}, "either kept or size, found both"),
        ({"kept": None}, "either kept or size, found both or neither"),
        ({"kept": 1.0}, "less than 1"),
    ],
)
def test_subsets_of_which_nothing_could_be_said_are_refused(given, says):
    with pytest.raises(ValidationError, match=says):
        SubsetParameters(**given)


def test_a_query_that_the_context_does_not_take_is_named(gpt2):
    long = make_prompt("The otter went to the harbour. " * 20, " It slept.", "endless")
    with pytest.raises(InfluenceError, match="query endless: expected at most 48 tokens, the model's context"):
        encode(gpt2, [PROMPT, long])
