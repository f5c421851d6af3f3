"""Sequence gradients from inputs and output gradients.

dL/dW = Σ_calls Σ_t δ_t ā_tᵀ, W of shape [d_out, d_in (+1)], bias as the last input column (ā = [a; 1]).

Letters: b sequences, t positions, i homogeneous input width, o output width, n scored positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tasks.influence.batches import Batch
from tasks.influence.block_diagonal import BlockDiagonal
from tasks.influence.capture import Call
from tasks.influence.modules import TrackedModule

if TYPE_CHECKING:
    from jaxtyping import Float


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
    parts = (torch.bmm(call.deltas.transpose(1, 2), inputs_of(call, module)).float() for call in calls)
    return _total(parts)


def rotated_gradients(
    calls: list[Call], module: TrackedModule, q_out: BlockDiagonal, q_in: BlockDiagonal
) -> Float[Tensor, "b o i"]:
    """Q_outᵀ ∇W Q_in of each sequence.

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
        gradient = torch.bmm(left.transpose(1, 2), right)
        gradient = gradient if t < module.columns else out.right(gradient.mT).mT
        parts.append((gradient if t < module.d_out else inp.right(gradient)).float())
    return _total(parts)


def _total(parts: Iterable[Tensor]) -> Tensor:
    first, *others = parts
    for other in others:
        first = first.add_(other)
    return first


def scored_positions(
    calls: list[Call], module: TrackedModule, batch: Batch
) -> tuple[Float[Tensor, "n i"], Float[Tensor, "n o"]]:
    """ā and δ at the scored positions of all calls, padding left out, in the precision of the pass."""
    inputs = [homogeneous(c.inputs[batch.scored], module, c.deltas.dtype, c.own_bias) for c in calls]
    return torch.cat(inputs), torch.cat([call.deltas[batch.scored] for call in calls])
