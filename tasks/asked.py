"""Queries of a fact set as the model is asked them: prompt, a space, answer; and those that it cannot be asked."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from storage.checkpoints import context_length, load_tokenizer
from storage.errors import InputError
from storage.fact_sets import FactQuery
from storage.prompts import Prompt, make_prompt
from tasks.evaluation.ranking import tie_breakers
from tasks.influence.errors import InfluenceError
from tasks.influence.queries import encode_query

log = logging.getLogger(__name__)


def as_prompt(query: FactQuery) -> Prompt:
    """The query as the store knows it; a space joins prompt and answer, unless there is white space between them."""
    space = "" if query.prompt[-1:].isspace() or query.answer[:1].isspace() else " "
    return make_prompt(query.prompt, space + query.answer, query.query_id, json.dumps({"fact": query.fact}))


def other_completions(query: FactQuery) -> list[str]:
    """The other names of the answer, each as it would follow the prompt."""
    return [as_prompt(replace(query, answer=name)).completion for name in query.aliases]


def askable(model: Path, queries: Sequence[FactQuery]) -> tuple[list[FactQuery], list[str], list[str]]:
    """The queries that the model's tokenizer and context take, with the other names of their answers that they take.

    Then the ids of the other queries, and the other names, `name (query)`; the log explains each.
    """
    tokenizer, context = load_tokenizer(model), context_length(model)

    def takes(prompt: Prompt) -> bool:
        try:
            encode_query(tokenizer, prompt.prompt, prompt.completion, context, prompt.query_id)
        except InfluenceError as error:
            log.warning("left out: %s", error)
            return False
        return True

    taken, refused, unnamed = [], [], []
    for query in queries:
        if not takes(as_prompt(query)):
            refused.append(query.query_id)
            continue
        names = tuple(name for name in query.aliases if takes(as_prompt(replace(query, answer=name))))
        unnamed += [f"{name} ({query.query_id})" for name in query.aliases if name not in names]
        taken.append(replace(query, aliases=names))
    if not taken:
        raise InputError(
            "queries of the fact set",
            expected=f"one that the model in {model} can be asked",
            found=f"none among {len(refused)}: the log says why of each",
            remedy="Shorten the prompts, or take a model with a longer context.",
        )
    return taken, refused, unnamed


def sample(queries: Sequence[FactQuery], most: int) -> list[FactQuery]:
    """At most so many of the queries, in their order; which ones depends on their ids alone."""
    if most >= len(queries):
        return list(queries)
    keys = tie_breakers([query.query_id for query in queries])
    kept = set(sorted(range(len(queries)), key=lambda k: (keys[k], k))[:most])
    return [query for k, query in enumerate(queries) if k in kept]
