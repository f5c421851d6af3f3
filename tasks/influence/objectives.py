"""The losses that are differentiated: summed negative log-probability in nats, of true or sampled tokens.

Labels for the Fisher matrix are drawn from the model's own prediction (Grosse et al. 2023, section 2.2:
"sampled from the model's predictive distribution"). Each draw depends on (seed, sequence, position) alone,
so it is the same in any batch, order, part or worker.

Letters: b sequences, t positions, v vocabulary.
"""

from __future__ import annotations

import math
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
    """One token per position from softmax(logits): first a group of neighbouring tokens by its mass, then one of them.

    Each choice is an exponential race, the arrival of token j being E_j / p_j: rounding moves it only where two
    arrivals nearly tie. Inverting the cumulative distribution instead would let one rounded probability shift every
    threshold after it; between float32 and bfloat16 that changed 6 % of the labels of a random model, a race .1 %.
    Groups of about √v tokens need 2√v random numbers per position in place of v.
    """
    b, t, v = logits.shape
    size = 2 ** round(math.log2(v) / 2)
    masses = functional.pad(torch.softmax(logits.float(), dim=-1), (0, -v % size)).view(b, t, -1, size)
    keys = counters(batch.sequence_ids, batch.positions, seed)
    groups = _race(masses.sum(-1), keys)
    inside = masses.gather(2, groups[..., None, None].expand(b, t, 1, size))[:, :, 0]
    return groups * size + _race(inside, splitmix64(keys))


def _race(masses: Float[Tensor, "b t n"], keys: Int[Tensor, "b t"]) -> Int[Tensor, "b t"]:
    """The index of the first arrival; one of no mass never arrives."""
    numbers = splitmix64(torch.arange(masses.shape[-1], device=masses.device))
    waits = -torch.log(uniforms(keys[..., None] ^ numbers))
    return (masses / waits.to(masses.dtype).clamp_min(torch.finfo(masses.dtype).tiny)).argmax(-1)


def counters(sequence_ids: Int[Tensor, "b"], positions: Int[Tensor, "b t"], seed: int) -> Int[Tensor, "b t"]:
    """A 64-bit key per (seed, sequence, position)."""
    key = splitmix64(splitmix64(torch.full_like(sequence_ids, seed)) ^ sequence_ids)
    return splitmix64(key[:, None] ^ splitmix64(positions))


def uniforms(counters: Int[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Uniform numbers in (0, 1), a pure function of each counter: SplitMix64 as a counter hash."""
    return (_shift(splitmix64(counters), 12).double() + 0.5) * 2.0**-52


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
