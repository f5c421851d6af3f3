"""Rank-r query gradients against numpy's singular values."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch

from tasks.influence.compression import compress

SHAPES = [(3, 7, 5), (1, 4, 9), (2, 6, 6)]  # query, output, input


def gradients(shape, seed=0):
    """Matrices whose singular values fall off."""
    g = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return g * 0.5 ** torch.arange(shape[2])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [9, 32])
def test_full_rank_reproduces_the_gradients(shape, rank):
    g = gradients(shape)
    low = compress(g, rank)
    assert low.rank == min(shape[1:])
    oracles.assert_agree(low.dense, g, 1e-6)
    assert low.residual.tolist() == [0.0] * shape[0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_residual_is_the_relative_frobenius_loss(shape, rank):
    g = gradients(shape)
    low = compress(g, rank)
    assert low.left.shape == (shape[0], shape[1], rank)
    assert low.right.shape == (shape[0], shape[2], rank)
    measured = (g - low.dense).double().norm(dim=(1, 2)) / g.double().norm(dim=(1, 2))
    oracles.assert_agree(low.residual, measured, 1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_no_matrix_of_the_rank_is_nearer(shape, rank):
    g = gradients(shape)
    low = compress(g, rank)
    for matrix, found, residual in zip(g.double().numpy(), low.dense, low.residual, strict=True):
        u, s, wh = np.linalg.svd(matrix)
        oracles.assert_agree(found, u[:, :rank] * s[:rank] @ wh[:rank], 1e-6)
        eckart_young = np.sqrt((s[rank:] ** 2).sum() / (s**2).sum())
        assert float(residual) == pytest.approx(eckart_young, rel=1e-6)
        assert np.linalg.matrix_rank(found.numpy(), tol=1e-5) == rank


def test_a_higher_rank_never_loses_more():
    residuals = torch.stack([compress(gradients((4, 8, 8)), rank).residual for rank in range(1, 9)])
    assert (residuals.diff(dim=0) <= 0).all(), residuals
    assert not residuals[-1].any()


def test_the_same_gradients_give_the_same_factors():
    g = gradients((3, 7, 5))
    one, other = compress(g, 2), compress(g.clone(), 2)
    assert torch.equal(one.left, other.left)
    assert torch.equal(one.right, other.right)


def test_a_query_has_the_same_factors_whatever_the_others():
    g = gradients((3, 7, 5))
    together, alone = compress(g, 2), compress(g[1:2], 2)
    oracles.assert_agree(alone.left[0], together.left[1], 1e-7)
    oracles.assert_agree(alone.right[0], together.right[1], 1e-7)


def test_a_gradient_of_zero_loses_nothing():
    low = compress(torch.zeros(2, 4, 3), 1)
    assert low.residual.tolist() == [0.0, 0.0]
    assert not low.dense.any()
