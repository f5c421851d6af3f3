"""K-FAC and EK-FAC against the explicit Fisher block, their damped inverse against Gaussian elimination."""

from __future__ import annotations

import itertools
from functools import partial

import cases
import oracles
import pytest
import torch

from tasks.influence.capture import Call
from tasks.influence.covariance import CovarianceSums, covariance_sums
from tasks.influence.ekfac import (
    Eigenbasis,
    IdentityMetric,
    Metric,
    eigenbasis,
    eigenvalue_sums,
    relative_damping,
    rotated_gradients,
)
from tasks.influence.errors import InfluenceError
from tasks.influence.modules import select_modules
from tasks.influence.objectives import sampled_token_gradient


def fit(passes, module, n) -> tuple[Eigenbasis, torch.Tensor]:
    """The eigenbasis of one module and Λ."""
    basis = eigenbasis(covariance_sums(passes, [module])[module.name])
    return basis, eigenvalue_sums(passes, [module], {module.name: basis})[module.name] / n


def fit_model(model, module, sequences, batch_size=4, objective=None):
    return fit(cases.passes(model, [module], sequences, batch_size, objective), module, len(sequences))


def gradients(model, module, sequences, seed=None):
    """Explicit sequence gradients, under true labels or those of a seed."""
    labels = [
        None if seed is None else oracles.sampled_labels(model, s.token_ids, s.sequence_id, seed) for s in sequences
    ]
    rows = [
        oracles.sequence_gradient(model, module.name, s.token_ids, 1, y) for s, y in zip(sequences, labels, strict=True)
    ]
    return torch.stack(rows)


def random_metric(o, i, damping=0.3, seed=0, dtype=torch.float64):
    """Random rotations, so that a transposed one shows; eigenvalues over four decades, some zero."""
    g = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=g, dtype=torch.float64)
    q_out, q_in = (torch.linalg.qr(draw(n, n))[0] for n in (o, i))
    eigenvalues = 10 ** (2 * draw(o, i)) * (draw(o, i) > -1)
    return Metric(cases.one_block(q_out.to(dtype)), cases.one_block(q_in.to(dtype)), eigenvalues.to(dtype), damping)


def matrix(metric: Metric) -> torch.Tensor:
    return oracles.spectral(metric.out.dense, metric.inp.dense, metric.eigenvalues)


# Eigenbasis and eigenvalues


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_the_eigenbasis_diagonalises_both_covariances(family):
    model = cases.FAMILIES[family]()
    for module in select_modules(model, "mlp"):
        sums = covariance_sums(cases.passes(model, [module], cases.corpus(17)), [module])[module.name]
        basis = eigenbasis(sums)
        for q, total in ((basis.out.dense, sums.deltas.dense), (basis.inp.dense, sums.inputs.dense)):
            q, mean = q.double(), total.double() / sums.positions
            oracles.assert_agree(q.T @ q, torch.eye(len(q)), 1e-6)
            rotated = q.T @ mean @ q
            oracles.assert_agree(rotated, torch.diag(rotated.diag()), 1e-6)


def test_kfac_is_the_kronecker_product_of_the_means_times_the_positions_of_a_sequence():
    model = cases.gpt2()
    sequences = cases.corpus(17)
    module = select_modules(model, "mlp")[0]
    basis, _ = fit_model(model, module, sequences)
    pairs = [pair for s in sequences for pair in oracles.positions(model, module.name, s.token_ids)]
    a_ii = torch.stack([torch.outer(a, a) for a, _ in pairs]).mean(0)
    s_oo = torch.stack([torch.outer(d, d) for _, d in pairs]).mean(0)
    found = oracles.spectral(basis.out.dense, basis.inp.dense, basis.kfac_eigenvalues)
    oracles.assert_agree(found, torch.kron(s_oo, a_ii) * len(pairs) / len(sequences), 1e-5)


