"""Sequence gradients from inputs and output gradients.

dL/dW = Σ_calls Σ_t δ_t ā_tᵀ, W of shape [d_out, d_in (+1)], bias as the last input column (ā = [a; 1]).

Letters: b sequences, c some of them, t positions, i homogeneous input width, o output width, n scored positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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
HELD = 2**27  # numbers of a batch's gradients that are there together


@contextmanager
def products_in(precision: torch.dtype) -> Iterator[None]:
    """Multiply float32 matrices at the speed of `precision`, with sums in float32.

    "medium" lets the library round float32 factors to bfloat16: nothing is lost of numbers that came from there. A
    product of bfloat16 matrices would round its sums too, on a CPU.
    """
    before = torch.get_float32_matmul_precision()
    if precision == torch.bfloat16:
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


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
    return torch.cat(list(rotated_by_sequence(calls, module, q_out, q_in)))


def rotated_by_sequence(
    calls: list[Call], module: TrackedModule, q_out: BlockDiagonal, q_in: BlockDiagonal
) -> Iterator[Float[Tensor, "c o i"]]:
    """The same in float32, a few sequences (c) at a time: what is summed should still be in a processor's cache.

    Squaring and summing all of a batch at once took 13 times as long on a CPU (16 × 1,536 × 385, from bfloat16).
    Never are more than HELD numbers of a batch's gradients there together, however short its sequences are.
    """
    size = module.d_out * module.columns
    sides = [_rotated_positions(call, module, q_out, q_in) for call in calls]
    b = len(calls[0].deltas)
    for start in range(0, b, max(1, HELD // size)):
        rows = slice(start, start + max(1, HELD // size))
        gradients = _total(_rotated_product(left[rows], right[rows], module, q_out, q_in) for left, right in sides)
        few = len(gradients) if gradients.is_cuda else max(1, CACHED // size)
        for some in gradients.split(few):
            yield some.float()


def _rotated_positions(
    call: Call, module: TrackedModule, q_out: BlockDiagonal, q_in: BlockDiagonal
) -> tuple[Float[Tensor, "b t o"], Float[Tensor, "b t i"]]:
    """δ and ā, each side rotated where that is cheaper now than after the sum over positions.

    Before it costs t·o² (or t·i²) multiplications per sequence, after it o²·i (or o·i²): before while t < i
    (or t < o). Blocks divide both by their number.
    """
    t, dtype = call.deltas.shape[1], call.deltas.dtype
    deltas, inputs = call.deltas, inputs_of(call, module)
    left = q_out.to(dtype).right(deltas) if t < module.columns else deltas
    return left, q_in.to(dtype).right(inputs) if t < module.d_out else inputs


def _rotated_product(
    left: Float[Tensor, "c t o"],
    right: Float[Tensor, "c t i"],
    module: TrackedModule,
    q_out: BlockDiagonal,
    q_in: BlockDiagonal,
) -> Float[Tensor, "c o i"]:
    """The sum over positions, and the rotation of the sides that it was cheaper to leave for later."""
    t, gradient = left.shape[1], torch.bmm(left.mT, right)
    gradient = gradient if t < module.columns else q_out.to(left.dtype).right(gradient.mT).mT
    return gradient if t < module.d_out else q_in.to(left.dtype).right(gradient)


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
