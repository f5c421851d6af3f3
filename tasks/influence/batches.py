"""Sequences of token ids to padded batches, without letting the padding reach any number.

Padding stands on the right: under causal attention no real position sees it, so no attention mask is needed
and a sequence gives the same numbers in every batch.

Letters: b sequences, t positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Int


@dataclass(frozen=True)
class TokenSequence:
    """One sequence: its identity, its tokens, and the first position whose token is predicted and counted."""

    sequence_id: int
    token_ids: Sequence[int]
    first_scored: int = 1  # a training sequence counts every token that has one before it


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences. `scored[b, t]` says that the token at t + 1 counts and is predicted at t."""

    sequence_ids: Int[Tensor, "b"]
    token_ids: Int[Tensor, "b t"]
    scored: Bool[Tensor, "b t"]

    @property
    def next_tokens(self) -> Int[Tensor, "b t"]:
        """The token that each position predicts; the last position's entry is never scored."""
        return torch.roll(self.token_ids, -1, dims=1)


def collate(sequences: Sequence[TokenSequence], device: torch.device | str = "cpu") -> Batch:
    """Pad sequences on the right to the longest of them."""
    longest = max(len(s.token_ids) for s in sequences)
    tokens = torch.zeros(len(sequences), longest, dtype=torch.long)
    scored = torch.zeros(len(sequences), longest, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        n = len(sequence.token_ids)
        tokens[row, :n] = torch.as_tensor(sequence.token_ids, dtype=torch.long)
        scored[row, max(sequence.first_scored, 1) - 1 : max(n - 1, 0)] = True
    ids = torch.tensor([s.sequence_id for s in sequences], dtype=torch.long)
    return Batch(ids.to(device), tokens.to(device), scored.to(device))


def batches(sequences: Sequence[TokenSequence], batch_size: int, device: torch.device | str = "cpu") -> Iterator[Batch]:
    """Batches of similar length, longest first: little padding, and memory peaks in the first one."""
    ordered = sorted(sequences, key=lambda s: (-len(s.token_ids), s.sequence_id))
    for start in range(0, len(ordered), batch_size):
        yield collate(ordered[start : start + batch_size], device)


def token_batches(
    sequences: Sequence[TokenSequence], tokens: int, device: torch.device | str = "cpu"
) -> Iterator[Batch]:
    """Batches of at most `tokens` padded positions, longest sequences first; one that is longer goes alone."""
    ordered = sorted(sequences, key=lambda s: (-len(s.token_ids), s.sequence_id))
    start = 0
    while start < len(ordered):
        size = max(1, tokens // max(1, len(ordered[start].token_ids)))
        yield collate(ordered[start : start + size], device)
        start += size
