"""Padding, order and batch size are arrangements: they decide nothing."""

from __future__ import annotations

import cases
import pytest
import torch

from tasks.influence.batches import TokenSequence, batches, collate


def test_every_token_but_the_first_is_scored_at_the_position_before_it():
    batch = collate([TokenSequence(3, [5, 6, 7, 8]), TokenSequence(9, [4, 2])])
    assert batch.sequence_ids.tolist() == [3, 9]
    assert batch.scored.tolist() == [[True, True, True, False], [True, False, False, False]]
    assert batch.next_tokens[batch.scored].tolist() == [6, 7, 8, 2]


@pytest.mark.parametrize(("first_scored", "expected"), [(0, [6, 7, 8]), (1, [6, 7, 8]), (2, [7, 8]), (3, [8])])
def test_scoring_begins_at_the_first_scored_token(first_scored, expected):
    batch = collate([TokenSequence(0, [5, 6, 7, 8], first_scored), TokenSequence(1, [1] * 6)])
    assert batch.next_tokens[0][batch.scored[0]].tolist() == expected


@pytest.mark.parametrize(
    ("first_scored", "counted", "expected"),
    [(1, (2, 4), [7, 9]), (3, (1, 4), [9]), (1, (0, 1), [6]), (1, (), []), (1, (0,), [])],
)
@pytest.mark.parametrize("padding", ["right", "left"])
def test_of_the_scored_tokens_only_the_counted_ones_are_scored(first_scored, counted, expected, padding):
    """The first token is predicted by nothing, whether it is counted or not."""
    batch = collate(
        [TokenSequence(0, [5, 6, 7, 8, 9], first_scored, counted), TokenSequence(1, [1] * 7)], "cpu", padding
    )
    assert batch.next_tokens[0][batch.scored[0]].tolist() == expected
    assert batch.scored[1].sum() == 6


@pytest.mark.parametrize("tokens", [[], [5]], ids=["no token", "one token"])
@pytest.mark.parametrize("beside", [0, 4])
def test_a_sequence_that_predicts_nothing_scores_nothing(tokens, beside):
    batch = collate([TokenSequence(0, tokens), TokenSequence(1, [1] * (beside + 1))])
    assert not batch.scored[0].any(), batch.scored.tolist()


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_batches_hold_every_sequence_once_longest_first(batch_size):
    sequences = cases.corpus(17, lengths=(3, 9, 1, 9, 5, 2, 7))
    found = list(batches(sequences, batch_size))
    tokens = {s.sequence_id: list(s.token_ids) for s in sequences}
    lengths, seen = [], []
    for batch in found:
        assert len(batch.sequence_ids) <= batch_size
        for sequence_id, row in zip(batch.sequence_ids.tolist(), batch.token_ids, strict=True):
            own = tokens[sequence_id]
            assert row[: len(own)].tolist() == own
            lengths.append(len(own))
            seen.append(sequence_id)
    assert sorted(seen) == sorted(tokens)
    assert lengths == sorted(lengths, reverse=True)


def test_batches_do_not_depend_on_the_order_of_the_sequences():
    sequences = cases.corpus(17, lengths=(4, 4, 4, 9, 4))
    forward, backward = (list(batches(order, 2)) for order in (sequences, sequences[::-1]))
    for one, other in zip(forward, backward, strict=True):
        assert torch.equal(one.sequence_ids, other.sequence_ids)
        assert torch.equal(one.token_ids, other.token_ids)


def test_token_batches_hold_every_sequence_once_within_their_budget():
    from tasks.influence.batches import token_batches

    sequences = [TokenSequence(k, [1] * length) for k, length in enumerate([3, 9, 2, 7, 7, 1, 30, 4])]
    found = list(token_batches(sequences, 16))
    assert sorted(i for batch in found for i in batch.sequence_ids.tolist()) == list(range(8))
    assert [batch.token_ids.numel() <= 16 or len(batch.sequence_ids) == 1 for batch in found] == [True] * len(found)
    assert [batch.token_ids.shape[1] for batch in found] == [30, 9, 7, 4]
