"""Rank-r query gradients and their shared subspace against numpy's singular values."""

from __future__ import annotations

from functools import partial

import numpy as np
import oracles
import pytest
import torch

from tasks.influence import compression
from tasks.influence.block_diagonal import BlockDiagonal
from tasks.influence.compression import (
    NEGLIGIBLE,
    LowRank,
    SharedSubspace,
    compress,
    contraction_cost,
    leading_vectors,
    low_rank,
    project,
    restore,
    subspace_cost,
    tensors_of,
)

SHAPES = [(3, 7, 5), (1, 4, 9), (2, 6, 6)]  # query, output, input


def gradients(shape, seed=0):
    """Matrices whose singular values fall off."""
    g = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return g * 0.5 ** torch.arange(shape[2])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [9, 32])
def test_full_rank_reproduces_the_gradients(shape, rank):
    g = gradients(shape)
    low = low_rank(lambda: g, rank)
    assert low.rank == min(shape[1:])
    oracles.assert_agree(low.dense, g, 1e-6)
    assert low.residual.tolist() == [0.0] * shape[0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_residual_is_the_relative_frobenius_loss(shape, rank):
    g = gradients(shape)
    low = low_rank(lambda: g, rank)
    assert low.left.shape == (shape[0], shape[1], rank)
    assert low.right.shape == (shape[0], shape[2], rank)
    measured = (g - low.dense).double().norm(dim=(1, 2)) / g.double().norm(dim=(1, 2))
    oracles.assert_agree(low.residual, measured, 1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_no_matrix_of_the_rank_is_nearer(shape, rank):
    g = gradients(shape)
    low = low_rank(lambda: g, rank)
    for matrix, found, residual in zip(g.double().numpy(), low.dense, low.residual, strict=True):
        u, s, wh = np.linalg.svd(matrix)
        oracles.assert_agree(found, u[:, :rank] * s[:rank] @ wh[:rank], 1e-6)
        eckart_young = np.sqrt((s[rank:] ** 2).sum() / (s**2).sum())
        assert float(residual) == pytest.approx(eckart_young, rel=1e-6)
        assert np.linalg.matrix_rank(found.numpy(), tol=1e-5) == rank


def test_a_higher_rank_never_loses_more():
    residuals = torch.stack([low_rank(lambda: gradients((4, 8, 8)), rank).residual for rank in range(1, 9)])
    assert (residuals.diff(dim=0) <= 0).all(), residuals
    assert not residuals[-1].any()


def test_the_same_gradients_give_the_same_factors():
    g = gradients((3, 7, 5))
    one, other = low_rank(lambda: g, 2), low_rank(lambda: g.clone(), 2)
    assert torch.equal(one.left, other.left)
    assert torch.equal(one.right, other.right)


def test_a_query_has_the_same_factors_whatever_the_others():
    g = gradients((3, 7, 5))
    together, alone = low_rank(lambda: g, 2), low_rank(lambda: g[1:2], 2)
    oracles.assert_agree(alone.left[0], together.left[1], 1e-7)
    oracles.assert_agree(alone.right[0], together.right[1], 1e-7)


def test_a_gradient_of_zero_loses_nothing():
    low = low_rank(lambda: torch.zeros(2, 4, 3), 1)
    assert low.residual.tolist() == [0.0, 0.0]
    assert not low.dense.any()


@pytest.mark.parametrize("decay", ["slow", "fast"])
@pytest.mark.parametrize("shape", [(60, 90), (90, 60)])
def test_few_of_many_directions_are_found_nearly_as_well_as_by_a_whole_decomposition(shape, decay):
    g = torch.Generator().manual_seed(0)
    q_out, q_in = (torch.linalg.qr(torch.randn(n, 60, generator=g))[0] for n in shape)
    k = torch.arange(1.0, 61.0)
    values = k**-0.5 if decay == "slow" else 0.8**k
    v = (q_out * values) @ q_in.T
    low = low_rank(lambda: [v], 12)
    best = float((values[12:].square().sum() / values.square().sum()).sqrt())
    assert best <= float(low.residual) * (1 + 1e-5)
    assert float(low.residual) <= 1.01 * best, (float(low.residual), best)
    u = leading_vectors(v, 12)
    oracles.assert_agree(u.T @ u, torch.eye(12), 1e-5)


# The shared subspace


def alike(q=24, o=20, i=30, directions=4, noise=0.0, seed=0):
    """Queries that live in few directions on both sides, as those of one subject do, over a floor of noise."""
    g = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=g)
    v = draw(o, directions) @ draw(q, directions, directions) @ draw(directions, i)
    return v / v.norm(dim=(1, 2), keepdim=True) + noise * draw(q, o, i) / (o * i) ** 0.5


def measured(v, form):
    return (v - form.dense).double().norm(dim=(1, 2)) / v.double().norm(dim=(1, 2))


def test_queries_that_share_their_directions_share_a_subspace():
    v = alike()
    form = compress(lambda: v, rank=4, positions=50)
    assert isinstance(form, SharedSubspace)
    assert form.cores.shape == (24, 4, 4)
    oracles.assert_agree(form.dense, v, 1e-5)


def test_one_query_keeps_its_own_factors():
    assert isinstance(compress(lambda: alike(q=1), rank=4, positions=50), LowRank)


def test_unrelated_queries_of_many_ranks_are_materialised():
    v = torch.randn(40, 12, 14, generator=torch.Generator().manual_seed(0))
    form = compress(lambda: v, rank=10, positions=50)
    assert isinstance(form, SharedSubspace)
    assert form.out is None
    assert form.inp is None
    assert torch.equal(form.dense, v)
    assert not form.residual.any()


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("rank", [2, 4, 8])
@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (25, 25)])
def test_no_query_loses_more_in_the_chosen_form_than_at_rank_r(noise, rank, shape):
    v = alike(12, *shape, noise=noise)
    form = compress(lambda: v, rank, positions=50)
    own = low_rank(lambda: v, rank)
    assert (measured(v, form) <= own.residual.clamp_min(NEGLIGIBLE) + 1e-6).all(), (measured(v, form), own.residual)
    assert (form.residual - measured(v, form)).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (4, 40), (40, 4)])
