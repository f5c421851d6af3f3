"""The five objectives, against closed forms: of a network without hidden layers each is a linear system."""

from __future__ import annotations

from dataclasses import replace

import networks
import numpy as np
import pytest
import torch
from oracles import assert_agree

from tasks.evaluation import response
from tasks.evaluation.inverses import System
from tasks.evaluation.perceptron import loss_gradients, network
from tasks.evaluation.perceptron import new_weights as untrained
from tasks.evaluation.response import (
    DescentParameters,
    losses_on_tests,
    output_distance,
    outputs_of,
    respond,
    retrain,
    settle,
    train,
)
from tasks.influence.errors import InfluenceError

LAM = 0.3
Z = 4  # the example that is left out
WHOLE = DescentParameters(epochs=800, batch_size=1000, learning_rate=0.3)  # all examples in each step


@pytest.fixture(scope="module")
def linear():
    """A regression without hidden layers, a network of it that is not trained to the end, and its normal equations."""
    problem = networks.problem("regression")
    weights = train(
        problem, untrained(problem, (), 0), DescentParameters(epochs=5, batch_size=8, learning_rate=0.05), 0
    )
    [theta] = weights.values()
    x = np.column_stack([problem.inputs.numpy(), np.ones(problem.n)])
    y, n = problem.targets.numpy(), problem.n
    return problem, weights, theta.numpy(), x.T @ x / n, x.T @ y / n, x[Z], y[Z], n


def test_leaving_an_example_out_of_a_linear_regression_ends_in_its_normal_equations(linear):
    problem, weights, _, a, b, x, y, n = linear
    expected = np.linalg.solve(a - np.outer(x, x) / n, b - np.outer(x, y) / n).T
    left_out = torch.tensor([Z, Z + 1])
    for start in (untrained(problem, (), 1), weights):  # cold, warm
        [found] = retrain(problem, start, left_out, [(WHOLE, 0)]).values()
        assert_agree(found[0], expected, 1e-6)
        assert np.abs(found[1].numpy() - expected).max() > 1e-3


