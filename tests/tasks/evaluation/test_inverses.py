"""Every method's inverse on small networks, against matrices written out."""

from __future__ import annotations

import re

import networks
import pytest
import torch
from oracles import assert_agree
from torch.func import hessian

from tasks.evaluation.inverses import SOLVERS, EffortParameters, System
from tasks.evaluation.perceptron import loss_gradients, modules_of
from tasks.evaluation.perceptron import new_weights as untrained
from tasks.evaluation.response import DescentParameters, train
from tasks.influence.errors import InfluenceError
from tasks.influence.vectors import flatten

LAM = 0.05
TIGHT = EffortParameters(iterations=200, tolerance=1e-8, depth=3000, rounds=1, batch=1000)


@pytest.fixture(scope="module", params=["classification", "regression"])
def trained(request):
    problem = networks.problem(request.param)
    weights = train(problem, untrained(problem, (5,), 0), DescentParameters(epochs=20, batch_size=8), 0)
    vectors = loss_gradients(problem, weights, problem.inputs[:4], problem.targets[:4])
    return problem, weights, vectors, networks.gauss_newton(problem, weights)


def solved(matrix: torch.Tensor, vectors) -> torch.Tensor:
    return torch.linalg.solve(matrix + LAM * torch.eye(len(matrix), dtype=matrix.dtype), flatten(vectors).T).T


def blocks(matrix: torch.Tensor, weights) -> list[torch.Tensor]:
    found, at = [], 0
    for size in (m.numel() for m in weights.values()):
        found.append(matrix[at : at + size, at : at + size])
        at += size
    return found


@pytest.mark.parametrize(("method", "tolerance"), [("exact", 1e-9), ("cg", 1e-5), ("lissa", 0.05)])
def test_solvers_of_the_whole_matrix_find_its_inverse(trained, method, tolerance):
    problem, weights, vectors, dense = trained
    found = System(problem, weights, TIGHT).solve(method, vectors, [LAM])[LAM]
    assert_agree(flatten(found.vectors), solved(dense, vectors), tolerance)
    off = flatten(vectors) - flatten(found.vectors) @ (dense + LAM * torch.eye(len(dense), dtype=dense.dtype))
    assert torch.allclose(found.residuals, off.norm(dim=1) / flatten(vectors).norm(dim=1), atol=1e-9)


@pytest.mark.parametrize("method", SOLVERS)
def test_the_solve_can_sit_on_the_training_or_on_the_query_side(trained, method):
    problem, weights, vectors, _ = trained
    queries = loss_gradients(problem, weights, problem.test_inputs, problem.test_targets)
    system = System(problem, weights, TIGHT)
    solved, asked = (flatten(system.solve(method, side, [LAM])[LAM].vectors) for side in (vectors, queries))
    assert_agree(solved @ flatten(queries).T, flatten(vectors) @ asked.T, 1e-4)


def test_the_exact_matrix_layer_by_layer_has_no_entries_between_layers(trained):
    problem, weights, vectors, dense = trained
    found = System(problem, weights).solve("exact_blocks", vectors, [LAM])[LAM]
    assert_agree(flatten(found.vectors), solved(torch.block_diag(*blocks(dense, weights)), vectors), 1e-9)
    assert found.residuals.max() > 1e-3


def test_the_hessian_is_that_of_the_mean_loss(trained):
    problem, weights, vectors, _ = trained
    dense = hessian(networks.mean_loss)(networks.flat(weights), problem, weights)
    found = System(problem, weights).solve("hessian", vectors, [LAM])[LAM]
    assert_agree(flatten(found.vectors), solved(dense, vectors), 1e-9)


def test_kronecker_factors_are_those_of_the_fisher_matrix_and_ekfac_is_nearer_to_it(trained):
    problem, weights, vectors, dense = trained
    system, at = System(problem, weights), 0
    found = {m: flatten(system.solve(m, vectors, [LAM])[LAM].vectors) for m in ("kfac", "ekfac")}
    for module, block in zip(modules_of(weights), blocks(dense, weights), strict=True):
        basis = system.bases[module.name]
        q = torch.kron(basis.out.dense.double(), basis.inp.dense.double())
        kfac = q @ torch.diag(basis.kfac_eigenvalues.double().flatten()) @ q.T
        ekfac = q @ torch.diag(torch.diag(q.T @ block @ q)) @ q.T  # the best diagonal in that basis
        size = module.parameters
        rows = {module.name: vectors[module.name]}
        for method, matrix in (("kfac", kfac), ("ekfac", ekfac)):
            assert_agree(found[method][:, at : at + size], solved(matrix, rows), 1e-3)  # factors in float32
        assert (ekfac - block).norm() <= (kfac - block).norm() + 1e-5 * block.norm()
        at += size