def test_the_chosen_form_is_the_cheapest_that_suffices(shape, monkeypatch):
    monkeypatch.setattr(compression, "ALIGNED", 1)
    v = alike(12, *shape, directions=3, noise=0.2)
    o, i, t, rank = *shape, 50, 6
    form = compress(lambda: v, rank, t)
    chosen = (
        contraction_cost(12, o, i, rank)
        if isinstance(form, LowRank)
        else subspace_cost(12, *form.cores.shape[1:], o, i, t)
    )
    limit = low_rank(lambda: v, rank).residual.clamp_min(NEGLIGIBLE)
    # By hand: numpy's higher-order SVD of the unit-length rank-r queries, every pair of widths tried.
    u, s, wh = np.linalg.svd(v.double().numpy(), full_matrices=False)
    kept = (u[:, :, :rank] * s[:, None, :rank]) @ wh[:, :rank]
    kept = kept / np.linalg.norm(kept, axis=(1, 2), keepdims=True)
    out = np.linalg.svd(np.concatenate(kept, axis=1), full_matrices=False)[0]
    inp = np.linalg.svd(np.concatenate(kept.transpose(0, 2, 1), axis=1), full_matrices=False)[0]
    pairs = [(min(n, o), min(n, i)) for n in range(1, max(o, i) + 1)]
    for s_o, s_i in [*pairs, *((n, i) for n in range(1, o + 1)), *((o, n) for n in range(1, i + 1))]:
        a = np.eye(o) if s_o == o else out[:, :s_o]
        b = np.eye(i) if s_i == i else inp[:, :s_i]
        lost = np.linalg.norm(v.numpy() - a @ a.T @ v.numpy() @ b @ b.T, axis=(1, 2)) / np.linalg.norm(v, axis=(1, 2))
        if (lost <= limit.numpy() * (1 - 1e-6)).all():
            assert chosen <= subspace_cost(12, s_o, s_i, o, i, t) + 1e-6, (form.dense.shape, s_o, s_i)


def test_a_form_is_restored_from_its_tensors():
    for v, rank in ((alike(), 4), (alike(q=1), 4), (torch.randn(40, 12, 14), 10)):
        form = compress(lambda v=v: v, rank, 50)
        back = restore(tensors_of(form))
        assert type(back) is type(form)
        assert torch.equal(back.dense, form.dense)


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("q", [1, 24])
def test_a_form_rotated_back_is_the_form_of_the_rotated_queries(q, blocks):
    g = torch.Generator().manual_seed(3)
    v = alike(q=q)

    def rotation(d):
        sizes = [d] if blocks == 1 else [d // 2, d - d // 2]
        return BlockDiagonal(tuple(torch.linalg.qr(torch.randn(n, n, generator=g))[0] for n in sizes))

    q_out, q_in = rotation(20), rotation(30)
    whole = project(lambda: v, None, None)
    for form in (compress(lambda: v, 4, 50), whole):
        expected = q_out.dense @ form.dense @ q_in.dense.T
        oracles.assert_agree(form.rotated_back(q_out, q_in).dense, expected, 1e-5)


def test_full_rank_is_exact_where_a_subspace_would_lose_next_to_nothing():
    v = alike(noise=1e-4)
    form = compress(lambda: v, rank=20, positions=50)
    oracles.assert_agree(form.dense, v, 1e-6)
    assert isinstance(compress(lambda: v, rank=8, positions=50), SharedSubspace)


@pytest.mark.parametrize(("q", "o", "i"), [(1, 1, 1), (3, 1, 5), (3, 5, 1), (2, 2, 2)])
def test_the_narrowest_modules_are_compressed_without_loss(q, o, i):
    v = torch.randn(q, o, i, generator=torch.Generator().manual_seed(0))
    oracles.assert_agree(compress(lambda: v, rank=32, positions=1).dense, v, 1e-6)
