"""Padded batches: what counts in the loss, and in which order sequences come."""

from __future__ import annotations

import random

import pytest
import torch

from tasks.learning.batches import LengthBatches, length_batches, padded
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


def test_what_is_left_out_is_missing_from_its_batches_and_nothing_else_moves():
    lengths = [1 + (37 * index) % 128 for index in range(203)]
    whole, less = LengthBatches(lengths, 8, 3), LengthBatches(lengths, 8, 3, {5, 77, 202})
    for epoch in (0, 1):
        whole.epoch = less.epoch = epoch
        assert list(less) == [[index for index in batch if index not in {5, 77, 202}] for batch in whole]
    assert len(less) == len(whole)


def test_a_batch_that_lost_everything_gets_half_of_the_fullest():
    lengths = [1, 1, 2, 2, 3, 3, 4, 4]
    whole = list(LengthBatches(lengths, 4, 0))
    lost = set(whole[0])
    found = list(LengthBatches(lengths, 4, 0, lost))
    assert [len(batch) for batch in found] == [2, 2]
    assert sorted(index for batch in found for index in batch) == sorted(set(range(8)) - lost)


def test_more_batches_than_sequences_that_stay_are_refused():
    with pytest.raises(ValueError, match="too few stay for 4 batches"):
        LengthBatches([1] * 8, 2, 0, range(5))