@pytest.mark.parametrize("fisher", ["empirical", "sampled"])
@pytest.mark.parametrize("family", cases.FAMILIES)
def test_eigenvalues_are_the_diagonal_of_the_rotated_fisher(family, fisher):
    model = cases.FAMILIES[family]()
    sequences = cases.corpus(17)
    seed = 4 if fisher == "sampled" else None
    objective = partial(sampled_token_gradient, seed=seed) if seed else None
    for module in select_modules(model, "all")[:3]:
        basis, eigenvalues = fit_model(model, module, sequences, objective=objective)
        f = oracles.fisher(gradients(model, module, sequences, seed))
        q = torch.kron(basis.out.dense.double().contiguous(), basis.inp.dense.double().contiguous())
        oracles.assert_agree(eigenvalues.flatten(), (q.T @ f @ q).diag(), 1e-5)


@pytest.mark.parametrize("fisher", ["empirical", "sampled"])
def test_eigenvalues_sum_to_the_trace_of_the_fisher(fisher):
    model = cases.neox()
    sequences = cases.corpus(17)
    seed = 4 if fisher == "sampled" else None
    for module in select_modules(model, "all"):
        _, eigenvalues = fit_model(
            model, module, sequences, objective=seed and partial(sampled_token_gradient, seed=seed)
        )
        g = gradients(model, module, sequences, seed)
        oracles.assert_agree(eigenvalues.double().sum(), g.square().sum((1, 2)).mean(), 1e-5)


USED_TWICE = {f"looped, bias={bias}": ("step", partial(cases.Looped, bias)) for bias in (True, False)} | {
    f"tied, bias: {bias}": ("first|second", partial(cases.Tied, bias))
    for bias in ("none", "shared", "own", "first", "second")
}


@pytest.mark.parametrize("model", USED_TWICE)
def test_weights_used_twice_in_a_pass_have_the_eigenvalues_of_their_whole_gradient(model):
    expression, make = USED_TWICE[model]
    model, sequences = cases.frozen(make()), cases.corpus(11)
    (module,) = select_modules(model, expression)
    basis, eigenvalues = fit_model(model, module, sequences)
    f = oracles.fisher(gradients(model, module, sequences))
    q = torch.kron(basis.out.dense.double().contiguous(), basis.inp.dense.double().contiguous())
    oracles.assert_agree(eigenvalues.flatten(), (q.T @ f @ q).diag(), 1e-5)
    oracles.assert_agree(eigenvalues.double().sum(), f.trace(), 1e-5)
    ekfac, kfac = (
        float((f - oracles.spectral(basis.out.dense, basis.inp.dense, values)).norm() / f.norm())
        for values in (eigenvalues, basis.kfac_eigenvalues)
    )
    assert ekfac < kfac, f"relative distance to the Fisher: EK-FAC {ekfac:.3g}, K-FAC {kfac:.3g}"


