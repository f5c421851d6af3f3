"""Sequence gradients from inputs and output gradients.

dL/dW = Σ_calls Σ_t δ_t ā_tᵀ, W of shape [d_out, d_in (+1)], bias as the last input column (ā = [a; 1]).

Letters: b sequences, t positions, i homogeneous input width, o output width, n scored positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tasks.influence.batches import Batch
from tasks.influence.block_diagonal import BlockDiagonal
from tasks.influence.capture import Call
from tasks.influence.modules import TrackedModule

if TYPE_CHECKING:
    from jaxtyping import Float

CACHED = 2**20  # numbers that stay in a processor's cache while they are squared and summed


def homogeneous(
    inputs: Float[Tensor, "*n d_in"],
    module: TrackedModule,
    dtype: torch.dtype = torch.float32,
    own_bias: bool = True,
) -> Float[Tensor, "*n i"]:
    """ā: the input, with a one appended where the module has a bias; a zero where another bias was added."""
    inputs = inputs.to(dtype)
    if not module.bias:
        return inputs
    return torch.cat([inputs, inputs.new_full((*inputs.shape[:-1], 1), float(own_bias))], dim=-1)


def inputs_of(call: Call, module: TrackedModule) -> Float[Tensor, "b t i"]:
    """ā of one call, in the precision of the pass."""
    return homogeneous(call.inputs, module, call.deltas.dtype, call.own_bias)


def sequence_gradients(calls: list[Call], module: TrackedModule) -> Float[Tensor, "b o i"]:
    """The gradient of each sequence's loss with respect to W; calls of one module add up.

    Products are in the precision of the pass, their sums over calls in float32.
    """
    # einsum("bto,bti->boi"); δ is zero where a position is padding, so nothing needs masking.
    return _total(torch.bmm(call.deltas.mT, inputs_of(call, module)) for call in calls).float()


def rotated_gradients(
    calls: list[Call], module: TrackedModule, q_out: BlockDiagonal, q_in: BlockDiagonal
) -> Float[Tensor, "b o i"]:
    """Q_outᵀ ∇W Q_in of each sequence."""
    return _rotated(calls, module, q_out, q_in).float()


def rotated_by_sequence(
    calls: list[Call], module: TrackedModule, q_out: BlockDiagonal, q_in: BlockDiagonal
) -> Iterator[Float[Tensor, "c o i"]]:
    """The same in float32, a few sequences at a time: what is summed at once should still be in a processor's cache.

    Squaring and summing all of a batch at once took 13 times as long on a CPU (16 × 1,536 × 385, from bfloat16).
    """
    gradients = _rotated(calls, module, q_out, q_in)
    few = len(gradients) if gradients.is_cuda else max(1, CACHED // (module.d_out * module.columns))
    for some in gradients.split(few):
        yield some.float()


def _rotated(calls: list[Call], module: TrackedModule, q_out: BlockDiagonal, q_in: BlockDiagonal) -> Tensor:
    """Rotated gradients, in the precision of the pass where there is one call.

    A side is rotated before the sum over positions, for t·o² (or t·i²) multiplications per sequence, or after
    it, for o²·i (or o·i²): before while t < i (or t < o). Blocks divide both by their number.
    """
    parts = []
    for call in calls:
        t, dtype = call.deltas.shape[1], call.deltas.dtype
        out, inp = q_out.to(dtype), q_in.to(dtype)
        deltas, inputs = call.deltas, inputs_of(call, module)
        left = out.right(deltas) if t < module.columns else deltas
        right = inp.right(inputs) if t < module.d_out else inputs
        gradient = torch.bmm(left.mT, right)
        gradient = gradient if t < module.columns else out.right(gradient.mT).mT
        parts.append(gradient if t < module.d_out else inp.right(gradient))
    return _total(parts)


def _total(parts: Iterable[Tensor]) -> Tensor:
    """The sum over calls: one is itself, several are added in float32."""
    first, *others = parts
    if others:
        first = first.float()
    for other in others:
        first = first.add_(other)
    return first


def scored_positions(
    calls: list[Call], module: TrackedModule, batch: Batch
) -> tuple[Float[Tensor, "n i"], Float[Tensor, "n o"]]:
    """ā and δ at the scored positions of all calls, padding left out, in the precision of the pass."""
    inputs = [homogeneous(c.inputs[batch.scored], module, c.deltas.dtype, c.own_bias) for c in calls]
    return torch.cat(inputs), torch.cat([call.deltas[batch.scored] for call in calls])
