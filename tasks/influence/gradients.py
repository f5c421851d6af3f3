"""Sequence gradients from inputs and output gradients.

dL/dW = Σ_calls Σ_t δ_t ā_tᵀ, W of shape [d_out, d_in (+1)], bias as the last input column (ā = [a; 1]).

Letters: b sequences, t positions, i homogeneous input width, o output width, n scored positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tasks.influence.batches import Batch
from tasks.influence.capture import Call
from tasks.influence.modules import TrackedModule

if TYPE_CHECKING:
    from jaxtyping import Float


def homogeneous(inputs: Float[Tensor, "*n d_in"], module: TrackedModule) -> Float[Tensor, "*n i"]:
    """ā: the input in float32, with a one appended where the module has a bias."""
    inputs = inputs.float()
    if not module.bias:
        return inputs
    return torch.cat([inputs, inputs.new_ones(*inputs.shape[:-1], 1)], dim=-1)


def sequence_gradients(calls: list[Call], module: TrackedModule) -> Float[Tensor, "b o i"]:
    """The gradient of each sequence's loss with respect to W; calls of one module add up."""
    # einsum("bto,bti->boi"); positions that are not scored have δ = 0 or belong to the sequence's own past.
    parts = [
        torch.bmm(call.deltas.float().transpose(1, 2), homogeneous(call.inputs, module)) for call in calls
    ]
    return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]


def scored_positions(
    calls: list[Call], module: TrackedModule, batch: Batch
) -> tuple[Float[Tensor, "n i"], Float[Tensor, "n o"]]:
    """ā and δ at the scored positions of all calls, padding left out."""
    inputs = torch.cat([call.inputs[batch.scored] for call in calls])
    deltas = torch.cat([call.deltas[batch.scored] for call in calls])
    return homogeneous(inputs, module), deltas.float()