def test_a_batch_stands_for_all_examples_and_the_one_left_out_is_taken_off_every_step_once(linear):
    problem, _, _, _, _, x, y, n = linear
    descent = DescentParameters(epochs=3, batch_size=8, learning_rate=0.05)
    start = untrained(problem, (), 1)
    [theta] = (matrix.double().numpy().copy() for matrix in start.values())
    inputs, targets = np.column_stack([problem.inputs.numpy(), np.ones(n)]), problem.targets.numpy()
    momentum, steps = np.zeros_like(theta), 3 * -(-n // 8)
    for t, batch in enumerate(response._batches(n, descent, 7)):
        chosen = batch.numpy()
        gradient = (inputs[chosen] @ theta.T - targets[chosen]).T @ inputs[chosen] / len(chosen)
        momentum = 0.9 * momentum + gradient - np.outer(theta @ x - y, x) / n
        theta = theta - 0.05 * (1 + np.cos(np.pi * t / steps)) / 2 * momentum
    assert t + 1 == steps
    [found] = retrain(problem, start, torch.tensor([Z]), [(descent, 7)]).values()
    assert_agree(found[0], theta, 1e-9)


@pytest.mark.parametrize("objective", ["proximity", "pbrf"])
def test_minimised_objectives_of_a_linear_regression_are_ridge_regressions_around_the_trained_network(
    linear, objective
):
    problem, weights, theta, a, b, x, y, n = linear
    rest = theta @ x - y
    right = np.outer(x, rest) / n - (a @ theta.T - b if objective == "proximity" else 0)
    expected = theta + np.linalg.solve(a - np.outer(x, x) / n + LAM * np.eye(len(x)), right).T
    found = respond(problem, objective, weights, Z, LAM, 200, 1e-8)
    assert_agree(found.weights["layer 0"], expected, 1e-7)
    assert found.residual < 1e-6


def test_the_minimum_with_every_example_is_a_ridge_regression_and_shortens_the_way_of_those_with_one_less(linear):
    problem, weights, theta, a, b, *_ = linear
    settled = settle(problem, weights, LAM, 1e-8)
    expected = theta - np.linalg.solve(a + LAM * np.eye(len(a)), a @ theta.T - b).T
    assert_agree(settled["layer 0"], expected, 1e-8)
    few = [respond(problem, "proximity", weights, Z, LAM, 2, 1e-9, start).residual for start in (None, settled)]
    assert few[1] < few[0] / 5


def test_a_minimum_of_a_network_is_reached_from_the_one_with_every_example():
    problem = replace(networks.problem(n=200), activation="tanh")
    weights = train(problem, untrained(problem, (5,), 0), DescentParameters(epochs=3, batch_size=8), 0)
    settled = settle(problem, weights, LAM, 1e-6)
    found = respond(problem, "proximity", weights, Z, LAM, 500, 1e-5, settled)
    assert found.residual < 1e-5
    moved = {name: found.weights[name].requires_grad_() for name in weights}  # the gradient, by other means
    outputs = networks.layered(moved, problem.inputs, problem.activation)
    losses = torch.nn.functional.cross_entropy(outputs, problem.targets, reduction="none")
    near = sum((moved[name] - weights[name]).square().sum() for name in weights)
    gradient = torch.autograd.grad(losses.mean() - losses[Z] / problem.n + LAM / 2 * near, list(moved.values()))
    own = loss_gradients(problem, weights, problem.inputs[Z][None], problem.targets[Z][None])
    size = torch.cat([g.flatten() for g in own.values()]).norm() / problem.n
    assert torch.cat([g.flatten() for g in gradient]).norm() < 2e-5 * size


def test_an_example_whose_loss_grows_without_end_is_named_with_what_would_hold_it():
    problem = networks.problem(n=5)
    weights = train(problem, untrained(problem, (8, 8), 0), DescentParameters(epochs=20, batch_size=8), 0)
    with pytest.raises(InfluenceError, match=r"tiny: expected a minimum.*example 4.*λ = 1e-09.*--damping"):
        respond(problem, "pbrf", weights, Z, 1e-9, 2000, 1e-6)


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_the_linearised_response_is_its_closed_form(kind):
    problem = networks.problem(kind)
    weights = train(problem, untrained(problem, (5,), 0), DescentParameters(epochs=20, batch_size=8), 0)
    dense = networks.gauss_newton(problem, weights)
    gradient = networks.gradient(networks.flat(weights), problem, weights, Z)
    expected = torch.linalg.solve(dense + LAM * torch.eye(len(dense), dtype=dense.dtype), gradient)
    given = loss_gradients(problem, weights, problem.inputs[Z][None], problem.targets[Z][None])
    found = System(problem, weights).converged(given, LAM)
    assert_agree(torch.cat([v.flatten() for v in found.vectors.values()]), expected, 1e-6)
    assert float(found.residuals) < 1e-7


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_the_more_examples_the_nearer_a_response_is_to_its_linearisation(kind):
    distances = []
    for copies in (1, 30):  # which weigh the example left out by as much less
        one = networks.problem(kind)
        problem = replace(one, inputs=torch.cat([one.inputs] * copies), targets=torch.cat([one.targets] * copies))
        weights = train(problem, untrained(problem, (5,), 0), DescentParameters(epochs=20, batch_size=8 * copies), 0)
        system = System(problem, weights)
        given = loss_gradients(problem, weights, problem.inputs[Z][None], problem.targets[Z][None])
        moved = system.converged(given, LAM).vectors
        response = respond(problem, "pbrf", weights, Z, LAM, 500, 1e-6)
        step = torch.cat([(response.weights[name] - weights[name]).flatten() for name in weights])
        tangent = torch.cat([(moved[name][0] / problem.n).flatten() for name in weights])
        distances.append(float((step - tangent).norm() / tangent.norm()))
    assert distances[1] < distances[0] / 5 < 0.1


def test_examples_left_out_side_by_side_are_as_each_alone():
    problem = networks.problem()
    start = untrained(problem, (5,), 0)
    descent = DescentParameters(epochs=4, batch_size=8)
    both = retrain(problem, start, torch.tensor([2, 9]), [(descent, 0), (descent.further, 1)])
    for k, z in enumerate((2, 9)):
        alone = retrain(problem, start, torch.tensor([z]), [(descent, 0), (descent.further, 1)])
        for name in start:
            assert_agree(both[name][k], alone[name][0], 1e-10)


def test_the_distance_and_the_losses_are_those_of_outputs():
    problem = networks.problem()
    left, right = untrained(problem, (5,), 0), untrained(problem, (5,), 1)
    outputs = [network(w, problem.inputs, problem.activation) for w in (left, right)]
    expected = np.sqrt(((outputs[0] - outputs[1]).numpy() ** 2).sum(1)).mean()
    many = [{name: m[None] for name, m in w.items()} for w in (left, right)]
    assert_agree(output_distance(*(outputs_of(problem, w, problem.inputs) for w in many))[0], expected, 1e-12)
    given = torch.log_softmax(network(left, problem.test_inputs, problem.activation), -1)
    assert_agree(losses_on_tests(problem, many[0])[0], -given[torch.arange(6), problem.test_targets], 1e-12)


def test_a_training_that_diverges_is_named_with_a_smaller_rate():
    problem = networks.problem("regression")
    wild = DescentParameters(epochs=200, batch_size=8, learning_rate=50)
    with pytest.raises(InfluenceError, match="tiny: expected a loss that falls.*below 50, as 5"):
        train(problem, untrained(problem, (), 0), wild, 0)
