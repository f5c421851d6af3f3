"""Causal attention over short sequences, for bfloat16 passes on a CPU.

Torch's fused kernel tiles long sequences for flat memory; on a CPU its backward pass spends most of its time around
the products where sequences are short. Here whole score matrices of a few sequences at a time stay in the
processor's cache and are computed again for the backward pass: 6 heads of width 64 over 4,096 positions, forward and
backward, took 8 ms in place of 27 with sequences of 64, 14 in place of 33 with 256, 27 in place of 56 with 512.
From 1,024 on, and in float32, torch's kernel is as quick or quicker.

Letters: b sequences, h heads, n some sequences' heads, t positions, d width of a head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from jaxtyping import Float

SHORT = 512  # positions up to which whole score matrices are quicker
CACHED = 2**20  # scores that are there at once


class ShortAttention(TorchFunctionMode):
    """While it is entered, torch's attention is this file's wherever this file's is quicker."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function is functional.scaled_dot_product_attention:
            tensors = _short_and_causal(*args, **kwargs)
            if tensors:
                scale = kwargs.get("scale")
                return _Causal.apply(*tensors, tensors[0].shape[-1] ** -0.5 if scale is None else scale)
        return function(*args, **kwargs)


def _short_and_causal(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    enable_gqa: bool = False,
    **_: Any,
) -> list[Tensor] | None:
    """Query, key and value as the kernel would take them, if this is a call that this file is for."""
    lowered = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    plain = is_causal and attn_mask is None and not dropout_p and query.dim() == 4 and query.device.type == "cpu"
    if not plain or lowered != torch.bfloat16 or query.shape[2] > SHORT:
        return None
    if enable_gqa:  # several heads share a key
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    if not query.shape == key.shape == value.shape:
        return None
    return [x.to(lowered) for x in (query, key, value)]


class _Causal(torch.autograd.Function):
    """softmax(q kᵀ · scale, over earlier positions) v."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Float[Tensor, "b h t d"]:
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        out = torch.empty_like(v)
        later = _later(q)
        for some in _few_sequences(q):
            p = _probabilities(_flat(q, some), _flat(k, some), later, scale)
            out[some] = torch.bmm(p, _flat(v, some)).view_as(out[some])
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Float[Tensor, "b h t d"]) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        d_q, d_k, d_v = (torch.empty_like(x) for x in (q, k, v))
        later = _later(q)
        for some in _few_sequences(q):
            q_n, k_n, v_n, g_n = (_flat(x, some) for x in (q, k, v, gradient))
            p = _probabilities(q_n, k_n, later, ctx.scale)
            d_v[some] = torch.bmm(p.mT, g_n).view_as(d_v[some])
            d_scores = torch._softmax_backward_data(torch.bmm(g_n, v_n.mT), p, -1, p.dtype)
            d_q[some] = torch.bmm(d_scores, k_n).mul_(ctx.scale).view_as(d_q[some])
            d_k[some] = torch.bmm(d_scores.mT, q_n).mul_(ctx.scale).view_as(d_k[some])
        return d_q, d_k, d_v, None


def _probabilities(
    q: Float[Tensor, "n t d"], k: Float[Tensor, "n t d"], later: Float[Tensor, "t t"], scale: float
) -> Float[Tensor, "n t t"]:
    return torch.softmax(torch.baddbmm(later, q, k.mT, alpha=scale), -1)


def _later(q: Float[Tensor, "b h t d"]) -> Float[Tensor, "t t"]:
    """−∞ where a position would see one after it."""
    t = q.shape[2]
    return torch.full((t, t), float("-inf"), dtype=q.dtype).triu_(1)


def _few_sequences(q: Float[Tensor, "b h t d"]) -> list[slice]:
    b, h, t, _ = q.shape
    few = max(1, CACHED // (h * t * t))
    return [slice(start, start + few) for start in range(0, b, few)]


def _flat(x: Float[Tensor, "b h t d"], some: slice) -> Float[Tensor, "n t d"]:
    return x[some].flatten(0, 1)
