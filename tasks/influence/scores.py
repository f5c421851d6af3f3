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
from tasks.influence.compression import Compressed, LowRank, SharedSubspace
from tasks.influence.gradients import homogeneous
from tasks.influence.modules import TrackedModule

if TYPE_CHECKING:
    from jaxtyping import Float


def pairwise_scores(calls: list[Call], module: TrackedModule, queries: Compressed) -> Float[Tensor, "q b"]:
    """⟨V_q, ∇W_z⟩ of every query with every sequence of a batch; tasks.influence.compression holds the costs."""
    form = _contract if isinstance(queries, LowRank) else _project
    return torch.stack([form(call, module, queries) for call in calls]).sum(0)


def _contract(call: Call, module: TrackedModule, queries: LowRank) -> Float[Tensor, "q b"]:
    # einsum("bto,qor,bti,qir->qb") as two wide products and one sum
    q, o, r = queries.left.shape
    left = call.deltas @ queries.left.transpose(0, 1).reshape(o, q * r).to(call.deltas.dtype)
    right = _inputs_times(call, module, queries.right.transpose(0, 1).reshape(-1, q * r))
    b, t, _ = left.shape
    return (left * right).view(b, t, q, r).sum((1, 3), dtype=torch.float32).T


def _project(call: Call, module: TrackedModule, queries: SharedSubspace) -> Float[Tensor, "q b"]:
    # einsum("bto,op,bti,ij,qpj->qb"): the sequence's gradient in the subspace, then one product with all cores
    left = call.deltas if queries.out is None else call.deltas @ queries.out.to(call.deltas.dtype)
    if queries.inp is not None:
        gradient = torch.bmm(left.mT, _inputs_times(call, module, queries.inp)).float()
        return queries.cores.flatten(1) @ gradient.flatten(1).T
    gradient = torch.bmm(left.mT, call.inputs.to(left.dtype)).float()
    scores = queries.cores[..., : module.d_in].flatten(1) @ gradient.flatten(1).T
    if module.bias and call.own_bias:
        scores += queries.cores[..., -1] @ left.sum(1, dtype=torch.float32).T
    return scores


def _inputs_times(call: Call, module: TrackedModule, matrix: Float[Tensor, "i s"]) -> Float[Tensor, "b t s"]:
    """ā M without writing ā out: the input's share, and the bias's row where the call added that bias."""
    dtype = call.deltas.dtype
    product = call.inputs.to(dtype) @ matrix[: module.d_in].to(dtype)
    return product.add_(matrix[-1].to(dtype)) if module.bias and call.own_bias else product


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
