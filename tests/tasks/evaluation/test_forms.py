"""The forms of TracIn against gradients that are written out whole."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.evaluation.forms import Form, Products, hidden_forms, tracin_forms

STEPS, RATES = [0, 10, 20], [None, 0.1, 0.2]


@pytest.fixture
def gradients():
    """One query, four sequences, two groups, three checkpoints: q[group][step, n], z[group][step, pair, n]."""
    random = np.random.default_rng(0)
    q = [random.normal(size=(3, width)) for width in (4, 6)]
    z = [random.normal(size=(3, 4, width)) for width in (4, 6)]
    z[0][:, 3] = z[1][:, 3] = 0.0  # a sequence without gradient
    return q, z


def products(q: np.ndarray, z: np.ndarray) -> Products:
    dots = np.einsum("sn,spn->sp", q, z)
    return Products.of_part(dots, np.linalg.norm(q, axis=1)[:, None] * np.ones((1, 4)), np.linalg.norm(z, axis=2))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_groups_joined_give_the_cosine_of_the_whole_gradients(gradients):
    q, z = gradients
    joined = products(q[0], z[0]) + products(q[1], z[1])
    whole_q, whole_z = np.concatenate(q, axis=1), np.concatenate(z, axis=2)
    expected = [[cosine(whole_q[s], whole_z[s, p]) for p in range(3)] + [0.0] for s in range(3)]
    np.testing.assert_allclose(joined.cosines(), expected, rtol=1e-12)
    local = [[cosine(q[0][s], z[0][s, p]) + cosine(q[1][s], z[1][s, p]) for p in range(3)] + [0.0] for s in range(3)]
    np.testing.assert_allclose(joined.local, local, rtol=1e-12)


def test_every_form_is_that_of_its_definition_and_leaves_out_the_untrained_model(gradients):
    q, z = gradients
    found = {
        form.label("tracin"): scores
        for form, scores in tracin_forms("all", products(q[0], z[0]), False, STEPS, RATES, first_step=1)
    }
    assert list(found) == [
        "tracin[all]", "tracin[all, learning rates]", "tracin[all, dot]", "tracin[all, dot, learning rates]",
        "tracin[all, local]", "tracin[all, step 0]", "tracin[all, step 10]", "tracin[all, step 20]",
    ]  # fmt: skip
    cosines = [[cosine(q[0][s], z[0][s, p]) for p in range(3)] for s in range(3)]
    dots = [[q[0][s] @ z[0][s, p] for p in range(3)] for s in range(3)]
    np.testing.assert_allclose(found["tracin[all]"][:3], np.mean(cosines[1:], axis=0), rtol=1e-12)
    np.testing.assert_allclose(found["tracin[all, dot]"][:3], np.mean(dots[1:], axis=0), rtol=1e-12)
    pruthi = 0.1 * np.array(dots[1]) + 0.2 * np.array(dots[2])
    np.testing.assert_allclose(found["tracin[all, dot, learning rates]"][:3], pruthi, rtol=1e-12)
    np.testing.assert_allclose(found["tracin[all, step 0]"][:3], cosines[0], rtol=1e-12)


def test_no_learning_rate_no_form_weighed_by_it(gradients):
    q, z = gradients
    forms = [f for f, _ in tracin_forms("block 0", products(q[0], z[0]), True, STEPS, [None] * 3, first_step=0)]
    assert forms == [Form("block 0", "unit", True), Form("block 0", "none", True)]
    assert forms[1].label("tracin") == "tracin[block 0, dot, scaled]"


def test_hidden_layers_joined_are_one_long_vector(gradients):
    q, z = gradients
    found = {form.part: scores for form, scores in hidden_forms([0, 1, 2], products(q[0], z[0]))}
    assert list(found) == ["layer 0", "layer 1", "layer 2", "all layers"]
    long = [cosine(q[0].ravel(), z[0][:, p].ravel()) for p in range(3)]
    np.testing.assert_allclose(found["all layers"][:3], long, rtol=1e-12)
