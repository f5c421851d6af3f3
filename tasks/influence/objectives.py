"""The losses that are differentiated: summed negative log-probability in nats, of true or sampled tokens.

Labels for the Fisher matrix are drawn from the model's own prediction (Grosse et al. 2023, section 2.2:
"sampled from the model's predictive distribution"). Each draw depends on (seed, sequence, position) alone,
so it is the same in any batch, order, part or worker.

Letters: b sequences, t positions, v vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from tasks.influence.batches import Batch

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def negative_log_likelihood(
    logits: Float[Tensor, "b t v"], labels: Int[Tensor, "b t"], batch: Batch
) -> Float[Tensor, ""]:
    """L = −Σ log p(label_t | tokens up to t) over the scored positions of the whole batch, in nats."""
    return functional.cross_entropy(logits[batch.scored].float(), labels[batch.scored], reduction="sum")


def true_token_loss(logits: Float[Tensor, "b t v"], batch: Batch) -> Float[Tensor, ""]:
    """The loss whose gradient a training sequence contributes."""
    return negative_log_likelihood(logits, batch.next_tokens, batch)


def sampled_token_loss(logits: Float[Tensor, "b t v"], batch: Batch, seed: int) -> Float[Tensor, ""]:
    """The loss whose gradient is the pseudo-gradient of the true Fisher matrix."""
    return negative_log_likelihood(logits, sample_labels(logits.detach(), batch, seed), batch)


def log_probabilities(logits: Float[Tensor, "b t v"], batch: Batch) -> Float[Tensor, "b"]:
    """log p of each sequence's scored tokens, in nats."""
    logs = torch.log_softmax(logits.float(), dim=-1)
    chosen = logs.gather(-1, batch.next_tokens[..., None])[..., 0]
    return (chosen * batch.scored).sum(dim=1)


@torch.no_grad()
def sample_labels(logits: Float[Tensor, "b t v"], batch: Batch, seed: int) -> Int[Tensor, "b t"]:
    """One token per position from softmax(logits), by inverting the cumulative distribution."""
    cumulative = torch.softmax(logits.float(), dim=-1).cumsum(dim=-1)
    draws = uniforms(batch.sequence_ids, batch.positions, seed).to(cumulative.dtype)
    total = cumulative[..., -1]
    # Rounded to float32 a draw may reach 1; held under the total, it still falls on a possible token.
    wanted = torch.minimum(draws * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, wanted[..., None].contiguous(), right=True)[..., 0]


def uniforms(sequence_ids: Int[Tensor, "b"], positions: Int[Tensor, "b t"], seed: int) -> Float[Tensor, "b t"]:
    """Uniform numbers in [0, 1), a pure function of (seed, sequence, position): SplitMix64 as a counter hash."""
    key = splitmix64(splitmix64(torch.full_like(sequence_ids, seed)) ^ sequence_ids)
    return _shift(splitmix64(key[:, None] ^ splitmix64(positions)), 11).double() * 2.0**-53


def splitmix64(x: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """The SplitMix64 finaliser as a hash of int64 (Steele, Lea & Flood 2014, doi 10.1145/2660193.2660195)."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: Int[Tensor, "*n"], bits: int) -> Int[Tensor, "*n"]:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # torch shifts int64 arithmetically; the mask makes it logical


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x
