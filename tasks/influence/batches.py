"""Sequences of token ids to padded batches, without letting the padding reach any number.

Padding stands on the right: under causal attention no real position sees it, so no attention mask is needed
and a sequence gives the same numbers in every batch. Rows padded on the left, or packed from several documents
that must not see one another, bring their mask and positions along.

Letters: b sequences, t positions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

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
    counted: Collection[int] | None = None  # of the tokens from there on, the positions of those that count; none: all


@dataclass(frozen=True)
class Batch:
    """Padded sequences. `scored[b, t]` says that the token at t + 1 counts and is predicted at t.

    `attention_mask` and `position_ids` go to the model as they are; without them it counts from the first column
    and every position sees all before it.
    """

    sequence_ids: Int[Tensor, "b"]
    token_ids: Int[Tensor, "b t"]
    scored: Bool[Tensor, "b t"]
    attention_mask: Tensor | None = None
    position_ids: Int[Tensor, "b t"] | None = None

    @property
    def model_inputs(self) -> dict[str, Tensor]:
        """The keyword arguments of the model's forward pass."""
        optional = {"attention_mask": self.attention_mask, "position_ids": self.position_ids}
        return {"input_ids": self.token_ids} | {name: value for name, value in optional.items() if value is not None}

    @property
    def positions(self) -> Int[Tensor, "b t"]:
        """Columns counted from the first scored one: where padding stands does not show in them."""
        columns = torch.arange(self.token_ids.shape[1], device=self.token_ids.device)
        return columns - self.scored.long().argmax(dim=1, keepdim=True)

    @property
    def next_tokens(self) -> Int[Tensor, "b t"]:
        """The token that each position predicts; the last position's entry is never scored."""
        return torch.roll(self.token_ids, -1, dims=1)


def collate(
    sequences: Sequence[TokenSequence],
    device: torch.device | str = "cpu",
    padding: Literal["right", "left"] = "right",
) -> Batch:
    """Pad sequences to the longest of them; only padding on the left needs a mask and positions."""
    longest = max(len(s.token_ids) for s in sequences)
    tokens = torch.zeros(len(sequences), longest, dtype=torch.long)
    scored, real = torch.zeros(2, len(sequences), longest, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        n = len(sequence.token_ids)
        start = longest - n if padding == "left" else 0
        tokens[row, start : start + n] = torch.as_tensor(sequence.token_ids, dtype=torch.long)
        scored[row, start + max(sequence.first_scored, 1) - 1 : start + max(n - 1, 0)] = True
        if sequence.counted is not None:
            counts = torch.zeros(longest, dtype=torch.bool)
            counts[[start + position - 1 for position in sequence.counted if position > 0]] = True
            scored[row] &= counts
        real[row, start : start + n] = True
    ids = torch.tensor([s.sequence_id for s in sequences], dtype=torch.long)
    batch = Batch(ids.to(device), tokens.to(device), scored.to(device))
    if padding == "right":
        return batch
    positions = (real.long().cumsum(1) - 1).clamp_min(0)
    return replace(batch, attention_mask=real.long().to(device), position_ids=positions.to(device))


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
