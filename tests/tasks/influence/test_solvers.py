"""Solvers of (G + λI) x = v, against explicit matrices and against one another."""

from __future__ import annotations

import re
from functools import partial

import cases
import numpy as np
import oracles
import pytest
import torch
from oracles import assert_agree
from torch.func import functional_call, hessian

from tasks.influence.batches import collate
from tasks.influence.conjugate_gradients import conjugate_gradients
from tasks.influence.datainf import datainf, mean_squares
from tasks.influence.errors import InfluenceError
from tasks.influence.exact import explicit_matrix, solve_exactly
from tasks.influence.gauss_newton import Curvature, language_model_curvature, softmax_curvature, squared_curvature
from tasks.influence.gradients import sequence_gradients
from tasks.influence.lanczos import leading_eigenpairs
from tasks.influence.lissa import Series, choose_series, koh_liang, largest_eigenvalue, lissa
from tasks.influence.modules import select_modules
from tasks.influence.objectives import true_token_gradient
from tasks.influence.sweep import sweep
from tasks.influence.vectors import Vectors, damped, flatten, unflatten

LENGTHS = (6, 4, 7)
TWO = r".*(h|layers)\.1\.(mlp\.(c_proj|dense_4h_to_h|down_proj)|attn\.c_proj|attention\.dense|self_attn\.o_proj)"


def setting(family: str):
    """A model, two of its modules in one block, sequences in two batches, and the curvature there."""
    model = cases.FAMILIES[family]()
    modules = select_modules(model, TWO)
    assert len(modules) == 2
    sequences = cases.corpus(17, LENGTHS)
    batches = [collate(sequences[:2]), collate(sequences[2:])]
    return model, modules, sequences, language_model_curvature(model, modules, lambda: batches, len(sequences))


def random_vectors(modules, q: int = 2, seed: int = 0) -> Vectors:
    generator = torch.Generator().manual_seed(seed)
    return {m.name: torch.randn(q, m.d_out, m.columns, generator=generator, dtype=torch.float64) for m in modules}


