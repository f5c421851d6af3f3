"""The losses that are differentiated: summed negative log-probability in nats, of true or sampled tokens.

An objective gives the loss's gradient in the logits, softmax(logits) less the one-hot label, which is all that a
backward pass needs of it. One softmax serves the labels' draw and the gradient; a loss and its automatic derivative
would read and write an array of batch × positions × vocabulary six times as often.

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


@torch.no_grad()
def true_token_gradient(logits: Float[Tensor, "n v"], batch: Batch, rows: Int[Tensor, "n"]) -> Float[Tensor, "n v"]:
    """dL/dlogits of the loss whose gradient a training sequence contributes, at some rows of the flattened batch."""
    return _less_labels(torch.softmax(logits, -1, torch.float32), batch.next_tokens.flatten()[rows], logits.dtype)


@torch.no_grad()
def sampled_token_gradient(
    logits: Float[Tensor, "n v"], batch: Batch, rows: Int[Tensor, "n"], seed: int
) -> Float[Tensor, "n v"]:
    """dL/dlogits of the loss whose gradient is the pseudo-gradient of the true Fisher matrix."""
    probabilities = torch.softmax(logits, -1, torch.float32)
    keys = counters(batch.sequence_ids, batch.positions, seed).flatten()[rows]
    return _less_labels(probabilities, draw(probabilities, keys), logits.dtype)


def _less_labels(
    probabilities: Float[Tensor, "n v"], labels: Int[Tensor, "n"], dtype: torch.dtype
) -> Float[Tensor, "n v"]:
    """softmax(logits) − onehot(label), in place until its dtype is that of the logits."""
    columns = labels[:, None]
    return probabilities.scatter_add_(-1, columns, probabilities.new_full(columns.shape, -1.0)).to(dtype)


def log_probabilities(logits: Float[Tensor, "b t v"], batch: Batch) -> Float[Tensor, "b"]:
    """log p of each sequence's scored tokens, in nats."""
    logs = torch.log_softmax(logits.float(), dim=-1)
    chosen = logs.gather(-1, batch.next_tokens[..., None])[..., 0]
    return (chosen * batch.scored).sum(dim=1)


def draw(probabilities: Float[Tensor, "n v"], keys: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """One token per row: first a group of neighbouring tokens by its mass, then one of them.

    Each choice is an exponential race, the arrival of token j being E_j / p_j: rounding moves it only where two
    arrivals nearly tie. Inverting the cumulative distribution instead would let one rounded probability shift every
    threshold after it; between float32 and bfloat16 that changed 6 % of the labels of a random model, a race .1 %.
    Groups of about √v tokens need 2√v random numbers per position in place of v.
    """
    n, v = probabilities.shape
    size = 2 ** round(math.log2(v) / 2)
    masses = functional.pad(probabilities, (0, -v % size)).view(n, -1, size)
    groups = _race(masses.sum(-1), keys)
    inside = masses[torch.arange(n, device=groups.device), groups]
    return groups * size + _race(inside, splitmix64(keys))


def _race(masses: Float[Tensor, "n m"], keys: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """The index of the first arrival; one of no mass never arrives."""
    numbers = splitmix64(torch.arange(masses.shape[-1], device=masses.device))
    waits = -torch.log(uniforms(keys[:, None] ^ numbers))
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
