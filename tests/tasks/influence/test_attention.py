"""Short causal attention against an explicit float64 formula, and where it stands in for torch's."""

from __future__ import annotations

import math

import cases
import oracles
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tasks.influence import attention
from tasks.influence.attention import SHORT, ShortAttention
from tasks.influence.modules import select_modules
from tasks.influence.objectives import true_token_gradient
from tasks.influence.sweep import sweep


def tensors(b=3, h=2, t=7, d=4, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    # As models lay them out: positions before heads.
    return [torch.randn(b, t, h, d, generator=generator).to(dtype).transpose(1, 2) for _ in range(4)]


def explicit(q, k, v, scale):
    """Position by position: each sees itself and those before it."""
    rows = []
    for t in range(q.shape[2]):
        scores = (q[:, :, t : t + 1] * k[:, :, : t + 1]).sum(-1) * scale
        shares = scores.exp() / scores.exp().sum(-1, keepdim=True)
        rows.append((shares[..., None] * v[:, :, : t + 1]).sum(2))
    return torch.stack(rows, dim=2)


@pytest.mark.parametrize("scores_at_once", [1, 2 * 7 * 7 * 2, 10**6])
@pytest.mark.parametrize("t", [2, 3, 7])
def test_values_and_gradients_equal_the_formula(t, scores_at_once, monkeypatch):
    monkeypatch.setattr(attention, "CACHED", scores_at_once)
    *inputs, upstream = tensors(t=t)
    inputs = [x.requires_grad_() for x in inputs]
    found = attention._Causal.apply(*inputs, 0.3)
    expected = explicit(*inputs, 0.3)
    oracles.assert_agree(found, expected, 1e-12)
    pairs = zip(
        torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    )
    for ours, theirs in pairs:
        oracles.assert_agree(ours, theirs, 1e-12)


@pytest.mark.parametrize("t", [16, 300])
def test_in_bfloat16_it_errs_hardly_more_than_torch(t):
    *inputs, upstream = tensors(b=2, t=t, d=32, dtype=torch.bfloat16)
    inputs = [x.requires_grad_() for x in inputs]

    def gradients(given):
        out = scaled_dot_product_attention(*given, is_causal=True)
        return [out, *torch.autograd.grad(out, given, upstream.to(out.dtype))]

    exact = gradients([x.detach().double().requires_grad_() for x in inputs])
    theirs = gradients(inputs)
    with ShortAttention():
        ours = gradients(inputs)
    for mine, other, true in zip(ours, theirs, exact, strict=True):
        error, usual = ((x.double() - true).norm() / true.norm() for x in (mine, other))
        assert error < 2 * usual + 1e-3, (error, usual)


def test_heads_that_share_a_key_are_those_of_torch():
    q, k, v, _ = tensors(h=4, dtype=torch.bfloat16)
    k, v = k[:, :2], v[:, :2]
    expected = scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True, enable_gqa=True)
    with ShortAttention():
        found = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    oracles.assert_agree(found.double(), expected.double(), 2e-2)


def calls_of(monkeypatch) -> list[tuple[int, ...]]:
    seen = []
    apply = attention._Causal.apply
    monkeypatch.setattr(attention._Causal, "apply", lambda q, *rest: (seen.append(tuple(q.shape)), apply(q, *rest))[1])
    return seen


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, True),
        ({"scale": 0.7}, True),
        ({"is_causal": False}, False),
        ({"dropout_p": 0.5}, False),
        ({"attn_mask": True, "is_causal": False}, False),
        ({"dtype": torch.float32}, False),
        ({"t": SHORT + 1}, False),
        ({"key": 1}, False),
    ],
    ids=str,
)
def test_it_stands_in_for_short_causal_bfloat16_calls_only(change, taken, monkeypatch):
    seen = calls_of(monkeypatch)
    q, k, v, _ = tensors(t=change.pop("t", 7), dtype=change.pop("dtype", torch.bfloat16))
    if change.pop("key", None):
        k, v = k[:, :, :5], v[:, :, :5]
    if change.get("attn_mask"):
        change["attn_mask"] = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
    torch.manual_seed(0)
    expected = scaled_dot_product_attention(q, k, v, **{"is_causal": True, **change})
    torch.manual_seed(0)
    with ShortAttention():
        found = scaled_dot_product_attention(q, k, v, **{"is_causal": True, **change})
    assert len(seen) == taken
    oracles.assert_agree(found.double(), expected.double(), 2e-2 if taken else 1e-12)


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_a_bfloat16_sweep_uses_it_and_gives_nearly_the_same_gradients(family, monkeypatch):
    model = cases.FAMILIES[family](seed=1, dtype=torch.float32)
    model.set_attn_implementation("sdpa")
    modules, stream = select_modules(model, "all"), cases.corpus(17)

    def gradients():
        from tasks.influence.batches import batches

        swept = sweep(model, modules, batches(stream, 3), true_token_gradient, torch.bfloat16)
        return torch.cat([calls[m.name][0].deltas.double().flatten() for _, calls in swept for m in modules])

    seen = calls_of(monkeypatch)
    ours = gradients()
    assert seen
    monkeypatch.setattr(attention, "SHORT", 0)
    theirs = gradients()
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.999
    assert math.isclose(ours.norm(), theirs.norm(), rel_tol=0.01)