def spd(d: int, seed: int = 0, flattest: float = 0.0) -> torch.Tensor:
    """A random symmetric matrix with eigenvalues from `flattest` to 4."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))
    return q @ torch.diag(torch.linspace(flattest, 4, d, dtype=torch.float64)) @ q.T


def by_matrix(matrix: torch.Tensor, vectors: Vectors) -> Vectors:
    return unflatten(flatten(vectors) @ matrix.T, vectors)


LIKE = {"a": torch.zeros(1, 3, 4, dtype=torch.float64), "b": torch.zeros(1, 2, 5, dtype=torch.float64)}
DAMPING = {"a": 0.3, "b": 0.7}


def right_hand_sides(q: int = 3) -> Vectors:
    generator = torch.Generator().manual_seed(5)
    return {n: torch.randn(q, *v.shape[1:], generator=generator, dtype=torch.float64) for n, v in LIKE.items()}


def solved_densely(matrix: torch.Tensor, vectors: Vectors, damping=DAMPING) -> np.ndarray:
    diagonal = np.concatenate([np.full(v[0].numel(), damping[n]) for n, v in vectors.items()])
    return np.linalg.solve(matrix.numpy() + np.diag(diagonal), flatten(vectors).numpy().T).T


# The Gauss-Newton matrix


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_products_are_those_of_the_dense_gauss_newton_matrix_of_both_modules_together(family):
    model, modules, sequences, curvature = setting(family)
    dense = oracles.joint_gauss_newton(model, [m.name for m in modules], [s.token_ids for s in sequences])
    vectors = random_vectors(modules)
    assert_agree(flatten(curvature.gauss_newton(vectors)), flatten(vectors) @ dense, 1e-6)  # Llama: float32 norms
    assert float(torch.linalg.eigvalsh(dense).min()) > -1e-12  # semidefinite, and so is what was found:
    assert float(torch.linalg.eigvalsh(explicit_matrix(curvature.gauss_newton, vectors)).min()) > -1e-6


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_products_are_those_of_the_dense_hessian_of_the_mean_loss(family):
    model, modules, sequences, curvature = setting(family)
    sizes = [(m.d_out, m.columns) for m in modules]

    def mean_loss(flat: torch.Tensor) -> torch.Tensor:
        swapped, at = {}, 0
        for m, (o, i) in zip(modules, sizes, strict=True):
            matrix = flat[at : at + o * i].view(o, i)
            at += o * i
            weight = matrix[:, : m.d_in]
            swapped[f"{m.name}.weight"] = weight.T if m.kind == "Conv1D" else weight
            if m.bias:
                swapped[f"{m.name}.bias"] = matrix[:, -1]
        losses = []
        for s in sequences:
            given = {"input_ids": torch.tensor([s.token_ids]), "use_cache": False}
            logits = functional_call(model, swapped, (), given, tie_weights=True).logits[0]
            losses.append(oracles.negative_log_likelihood(logits, s.token_ids, 1))
        return torch.stack(losses).mean()

    flat = torch.cat([curvature.weights[m.name].flatten() for m in modules])
    dense = hessian(mean_loss)(flat)
    vectors = random_vectors(modules)
    assert_agree(flatten(curvature.hessian(vectors)), flatten(vectors) @ dense, 1e-6)  # Llama normalises in float32


def test_of_the_squared_error_of_a_linear_map_it_is_the_covariance_of_inputs():
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    curvature = Curvature(
        {"w": torch.zeros(2, 4, dtype=torch.float64)}, lambda w, given: given @ w["w"].T, squared_curvature,
        lambda outputs, given: outputs.square().sum() / 2, lambda: [x[:3], x[3:]], len(x),
    )  # fmt: skip
    v = {"w": torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)}
    assert_agree(curvature.gauss_newton(v)["w"], v["w"] @ (x.T @ x / len(x)), 1e-12)
    assert_agree(curvature.hessian(v)["w"], v["w"] @ (x.T @ x / len(x)), 1e-12)


def test_the_softmaxs_curvature_is_diag_p_less_p_pt():
    outputs, w = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = torch.softmax(outputs, -1)
    dense = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    assert_agree(softmax_curvature(outputs, w), (dense @ w[:, :, None])[..., 0], 1e-12)


# Solvers


def test_an_explicit_matrix_is_solved_with_a_damping_for_each_weight_matrix():
    matrix, right = spd(22), right_hand_sides()
    found = explicit_matrix(partial(by_matrix, matrix), LIKE)
    assert_agree(found, matrix, 1e-14)
    assert_agree(flatten(solve_exactly(found, right, DAMPING)), solved_densely(matrix, right), 1e-11)


def test_a_singular_matrix_without_damping_is_refused():
    singular = torch.zeros(22, 22, dtype=torch.float64)
    with pytest.raises(InfluenceError, match="singular"):
        solve_exactly(singular, right_hand_sides(), {"a": 0.0, "b": 0.0})


def test_a_matrix_that_is_singular_but_for_rounding_is_refused_and_a_small_one_is_not():
    values, none = torch.linspace(0.5, 2, 22, dtype=torch.float64), {"a": 0.0, "b": 0.0}
    q = torch.linalg.qr(spd(22)).Q
    for least in (0.0, 1e-17):
        values[3] = least
        with pytest.raises(
            InfluenceError, match=r"singular one, whose condition number is 1 / \d.*e-1\d.*damping above"
        ):
            solve_exactly(q @ torch.diag(values) @ q.T, right_hand_sides(), none)
    values[3] = 1e-9  # a condition number that float64 still solves with
    for size in (1.0, 1e-30):
        found = solve_exactly(size * q @ torch.diag(values) @ q.T, right_hand_sides(), none)
        expected = flatten(right_hand_sides()) @ (q @ torch.diag(1 / values) @ q.T) / size
        assert_agree(flatten(found), expected, 1e-5)


def test_a_matrix_that_is_too_large_is_not_written_out():
    with pytest.raises(InfluenceError, match="at most"):
        explicit_matrix(lambda v: v, {"w": torch.zeros(1, 100, 100)})


def test_conjugate_gradients_solve_in_as_many_steps_as_there_are_dimensions_and_say_how_far_they_are():
    matrix, right = spd(22), right_hand_sides()
    product = damped(partial(by_matrix, matrix), DAMPING)
    solved = conjugate_gradients(product, right, lambda v: v, 40, 1e-12)
    assert_agree(flatten(solved.vectors), solved_densely(matrix, right), 1e-10)
    rest = flatten(right) - flatten(product(solved.vectors))
    measured = torch.linalg.norm(rest, dim=1) / torch.linalg.norm(flatten(right), dim=1)
    assert torch.allclose(solved.residuals[-1], measured, atol=1e-12)
    assert len(solved.residuals) <= 26
    assert (solved.residuals[0] == 1).all()


def test_a_good_preconditioner_saves_most_of_the_steps_and_the_true_inverse_all():
    matrix, right = spd(22), right_hand_sides()
    product = damped(partial(by_matrix, matrix), DAMPING)
    exact = partial(solve_exactly, matrix, damping=DAMPING)
    near = partial(solve_exactly, matrix + 0.02 * spd(22, seed=9), damping=DAMPING)
    plain, good, perfect = (
        len(conjugate_gradients(product, right, p, 60, 1e-10).residuals) - 1 for p in (lambda v: v, near, exact)
    )
    assert perfect == 1
    assert 1 < good < plain / 2


def test_k_products_bring_conjugate_gradients_as_near_as_any_vector_that_k_products_make():
    matrix, right = spd(22), right_hand_sides(1)
    lam = [DAMPING[name] for name, value in LIKE.items() for _ in range(value[0].numel())]
    dense = matrix + torch.diag(torch.tensor(lam, dtype=matrix.dtype))
    near = matrix + 0.3 * spd(22, seed=9) + torch.eye(22)
    b, inverse = flatten(right)[0], torch.linalg.inv(near)

    def energy(x):
        return float(x @ dense @ x / 2 - b @ x)

    for k in (1, 3, 6):
        solved = conjugate_gradients(
            damped(partial(by_matrix, matrix), DAMPING), right, partial(by_matrix, inverse), k, 1e-12
        )
        space = [inverse @ b]  # the Krylov space of the preconditioned matrix, its best vector found by a dense solve
        for _ in range(k - 1):
            space.append(inverse @ (dense @ space[-1]))
        basis = torch.linalg.qr(torch.stack(space, dim=1)).Q
        best = basis @ torch.linalg.solve(basis.T @ dense @ basis, basis.T @ b)
        assert energy(flatten(solved.vectors)[0]) == pytest.approx(energy(best), rel=1e-8)
        assert energy(best) < energy(inverse @ b)  # which a start there would begin with, for the same first product


def test_conjugate_gradients_refuse_a_matrix_that_bends_down():
    matrix = spd(22, flattest=-3.0)
    with pytest.raises(InfluenceError, match="positive definite"):
        conjugate_gradients(damped(partial(by_matrix, matrix), DAMPING), right_hand_sides(), lambda v: v, 60, 1e-12)


def test_a_right_hand_side_that_has_converged_is_left_alone():
    matrix = spd(22)
    right = right_hand_sides(2)
    right = {name: torch.stack([value[0], torch.zeros_like(value[1])]) for name, value in right.items()}
    solved = conjugate_gradients(damped(partial(by_matrix, matrix), DAMPING), right, lambda v: v, 40, 1e-12)
    assert (flatten(solved.vectors)[1] == 0).all()
    assert_agree(flatten(solved.vectors)[0], solved_densely(matrix, right)[0], 1e-10)


def test_lissa_converges_to_the_damped_inverse_and_its_largest_eigenvalue_is_found():
    matrix, right = spd(22), right_hand_sides()
    product = partial(by_matrix, matrix)
    largest = largest_eigenvalue(product, LIKE, iterations=200)
    assert largest == pytest.approx(4.0, rel=1e-3)
    series = choose_series(largest, DAMPING, most=10_000)
    assert series.alpha < 2 / (4 + 0.7)
    long = Series(series.alpha, 30 * series.depth)
    assert_agree(flatten(lissa(lambda j: product, right, DAMPING, long)), solved_densely(matrix, right), 1e-8)
    chosen = flatten(lissa(lambda j: product, right, DAMPING, series)).numpy()
    off = np.linalg.norm(chosen - solved_densely(matrix, right)) / np.linalg.norm(solved_densely(matrix, right))
    assert off < 0.05  # what the depth promises of the flattest direction


def test_lissa_over_random_batches_is_right_on_average_and_rounds_bring_it_closer():
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(40, 22, generator=generator, dtype=torch.float64) / 3
    matrix, right = rows.T @ rows / len(rows), right_hand_sides(1)
    expected = solved_densely(matrix, right)

    def batch(j: int):
        some = rows[torch.randint(40, (8,), generator=torch.Generator().manual_seed(j))]
        return partial(by_matrix, some.T @ some / len(some))

    errors = []
    for rounds in (1, 16):
        found = flatten(lissa(batch, right, DAMPING, Series(0.25, 80, rounds))).numpy()
        errors.append(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    assert errors[1] < errors[0] / 2 < 0.1


def test_koh_and_liangs_damping_is_multiplied_by_their_scale():
    matrix, right = spd(22), right_hand_sides(1)
    d, s = 0.01, 25.0
    h = flatten(right)
    for _ in range(3000):  # as their code has it
        h = flatten(right) + (1 - d) * h - h @ matrix / s
    alpha, effective = koh_liang(d, s)
    assert effective == 0.25
    both = {"a": effective, "b": effective}
    ours = lissa(lambda j: partial(by_matrix, matrix), right, both, Series(alpha, 3000))
    assert_agree(flatten(ours), h / s, 1e-9)
    assert_agree(h / s, solved_densely(matrix, right, both), 1e-9)


def test_a_series_that_diverges_is_named_with_a_safe_alpha():
    matrix, right = spd(22), right_hand_sides()
    limit = 2 / (4.0 + max(DAMPING.values()))
    for alpha in (1.01 * limit, 20 * limit, 0.0):
        said = rf"below 2 / \(σ_max \+ λ\) = {limit:.3g}.*found α = {alpha:.3g}"
        with pytest.raises(InfluenceError, match=said) as error:
            choose_series(4.0, DAMPING, 400, alpha=alpha)
    named = float(re.search(r"Use ([\d.]+),", str(error.value))[1])
    found = lissa(lambda j: partial(by_matrix, matrix), right, DAMPING, choose_series(4.0, DAMPING, 4000, alpha=named))
    off = flatten(found) - torch.as_tensor(solved_densely(matrix, right))
    assert off.norm() < 0.1 * flatten(found).norm()
    with pytest.raises(InfluenceError, match="the batches have larger eigenvalues"):
        lissa(lambda j: partial(by_matrix, 50 * matrix), right, DAMPING, choose_series(4.0, DAMPING, 400))
    with pytest.raises(InfluenceError, match="damping above zero"):
        choose_series(4.0, {"a": 0.0}, 10)


def test_leading_eigenpairs_are_those_of_the_dense_matrix():
    matrix = spd(22)
    found = leading_eigenpairs(partial(by_matrix, matrix), LIKE, steps=22, k=5)
    values, vectors = np.linalg.eigh(matrix.numpy())
    assert_agree(found.values, values[::-1][:5].copy(), 1e-10)
    overlaps = np.abs(found.vectors.numpy() @ vectors[:, ::-1][:, :5])
    np.testing.assert_allclose(overlaps, np.eye(5), atol=1e-8)
    right = right_hand_sides()
    inside = vectors[:, ::-1][:, :5]
    expected = flatten(right).numpy() @ inside @ np.diag(1 / values[::-1][:5]) @ inside.T
    assert_agree(flatten(found.inverse(right)), expected, 1e-8)


def test_a_krylov_space_that_ends_early_gives_the_pairs_that_there_are():
    projection = torch.diag(torch.tensor([3.0, 1.0] + [0.0] * 20, dtype=torch.float64))
    found = leading_eigenpairs(partial(by_matrix, projection), LIKE, steps=10, k=4)
    assert_agree(found.values[:2], torch.tensor([3.0, 1.0]), 1e-10)
    assert found.values[2:].abs().max() < 1e-10


def test_datainf_is_exact_for_one_sequence_and_the_mean_of_inverses_for_several():
    model = cases.gpt2()
    modules = select_modules(model, TWO)
    sequences = cases.corpus(17, LENGTHS)
    vectors = random_vectors(modules)
    damping = {m.name: 0.4 + k for k, m in enumerate(modules)}
    for some in (sequences[:1], sequences):
        passes = sweep(model, modules, [collate(some)], true_token_gradient)
        found = datainf(passes, modules, vectors, damping)
        for m in modules:
            gradients = [oracles.sequence_gradient(model, m.name, s.token_ids).flatten() for s in some]
            eye = torch.eye(m.d_out * m.columns, dtype=torch.float64)
            inverses = [torch.linalg.inv(torch.outer(g, g) + damping[m.name] * eye) for g in gradients]
            expected = vectors[m.name].flatten(1) @ torch.stack(inverses).mean(0)
            assert_agree(found[m.name].flatten(1), expected, 1e-5)


def test_mean_squares_are_the_diagonal_of_the_fisher_matrix():
    model = cases.llama()
    modules = select_modules(model, TWO)
    sequences = cases.corpus(17, LENGTHS)
    passes = sweep(model, modules, [collate(sequences[:1]), collate(sequences[1:])], true_token_gradient)
    found = mean_squares(passes, modules)
    for m in modules:
        gradients = torch.stack([oracles.sequence_gradient(model, m.name, s.token_ids) for s in sequences])
        assert_agree(found[m.name].flatten(), torch.diag(oracles.fisher(gradients)), 1e-5)


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_the_solve_can_sit_on_the_query_or_on_the_training_side(family):
    model, modules, sequences, curvature = setting(family)
    damping = {m.name: 0.2 + 0.1 * k for k, m in enumerate(modules)}
    product = damped(curvature.gauss_newton, damping)
    [(_, calls)] = sweep(model, modules, [collate(sequences)], true_token_gradient)
    gradients = {m.name: sequence_gradients(calls[m.name], m).double() for m in modules}
    solved = conjugate_gradients(product, gradients, lambda v: v, 400, 1e-9)
    influences = flatten(solved.vectors) @ flatten(gradients).T
    assert_agree(influences, influences.T, 1e-5)
    dense = oracles.joint_gauss_newton(model, [m.name for m in modules], [s.token_ids for s in sequences])
    assert_agree(influences, flatten(gradients) @ torch.tensor(solved_densely(dense, gradients, damping)).T, 1e-5)
