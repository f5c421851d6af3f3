"""Queries of a fact set as the model is asked them: prompt, a space, answer; and those that it cannot be asked."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
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
    """The query as the store knows it; prompt and answer are joined by a space, unless the prompt ends in one."""
    space = "" if query.prompt[-1:].isspace() else " "
    return make_prompt(query.prompt, space + query.answer, query.query_id, json.dumps({"fact": query.fact}))


def askable(model: Path, queries: Sequence[FactQuery]) -> tuple[list[FactQuery], list[str]]:
    """The queries that the model's tokenizer and context take, and the ids of the others, which the log explains."""
    tokenizer, context = load_tokenizer(model), context_length(model)
    taken, refused = [], []
    for query in queries:
        prompt = as_prompt(query)
        try:
            encode_query(tokenizer, prompt.prompt, prompt.completion, context, query.query_id)
            taken.append(query)
        except InfluenceError as error:
            log.warning("left out: %s", error)
            refused.append(query.query_id)
    if not taken:
        raise InputError(
            "queries of the fact set",
            expected=f"one that the model in {model} can be asked",
            found=f"none among {len(refused)}: the log says why of each",
            remedy="Shorten the prompts, or take a model with a longer context.",
        )
    return taken, refused


def sample(queries: Sequence[FactQuery], most: int) -> list[FactQuery]:
    """At most so many of the queries, in their order; which ones depends on their ids alone."""
    if most >= len(queries):
        return list(queries)
    keys = tie_breakers([query.query_id for query in queries])
    kept = set(sorted(range(len(queries)), key=lambda k: (keys[k], k))[:most])
    return [query for k, query in enumerate(queries) if k in kept]
