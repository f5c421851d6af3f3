"""Whether a model knows an answer: its probability after the prompt, and its place in a beam search.

A beam search of width w keeps the w likeliest continuations token by token (Akyürek et al. 2022, arXiv 2205.11482, ask
with w = 3 what a checkpoint knows). Here it runs for as many tokens as the answer has, and a continuation is the answer
when its tokens are the answer's and the likeliest token after them does not go on with the same word: who is asked for
12 and says 123 is wrong. Of an answer with several names each is asked for by itself, and the best of them counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from tasks.influence.batches import TokenSequence, batches, collate
from tasks.influence.objectives import log_probabilities

WIDTH = 3


@dataclass(frozen=True)
class Outcome:
    """What a model makes of one query: log p(answer | prompt) in nats, and the answer's place in the beam."""

    log_probability: float
    is_first: bool
    is_among_first: bool


def recall_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Sequence[TokenSequence], batch_size: int
) -> list[Outcome]:
    """The outcome of each query, in their order; of a query the tokens from `first_scored` on are the answer."""
    numbered = [replace(query, sequence_id=k) for k, query in enumerate(asked)]
    beams = beam_search(model, numbered, WIDTH, batch_size)
    outcomes = {}
    for number, log_p, following in _followed(model, numbered, batch_size):
        query = numbered[number]
        answer = list(query.token_ids[query.first_scored :])
        places = [k for k, said in enumerate(beams[number]) if said == answer]
        whole = not _goes_on(tokenizer, answer, following)
        outcomes[number] = Outcome(log_p, whole and 0 in places, whole and bool(places))
    return [outcomes[k] for k in range(len(asked))]


@torch.inference_mode()
def beam_search(
    model: PreTrainedModel, asked: Sequence[TokenSequence], width: int, batch_size: int
) -> dict[int, list[list[int]]]:
    """The `width` likeliest continuations of each prompt, best first, each as long as the query's answer; by id."""
    found: dict[int, list[list[int]]] = {}
    configuration = model.generation_config
    # Not the model's own: it may sample, forbid repetitions or end at a token, and the question is what it knows.
    model.generation_config = GenerationConfig(pad_token_id=0)
    try:
        for length, group in _by_answer_length(asked, batch_size):
            prompts = [replace(query, token_ids=query.token_ids[: query.first_scored]) for query in group]
            batch = collate(prompts, model.device, padding="left")
            said = model.generate(
                batch.token_ids,
                attention_mask=batch.attention_mask,
                num_beams=width,
                num_return_sequences=width,
                max_new_tokens=length,
                do_sample=False,
                length_penalty=0.0,
            )
            rows = said[:, batch.token_ids.shape[1] :].view(len(group), width, length).tolist()
            found.update(zip((query.sequence_id for query in group), rows, strict=True))
    finally:
        model.generation_config = configuration
    return found


def _by_answer_length(asked: Sequence[TokenSequence], batch_size: int) -> Iterator[tuple[int, list[TokenSequence]]]:
    """Queries with answers of one length, batch by batch, prompts of like length together."""

    def lengths(query: TokenSequence) -> tuple[int, int]:
        return len(query.token_ids) - query.first_scored, query.first_scored

    ordered = sorted(asked, key=lengths)
    for length in dict.fromkeys(lengths(query)[0] for query in ordered):
        group = [query for query in ordered if lengths(query)[0] == length]
        yield from ((length, group[at : at + batch_size]) for at in range(0, len(group), batch_size))


@torch.inference_mode()
def _followed(
    model: PreTrainedModel, asked: Sequence[TokenSequence], batch_size: int
) -> Iterator[tuple[int, float, int]]:
    """Of each query its id, log p(answer | prompt), and the likeliest token after the answer."""
    ends = {query.sequence_id: len(query.token_ids) - 1 for query in asked}
    for batch in batches(asked, batch_size, model.device):
        logits = model(**batch.model_inputs, use_cache=False).logits
        ids = batch.sequence_ids.tolist()
        last = torch.tensor([ends[number] for number in ids], device=logits.device)
        following = logits[torch.arange(len(ids), device=logits.device), last].argmax(-1)
        yield from zip(ids, log_probabilities(logits, batch).tolist(), following.tolist(), strict=True)


def _goes_on(tokenizer: PreTrainedTokenizerBase, answer: list[int], following: int) -> bool:
    """Whether a token continues the word or number that the answer ends in."""
    said, more = (
        str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        for tokens in (answer, [*answer, following])
    )
    return said[-1:].isalnum() and more.startswith(said) and more[len(said) :][:1].isalnum()
