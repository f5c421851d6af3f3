"""Scores of training sequences against preconditioned query gradients: ⟨V_q, ∇W_z⟩ and its shares by token.

⟨V, ∇W⟩ = Σ_t δ_tᵀ V ā_t, so the score splits exactly over positions (Grosse et al. 2023, Eq. 31);
the credit of predicting token t + 1 stands at position t.

Letters: q queries, b sequences, t positions, r rank, o output width, i homogeneous input width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tasks.influence.capture import Call
from tasks.influence.compression import LowRank
from tasks.influence.gradients import homogeneous, inputs_of, sequence_gradients
from tasks.influence.modules import TrackedModule

if TYPE_CHECKING:
    from jaxtyping import Float


def pairwise_scores(calls: list[Call], module: TrackedModule, queries: LowRank) -> Float[Tensor, "q b"]:
    """⟨V_q, ∇W_z⟩ of every query with every sequence of a batch.

    Materialising ∇W costs t·o·i + q·o·i multiplications per sequence; contracting positions with the
    factors costs t·q·r·(o + i). The cheaper is taken.
    """
    t, o, i = calls[0].deltas.shape[1] * len(calls), module.d_out, module.columns
    q, r = len(queries.left), queries.rank
    if t * o * i + q * o * i <= t * q * r * (o + i):
        return queries.dense.flatten(1) @ sequence_gradients(calls, module).flatten(1).T
    return torch.stack([_contract(call, module, queries) for call in calls]).sum(0)


def _contract(call: Call, module: TrackedModule, queries: LowRank) -> Float[Tensor, "q b"]:
    # einsum("bto,qor,bti,qir->qb") as two wide products and one sum
    q, o, r = queries.left.shape
    dtype = call.deltas.dtype
    left = call.deltas @ queries.left.transpose(0, 1).reshape(o, q * r).to(dtype)
    right = inputs_of(call, module) @ queries.right.transpose(0, 1).reshape(-1, q * r).to(dtype)
    b, t, _ = left.shape
    return (left * right).view(b, t, q, r).sum((1, 3), dtype=torch.float32).T


def token_scores(
    calls: list[Call], module: TrackedModule, row: int, gradients: Float[Tensor, "q o i"]
) -> Float[Tensor, "q t"]:
    """δ_tᵀ V_q ā_t of one sequence of the batch, for full-rank query gradients; sums over t to ⟨V_q, ∇W⟩."""
    total = None
    for call in calls:
        a = homogeneous(call.inputs[row], module, own_bias=call.own_bias)
        # einsum("to,qoi,ti->qt")
        scores = ((a @ gradients.transpose(1, 2)) * call.deltas[row].float()).sum(-1)
        total = scores if total is None else total + scores
    return total
