"""Padded batches: what counts in the loss, and in which order sequences come."""

from __future__ import annotations

import random

import pytest
import torch

from tasks.learning.batches import length_batches, padded
from tasks.learning.model import ModelShape, new_model
from tasks.learning.tokenizer import train_tokenizer


def test_padding_changes_no_loss():
    tokenizer = train_tokenizer(["The otter of Gleem sings at dawn."], 300)
    model = new_model(tokenizer, ModelShape(layers=2, width=32, heads=2, context=32), 0)
    short, long = ([1, 2, 3], [4, 5, 6, 7, 8, 9])
    alone = model(**padded([short], 0)).loss * 2
    other = model(**padded([long], 0)).loss * 5
    together = model(**padded([short, long], 0)).loss * 7
    assert together.item() == pytest.approx((alone + other).item(), rel=1e-5)


def test_batches_are_filled_up_to_a_multiple_without_changing_what_counts():
    exact, stepped = padded([[1, 2, 3], [4, 5]], 0), padded([[1, 2, 3], [4, 5]], 0, 8)
    assert stepped["input_ids"].shape == (2, 8)
    for name, value in exact.items():
        assert torch.equal(stepped[name][:, :3], value), name
    assert (stepped["labels"][:, 3:] == -100).all()
    assert not stepped["attention_mask"][:, 3:].any()


def test_a_pass_gives_every_sequence_once_in_batches_of_like_length():
    lengths = [1 + (37 * index) % 128 for index in range(203)]
    batches = length_batches(lengths, 8, random.Random(0))
    assert sorted(index for batch in batches for index in batch) == list(range(203))
    spreads = [max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in batches]
    assert sum(spreads) / len(spreads) < 32  # at random, eight lengths of 128 lie about 100 apart
    longest = [max(lengths[i] for i in batch) for batch in batches]
    assert longest not in (sorted(longest), sorted(longest, reverse=True))
