"""Recall: beams against a search by hand, padding, a model's own settings, words that go on."""

from __future__ import annotations

import math

import cases
import pytest
import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from tasks.evaluation.recall import beam_search, recall_answers
from tasks.influence.batches import TokenSequence
from tasks.influence.queries import encode_query
from tasks.learning.tokenizer import train_tokenizer

ASKED = [
    TokenSequence(0, (3, 5, 2, 7), 2),
    TokenSequence(1, (1, 4, 4, 2, 6, 9, 8), 6),
    TokenSequence(2, (2, 11, 12, 5), 1),
    TokenSequence(3, (6, 2, 9, 9, 1, 14), 4),
]


def beams_by_hand(model, prompt, length, width=3):
    """Keep the best `width` of all continuations by one token, again and again; no padding, no cache."""
    beams = [((), 0.0)]
    for _ in range(length):
        longer = []
        for said, score in beams:
            logs = model(torch.tensor([[*prompt, *said]])).logits[0, -1].log_softmax(-1)
            longer += [((*said, token), score + float(log)) for token, log in enumerate(logs)]
        beams = sorted(longer, key=lambda beam: -beam[1])[:width]
    return [list(said) for said, _ in beams]


@pytest.mark.parametrize("family", list(cases.FAMILIES))
@pytest.mark.parametrize("batch_size", [1, 4])
def test_beams_are_those_of_a_search_by_hand_with_and_without_padding(family, batch_size):
    model = cases.FAMILIES[family]()
    found = beam_search(model, ASKED, 3, batch_size)
    for query in ASKED:
        n = query.first_scored
        expected = beams_by_hand(model, query.token_ids[:n], len(query.token_ids) - n)
        assert found[query.sequence_id] == expected, query


def test_a_model_s_own_generation_settings_change_nothing():
    model = cases.gpt2()
    expected, before = beam_search(model, ASKED, 3, 4), model.generation_config
    likely = expected[0][0][0]
    model.generation_config = GenerationConfig(do_sample=True, repetition_penalty=5.0, eos_token_id=likely)
    try:
        assert beam_search(model, ASKED, 3, 4) == expected
        assert model.generation_config.eos_token_id == likely
    finally:
        model.generation_config = before


class Chain:
    """A model that says, after each character, the one that follows it in `text`; the last one again and again."""

    def __init__(self, text: str) -> None:
        self.tokenizer = train_tokenizer(["a"], 257)
        n = len(self.tokenizer)
        config = GPT2Config(
            vocab_size=n, n_positions=16, n_embd=n, n_layer=0, n_head=1, tie_word_embeddings=False, bos_token_id=0,
            eos_token_id=0,
        )  # fmt: skip
        self.model = GPT2LMHeadModel(config).eval()
        ids = self.tokenizer(text)["input_ids"]
        with torch.no_grad():
            self.model.transformer.wte.weight.copy_(torch.eye(n))
            self.model.transformer.wpe.weight.zero_()
            self.model.lm_head.weight.zero_()
            for now, after in zip(ids, [*ids[1:], ids[-1]], strict=True):
                self.model.lm_head.weight[after, now] = 1.0

    def outcome(self, prompt: str, answer: str):
        query = encode_query(self.tokenizer, prompt, answer, 16, "q")
        return recall_answers(self.model, self.tokenizer, [query], 1)[0]


@pytest.mark.parametrize(
    ("text", "prompt", "answer", "right"),
    [
        ("x 12, y", "x", " 12", True),
        ("x 123, y", "x", " 12", False),  # it says 123
        ("x 123, y", "x", " 123", True),
        ("x 12ab", "x", " 12", False),
        ("x ab c", "x", " ab", True),
        ("x 12, y", "x", " 13", False),
        ("x (1)2", "x", " (1)", True),  # a word has ended before
    ],
)
def test_an_answer_counts_when_the_word_ends_with_it(text, prompt, answer, right):
    assert Chain(text).outcome(prompt, answer).is_first is right


def test_second_and_third_continuations_are_among_the_three_and_not_the_first():
    model = cases.gpt2()
    tokenizer = train_tokenizer(["a"], 257)
    prompt = (3, 5, 2)
    logits = model(torch.tensor([prompt])).logits[0, -1]
    order = logits.argsort(descending=True).tolist()
    asked = [TokenSequence(k, (*prompt, token), 3) for k, token in enumerate(order)]
    # Tokens 0 to 16 of this vocabulary are the end of text and punctuation: no word goes on.
    outcomes = recall_answers(model, tokenizer, asked, batch_size=5)
    assert [outcome.is_first for outcome in outcomes] == [k == 0 for k in range(17)]
    assert [outcome.is_among_first for outcome in outcomes] == [k < 3 for k in range(17)]
    assert sum(math.exp(outcome.log_probability) for outcome in outcomes) == pytest.approx(1)
    assert outcomes[4].log_probability == pytest.approx(float(logits.log_softmax(-1)[order[4]]))
