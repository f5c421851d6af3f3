"""Small networks, their losses and their curvature, against torch's own layers and dense matrices."""

from __future__ import annotations

import networks
import pytest
import torch
from oracles import assert_agree
from torch.func import hessian

from tasks.evaluation.perceptron import curvature, fisher_passes, loss_gradients, modules_of, network
from tasks.evaluation.perceptron import new_weights as untrained
from tasks.influence.exact import explicit_matrix
from tasks.influence.gradients import sequence_gradients

KINDS = ("classification", "regression")


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_those_of_torchs_layers(kind):
    problem = networks.problem(kind)
    weights = untrained(problem, (5, 4), 0)
    assert [tuple(m.shape) for m in weights.values()] == [(5, 4), (4, 6), (problem.outputs, 5)]
    expected = networks.layered(weights, problem.inputs, problem.activation)
    assert_agree(network(weights, problem.inputs, problem.activation), expected, 1e-12)


def test_the_divergence_of_the_softmax_is_a_kl_that_is_zero_where_nothing_moved():
    problem = networks.problem()
    before, after = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=before), torch.distributions.Categorical(logits=after)
    )
    assert_agree(problem.divergences(after, before), expected, 1e-12)
    assert (expected > 0).all()
    assert problem.divergences(before, before).abs().max() < 1e-14
    weights = untrained(problem, (5,), 0)
    outputs = network(weights, problem.inputs, problem.activation)
    assert problem.divergences(outputs, outputs.clone()).abs().max() < 1e-14


@pytest.mark.parametrize("kind", KINDS)
def test_a_divergence_is_the_loss_less_its_tangent(kind):
    problem = networks.problem(kind)
    width = problem.outputs
    before, after = torch.randn(2, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    target = problem.targets[0]
    at = before.clone().requires_grad_()
    value = networks.loss(at, target)
    [slope] = torch.autograd.grad(value, at)
    bregman = networks.loss(after, target) - value.detach() - slope @ (after - before)
    assert_agree(problem.divergences(after[None], before[None])[0], bregman, 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_curvature_is_that_of_the_dense_gauss_newton_matrix_and_hessian(kind):
    problem = networks.problem(kind)
    weights = untrained(problem, (5,), 0)
    found = curvature(problem, weights, torch.arange(problem.n))
    like = {name: matrix[None] for name, matrix in weights.items()}
    assert_agree(explicit_matrix(found.gauss_newton, like), networks.gauss_newton(problem, weights), 1e-10)
    dense = hessian(networks.mean_loss)(networks.flat(weights), problem, weights)
    assert_agree(explicit_matrix(found.hessian, like), dense, 1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_passes_of_the_fisher_matrix_have_its_diagonal_blocks(kind):
    problem = networks.problem(kind)
    weights = untrained(problem, (5,), 0)
    dense, at = networks.gauss_newton(problem, weights), 0
    passes = [calls for _, calls in fisher_passes(problem, weights)]
    for module in modules_of(weights):
        gradients = torch.cat([sequence_gradients(calls[module.name], module) for calls in passes]).flatten(1).double()
        size = module.parameters
        block = dense[at : at + size, at : at + size]
        assert_agree(gradients.T @ gradients / len(gradients), block, 1e-5)  # the passes are in float32
        at += size


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_examples_are_autograds(kind):
    problem = networks.problem(kind)
    weights = untrained(problem, (5,), 0)
    expected = torch.stack([networks.gradient(networks.flat(weights), problem, weights, k) for k in range(problem.n)])
    found = loss_gradients(problem, weights, problem.inputs, problem.targets)
    assert_agree(torch.cat([value.flatten(1) for value in found.values()], 1), expected, 1e-10)