@pytest.mark.parametrize("objective", [None, partial(sampled_token_gradient, seed=1)], ids=["empirical", "sampled"])
@pytest.mark.parametrize("family", cases.FAMILIES)
def test_eigenvalues_do_not_depend_on_batch_size_or_order(family, objective):
    model = cases.FAMILIES[family]()
    sequences = cases.corpus(17)
    module = select_modules(model, "mlp")[-1]
    basis, expected = fit_model(model, module, sequences, 1, objective)
    for order, batch_size in [(sequences, 6), (sequences[::-1], 4), (sequences[2:] + sequences[:2], 3)]:
        passes = cases.passes(model, [module], order, batch_size, objective)
        found = eigenvalue_sums(passes, [module], {module.name: basis})[module.name] / len(sequences)
        oracles.assert_agree(found, expected, 1e-5)


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_one_sequence_of_one_position_is_reproduced_exactly(family):
    model = cases.FAMILIES[family]()
    sequences = cases.corpus(17, lengths=(2,))
    for module in select_modules(model, "mlp"):
        basis, eigenvalues = fit_model(model, module, sequences)
        f = oracles.fisher(gradients(model, module, sequences))
        oracles.assert_agree(oracles.spectral(basis.out.dense, basis.inp.dense, eigenvalues), f, 1e-5)
        oracles.assert_agree(oracles.spectral(basis.out.dense, basis.inp.dense, basis.kfac_eigenvalues), f, 1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_ekfac_is_closer_to_the_fisher_than_kfac(seed):
    family = list(cases.FAMILIES)[seed % 3]
    model = cases.FAMILIES[family](seed)
    sequences = cases.corpus(17, seed=seed)
    for module in select_modules(model, "mlp"):
        basis, eigenvalues = fit_model(model, module, sequences)
        f = oracles.fisher(gradients(model, module, sequences))
        ekfac, kfac = (
            float((f - oracles.spectral(basis.out.dense, basis.inp.dense, values)).norm() / f.norm())
            for values in (eigenvalues, basis.kfac_eigenvalues)
        )
        assert ekfac < kfac, (module.name, ekfac, kfac)


def test_no_other_eigenvalues_bring_the_same_basis_closer():
    model = cases.llama()
    sequences = cases.corpus(17)
    module = select_modules(model, "mlp")[0]
    basis, eigenvalues = fit_model(model, module, sequences)
    f = oracles.fisher(gradients(model, module, sequences))
    best = (f - oracles.spectral(basis.out.dense, basis.inp.dense, eigenvalues)).norm()
    g = torch.Generator().manual_seed(0)
    for _ in range(10):
        other = eigenvalues * (1 + 0.1 * torch.randn(eigenvalues.shape, generator=g))
        assert (f - oracles.spectral(basis.out.dense, basis.inp.dense, other)).norm() > best


# K-FAC on the scale of a sequence


def independent_positions(t):
    """Every sequence of t positions whose ā is one of 2 and whose δ is one of 3 that sum to zero, each once."""
    g = torch.Generator().manual_seed(0)
    a_ki, d_ko = torch.randn(2, 2, generator=g), torch.randn(3, 3, generator=g)
    d_ko -= d_ko.mean(0)
    choices = list(itertools.product(range(2), range(3)))
    rows = list(itertools.product(choices, repeat=t))
    inputs = torch.stack([torch.stack([a_ki[k] for k, _ in row]) for row in rows])
    deltas = torch.stack([torch.stack([d_ko[k] for _, k in row]) for row in rows])
    return Call(inputs, deltas)


@pytest.mark.parametrize("t", [1, 2, 3])
def test_kfac_is_the_fisher_of_the_whole_sequence_when_positions_are_independent(t):
    module, call = cases.tracked(3, 2), independent_positions(t)
    basis, eigenvalues = fit([(cases.full_batch(len(call.inputs), t), {"m": [call]})], module, len(call.inputs))
    f = oracles.fisher(torch.einsum("bto,bti->boi", call.deltas.double(), call.inputs.double()))
    oracles.assert_agree(oracles.spectral(basis.out.dense, basis.inp.dense, basis.kfac_eigenvalues), f, 1e-5)
    oracles.assert_agree(eigenvalues, basis.kfac_eigenvalues, 1e-5)


def test_two_calls_of_a_module_are_on_the_scale_of_one_call_with_both_their_positions():
    module, call = cases.tracked(3, 2), independent_positions(2)
    halves = [Call(call.inputs[:, k : k + 1], call.deltas[:, k : k + 1]) for k in (0, 1)]
    n = len(call.inputs)
    one, values_of_one = fit([(cases.full_batch(n, 2), {"m": [call]})], module, n)
    two, values_of_two = fit([(cases.full_batch(n, 1), {"m": halves})], module, n)
    oracles.assert_agree(values_of_two.sum(), values_of_one.sum(), 1e-5)
    oracles.assert_agree(two.kfac_eigenvalues.sum(), one.kfac_eigenvalues.sum(), 1e-5)


# The damped inverse


@pytest.mark.parametrize(("o", "i"), [(3, 5), (6, 2), (4, 4)])
def test_precondition_equals_solving_with_the_explicit_matrix(o, i):
    metric = random_metric(o, i)
    gradient = torch.randn(o, i, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = oracles.damped_solve(matrix(metric), metric.damping, gradient)
    oracles.assert_agree(metric.precondition(gradient), expected, 1e-10)


def test_precondition_of_a_fitted_square_layer_solves_for_its_weight_and_not_for_its_transpose():
    model, sequences = cases.neox(bias=False), cases.corpus(17)
    module = select_modules(model, r"gpt_neox\.layers\.0\.attention\.dense")[0]
    assert (module.d_out, module.columns) == (8, 8)
    basis, eigenvalues = fit_model(model, module, sequences)
    damping = relative_damping(eigenvalues, 0.1)
    g = oracles.spectral(basis.out.dense, basis.inp.dense, eigenvalues)
    gradient = oracles.sequence_gradient(model, module.name, [3, 1, 4, 15, 9, 2, 6], first_scored=3)
    found = Metric(basis.out, basis.inp, eigenvalues, damping).precondition(gradient.float())
    expected = oracles.damped_solve(g, damping, gradient)
    oracles.assert_agree(found, expected, 1e-4)
    transposed = oracles.damped_solve(g, damping, gradient.T).T
    distance = float((transposed - expected).norm() / expected.norm())
    assert distance > 0.1, f"the case shows no transposition: it moves the result by {distance:.3g} only"


@pytest.mark.parametrize("leading", [(3,), (2, 3), (1,)])
def test_precondition_treats_each_gradient_of_a_stack_alone(leading):
    metric = random_metric(4, 4)
    stack = torch.randn(*leading, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = metric.precondition(stack)
    assert found.shape == stack.shape
    for one, gradient in zip(found.view(-1, 4, 4), stack.view(-1, 4, 4), strict=True):
        oracles.assert_agree(one, oracles.damped_solve(matrix(metric), metric.damping, gradient), 1e-10)


def test_applying_the_damped_matrix_undoes_precondition():
    metric = random_metric(5, 3)
    gradient = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    v = metric.precondition(gradient).flatten()
    back = matrix(metric) @ v + metric.damping * v
    oracles.assert_agree(back.view(5, 3), gradient, 1e-10)


def test_precondition_tends_to_the_gradient_as_damping_grows():
    gradient = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    distances = []
    for damping in (1e2, 1e5, 1e8, 1e11):
        scaled = damping * random_metric(4, 3, damping).precondition(gradient)
        distances.append(float((scaled - gradient).norm() / gradient.norm()))
    assert distances == sorted(distances, reverse=True), distances
    assert distances[-1] < 1e-7, distances


def test_the_solve_may_stand_on_either_side():
    metric = random_metric(4, 3)
    q, z = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    one, other = (metric.precondition(q) * z).sum(), (q * metric.precondition(z)).sum()
    assert float(one) == pytest.approx(float(other), rel=1e-10)


# Few positions are rotated themselves, of many the gradient; between the widths each side goes its own way.
@pytest.mark.parametrize("t", [1, 6, 40])
@pytest.mark.parametrize("uses", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("o", "i"), [(9, 3), (3, 9), (7, 7)])
def test_rotated_gradients_are_the_gradients_in_the_eigenbasis(o, i, t, uses, bias):
    module = cases.tracked(o, i, bias)
    metric = random_metric(o, module.columns, dtype=torch.float32)
    calls = cases.random_calls(module, b=3, t=t, uses=uses)
    found = rotated_gradients(calls, module, metric.out, metric.inp)
    for row, gradient in enumerate(explicit(calls, module)):
        oracles.assert_agree(found[row], metric.out.dense.double().T @ gradient @ metric.inp.dense.double(), 1e-5)


@pytest.mark.parametrize("t", [1, 40])
@pytest.mark.parametrize("uses", [1, 2])
def test_squared_norms_are_the_quadratic_form_and_the_plain_length(t, uses):
    module = cases.tracked(7, 6, bias=True)
    metric = random_metric(7, 7, dtype=torch.float32)
    calls = cases.random_calls(module, b=3, t=t, uses=uses)
    found = metric.squared_norms(calls, module)
    g = explicit(calls, module)
    solved = torch.stack([oracles.damped_solve(matrix(metric), metric.damping, one) for one in g])
    oracles.assert_agree(found.metric, (g * solved).sum((1, 2)), 1e-4)
    oracles.assert_agree(found.euclidean, g.square().sum((1, 2)), 1e-5)


@pytest.mark.parametrize("t", [1, 40])
@pytest.mark.parametrize("uses", [1, 2])
def test_products_of_whitened_gradients_are_influences(t, uses):
    module = cases.tracked(7, 6, bias=True)
    metric = random_metric(7, 7, dtype=torch.float32)
    calls = cases.random_calls(module, b=3, t=t, uses=uses)
    g = explicit(calls, module)
    solved = torch.stack([oracles.damped_solve(matrix(metric), metric.damping, one) for one in g])
    found = metric.whitened(calls, module)
    oracles.assert_agree(found @ found.T, g.flatten(1) @ solved.flatten(1).T, 1e-4)
    oracles.assert_agree(IdentityMetric().whitened(calls, module), g.flatten(1), 1e-5)


@pytest.mark.parametrize("t", [1, 40])
def test_squared_norms_of_a_bfloat16_pass_lose_digits_only(t):
    module = cases.tracked(7, 6, bias=True)
    metric = random_metric(7, 7, dtype=torch.float32)
    calls = cases.random_calls(module, b=3, t=t, dtype=torch.bfloat16)
    found = metric.squared_norms(calls, module)
    g = explicit(calls, module)
    solved = torch.stack([oracles.damped_solve(matrix(metric), metric.damping, one) for one in g])
    oracles.assert_agree(found.metric, (g * solved).sum((1, 2)), 0.02)
    oracles.assert_agree(found.euclidean, g.square().sum((1, 2)), 0.02)


def test_the_identity_metric_leaves_gradients_and_lengths_as_they_are():
    module = cases.tracked(4, 3, bias=True)
    calls = cases.random_calls(module, b=3, t=5, uses=2)
    g = explicit(calls, module)
    found = IdentityMetric().squared_norms(calls, module)
    oracles.assert_agree(found.metric, g.square().sum((1, 2)), 1e-5)
    oracles.assert_agree(found.euclidean, g.square().sum((1, 2)), 1e-5)
    assert torch.equal(IdentityMetric().precondition(g), g)


def explicit(calls, module):
    """∇W in float64."""
    total = 0
    for call in calls:
        a = call.inputs.double()
        a = torch.cat([a, torch.ones_like(a[..., :1])], -1) if module.bias else a
        total = total + torch.einsum("bto,bti->boi", call.deltas.double(), a)
    return total


# Damping and refusals


def test_relative_damping_scales_the_mean_eigenvalue():
    assert relative_damping(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), 0.1) == pytest.approx(0.3)


def test_relative_damping_of_vanishing_gradients_is_refused():
    with pytest.raises(InfluenceError, match=r"mean\(Λ\) > 0.*absolute damping"):
        relative_damping(torch.zeros(2, 2), 0.1)
    with pytest.raises(InfluenceError, match=r"found nan"):
        relative_damping(torch.tensor([[1.0, torch.nan]]), 0.1)


def test_covariances_of_no_position_are_refused():
    with pytest.raises(InfluenceError, match="at least one scored position"):
        eigenbasis(CovarianceSums(cases.one_block(torch.zeros(2, 2)), cases.one_block(torch.zeros(3, 3)), 0, 4))
