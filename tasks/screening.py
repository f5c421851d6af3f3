"""Screening stage: which queries the model cannot be asked, told before any pass of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from storage.checkpoints import context_length, load_tokenizer
from storage.prompts import Prompt
from tasks.influence.errors import InfluenceError
from tasks.influence.queries import encode_query
from tasks.stage import stage


@stage("screening")
def screen(model: Path, prompts: Sequence[Prompt]) -> dict[str, str]:
    """What is wrong with each query that cannot be traced, by its id: too long, without a token to predict, …"""
    tokenizer, context = load_tokenizer(model), context_length(model)
    refused = {}
    for prompt in prompts:
        try:
            encode_query(tokenizer, prompt.prompt, prompt.completion, context, prompt.query_id)
        except InfluenceError as error:
            refused[prompt.query_id] = str(error)
    return refused