@pytest.mark.parametrize("method", ["kfac", "ekfac"])
def test_where_output_gradients_do_not_depend_on_inputs_the_kronecker_form_is_exact(method):
    problem = networks.problem("regression")
    weights = untrained(problem, (), 0)  # of a linear map and the squared error, G is A ⊗ I
    vectors = loss_gradients(problem, weights, problem.inputs[:4], problem.targets[:4])
    found = System(problem, weights).solve(method, vectors, [LAM])[LAM]
    assert_agree(flatten(found.vectors), solved(networks.gauss_newton(problem, weights), vectors), 1e-5)


def test_with_one_layer_and_one_example_kfac_is_exact():
    problem = networks.problem("regression", n=1)
    weights = untrained(problem, (), 0)
    vectors = loss_gradients(problem, weights, problem.inputs, problem.targets)
    found = System(problem, weights).solve("kfac", vectors, [LAM])[LAM]
    assert_agree(flatten(found.vectors), solved(networks.gauss_newton(problem, weights), vectors), 1e-5)


def test_one_damping_beside_another_changes_nothing(trained):
    problem, weights, vectors, _ = trained
    both = System(problem, weights).solve("ekfac", vectors, [0.5, LAM])
    alone = System(problem, weights).solve("ekfac", vectors, [LAM])
    assert_agree(flatten(both[LAM].vectors), flatten(alone[LAM].vectors), 1e-6)


def test_koh_and_liangs_scale_is_an_alpha_and_leaves_the_damping_what_it_was(trained):
    problem, weights, vectors, dense = trained
    largest = float(torch.linalg.eigvalsh(dense).max())
    scale, short = 1.2 * largest, TIGHT.model_copy(update={"depth": 40})
    theirs, ours = (
        System(problem, weights, short.model_copy(update=step)).solve("lissa", vectors, [LAM])[LAM]
        for step in ({"scale": scale}, {"alpha": 1 / scale})
    )
    assert_agree(flatten(theirs.vectors), flatten(ours.vectors), 1e-12)
    with pytest.raises(ValueError, match="either alpha or scale"):
        EffortParameters(alpha=0.1, scale=10)


def test_an_alpha_that_diverges_is_named_with_a_safe_one(trained):
    problem, weights, vectors, dense = trained
    limit = 2 / (float(torch.linalg.eigvalsh(dense).max()) + LAM)

    def solved(alpha):
        return System(problem, weights, TIGHT.model_copy(update={"alpha": alpha})).solve("lissa", vectors, [LAM])[LAM]

    with pytest.raises(InfluenceError, match=rf"found α = {1.05 * limit:.3g}") as error:
        solved(1.05 * limit)
    assert solved(float(re.search(r"Use ([\d.e+-]+),", str(error.value))[1])).residuals.max() < 0.1


def test_a_series_without_damping_is_refused_because_g_is_singular(trained):
    problem, weights, vectors, dense = trained
    values = torch.linalg.eigvalsh(dense)
    assert values[0] < 1e-6 * values[-1]
    with pytest.raises(InfluenceError, match="damping above zero"):
        System(problem, weights, TIGHT).solve("lissa", vectors, [0.0])


def test_products_over_random_batches_are_the_whole_matrixs_on_average(trained):
    problem, weights, vectors, dense = trained
    system = System(problem, weights, TIGHT.model_copy(update={"batch": 4}))
    draws = torch.stack([flatten(system.batch_product(j)(vectors)) for j in range(400)])
    error = draws.std(0) / len(draws) ** 0.5
    off = (draws.mean(0) - flatten(vectors) @ dense) / error.clamp_min(1e-12)
    assert draws[0].ne(draws[1]).any()
    assert off.abs().max() < 5  # of a few hundred numbers
