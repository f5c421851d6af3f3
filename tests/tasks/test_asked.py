"""Queries of a fact set as a model is asked them."""

from __future__ import annotations

import pytest

from storage.errors import InputError
from storage.fact_sets import FactQuery
from tasks.asked import as_prompt, askable, other_completions, sample


def test_prompt_and_answer_are_joined_by_one_space():
    joined = [as_prompt(FactQuery("q", prompt, "blue", "f")) for prompt in ("The sky is", "The sky is ", "Blue:\n", "")]
    assert [p.prompt + p.completion for p in joined] == ["The sky is blue", "The sky is blue", "Blue:\nblue", " blue"]
    spaced = as_prompt(FactQuery("q", "The sky is", " blue", "f", (" grey", "red")))
    assert spaced.completion == " blue"
    assert other_completions(FactQuery("q", "The sky is", " blue", "f", (" grey", "red"))) == [" grey", " red"]
    assert [p.prompt for p in joined] == ["The sky is", "The sky is ", "Blue:\n", ""]


def test_a_query_that_does_not_fit_the_context_is_left_out_and_explained(gpt2, caplog):
    fits, long = FactQuery("fits", "The otter went to the", "harbour", "f"), FactQuery("long", "otter " * 60, "x", "g")
    assert askable(gpt2, [fits, long]) == ([fits], ["long"], [])
    assert "query long: expected at most 48 tokens" in caplog.text
    with pytest.raises(InputError, match="expected one that the model in .* can be asked, found none among 1"):
        askable(gpt2, [long])


def test_another_name_that_does_not_fit_is_left_out_and_the_query_stays(gpt2, caplog):
    query = FactQuery("q", "The otter went to the", "harbour", "f", ("sea", "sea " * 60, "coast"))
    taken, refused, unnamed = askable(gpt2, [query])
    assert ([q.aliases for q in taken], refused, unnamed) == ([("sea", "coast")], [], [f"{'sea ' * 60} (q)"])
    assert "query q: expected at most 48 tokens" in caplog.text


def test_a_sample_depends_on_the_ids_alone_and_keeps_the_order():
    queries = [FactQuery(f"q{k}", "p", "a", "f") for k in range(50)]
    some = sample(queries, 10)
    assert len(some) == 10
    assert set(some) == set(sample(queries[::-1], 10))
    assert some == [query for query in queries if query in some]
    assert sample(queries, 99) == queries
    assert sample(queries, 0) == []
