"""Scores and their shares by token against ⟨V, ∇W⟩ with ∇W written out."""

from __future__ import annotations

from functools import partial

import cases
import oracles
import pytest
import torch

from tasks.influence.batches import TokenSequence
from tasks.influence.compression import low_rank, project
from tasks.influence.gradients import sequence_gradients
from tasks.influence.modules import select_modules
from tasks.influence.scores import pairwise_scores, token_scores

SHAPES = {"narrow": dict(o=4, i=3, t=20, q=8, rank=3), "wide": dict(o=40, i=39, t=2, q=3, rank=2)}


def basis(d, s, seed=3):
    return torch.linalg.qr(torch.randn(d, s, generator=torch.Generator().manual_seed(seed)))[0]


# Every way of writing the queries down: their own factors, one subspace of both sides, of one side, of none.
FORMS = {
    "low rank": lambda v, r: low_rank(lambda: v, r),
    "subspace": lambda v, r: project(lambda: v, basis(v.shape[1], r), basis(v.shape[2], r)),
    "subspace of outputs": lambda v, r: project(lambda: v, basis(v.shape[1], r), None),
    "subspace of inputs": lambda v, r: project(lambda: v, None, basis(v.shape[2], r)),
    "whole": lambda v, r: project(lambda: v, None, None),
}


def queries(q, o, i, seed=1):
    return torch.randn(q, o, i, generator=torch.Generator().manual_seed(seed))


def gradient_loops(calls, module):
    """Σ_calls Σ_t δ_t ā_tᵀ, one position at a time."""
    b, t = calls[0].inputs.shape[:2]
    ones = torch.ones(1, dtype=torch.float64)
    gradients = torch.zeros(b, module.d_out, module.columns, dtype=torch.float64)
    for call in calls:
        for row in range(b):
            for position in range(t):
                a = call.inputs[row, position].double()
                gradients[row] += torch.outer(
                    call.deltas[row, position].double(), torch.cat([a, ones]) if module.bias else a
                )
    return gradients


@pytest.mark.parametrize("uses", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMS)
def test_pairwise_scores_are_inner_products_with_the_gradient(form, shape, bias, uses):
    o, i, t, q, rank = SHAPES[shape].values()
    module = cases.tracked(o, i, bias)
    calls = cases.random_calls(module, b=5, t=t, uses=uses)
    low = FORMS[form](queries(q, o, module.columns), rank)
    expected = torch.einsum("qoi,boi->qb", low.dense.double(), gradient_loops(calls, module))
    oracles.assert_agree(pairwise_scores(calls, module, low), expected, 1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMS)
def test_pairwise_scores_of_a_bfloat16_pass_lose_digits_only(form, shape):
    o, i, t, q, rank = SHAPES[shape].values()
    module = cases.tracked(o, i, bias=True)
    calls = cases.random_calls(module, b=5, t=t, uses=2, dtype=torch.bfloat16)
    low = FORMS[form](queries(q, o, module.columns), rank)
    found = pairwise_scores(calls, module, low)
    expected = torch.einsum("qoi,boi->qb", low.dense.double(), gradient_loops(calls, module))
    assert found.dtype == torch.float32
    oracles.assert_agree(found, expected, 0.02)


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_pairwise_scores_of_a_model_at_full_rank_are_exact(family):
    model = cases.FAMILIES[family]()
    sequences = cases.corpus(17)
    for module in select_modules(model, "mlp"):
        v = queries(3, module.d_out, module.columns)
        low = low_rank(partial(iter, v), 99)
        for batch, calls in cases.passes(model, [module], sequences, 4):
            tokens = {s.sequence_id: s.token_ids for s in sequences}
            g = torch.stack([oracles.sequence_gradient(model, module.name, tokens[int(s)]) for s in batch.sequence_ids])
            expected = torch.einsum("qoi,boi->qb", v.double(), g)
            oracles.assert_agree(pairwise_scores(calls[module.name], module, low), expected, 2e-6)


def test_every_query_scores_as_it_does_alone():
    module = cases.tracked(6, 5, bias=True)
    calls = cases.random_calls(module, b=4, t=7)
    v = queries(5, 6, 6)
    together = pairwise_scores(calls, module, low_rank(lambda: v, 2))
    alone = torch.cat([pairwise_scores(calls, module, low_rank(lambda k=k: v[k : k + 1], 2)) for k in range(5)])
    oracles.assert_agree(together, alone, 1e-5)


@pytest.mark.parametrize("uses", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_token_scores_are_shares_of_one_position(bias, uses):
    module = cases.tracked(4, 3, bias)
    calls = cases.random_calls(module, b=2, t=6, uses=uses)
    v = queries(3, 4, module.columns)
    for row in range(2):
        found = token_scores(calls, module, row, v)
        for t in range(6):
            here = [type(c)(c.inputs[:, t : t + 1], c.deltas[:, t : t + 1]) for c in calls]
            expected = torch.einsum("qoi,oi->q", v.double(), gradient_loops(here, module)[row])
            oracles.assert_agree(found[:, t], expected, 1e-5)


@pytest.mark.parametrize("model", [*cases.FAMILIES, "looped", "tied"])
def test_token_scores_sum_to_the_inner_product_with_the_gradient(model):
    others = {"looped": ("step", cases.Looped), "tied": ("first|second", cases.Tied)}
    expression, make = others.get(model) or ("all", cases.FAMILIES[model])
    model = cases.frozen(make()) if expression != "all" else make()
    sequences = cases.corpus(11)
    modules = select_modules(model, expression)
    lengths = {s.sequence_id: len(s.token_ids) for s in sequences}
    for batch, calls in cases.passes(model, modules, sequences, 4):
        for module in modules:
            v = queries(2, module.d_out, module.columns)
            g = sequence_gradients(calls[module.name], module)
            for row, s in enumerate(batch.sequence_ids.tolist()):
                shares = token_scores(calls[module.name], module, row, v)
                oracles.assert_agree(shares.sum(1), torch.einsum("qoi,oi->q", v.double(), g[row].double()), 1e-5)
                assert not shares[:, lengths[s] - 1 :].any()  # the last token predicts nothing, padding neither


def test_the_credit_of_a_token_stands_at_the_position_before_it():
    model = cases.frozen(cases.Linear(vocabulary=5, width=5))
    model.embed.weight.data = torch.eye(5, dtype=torch.float64)
    head = select_modules(model, "head")[0]
    query = torch.zeros(1, 5, 5)
    query[0, 3, 2] = -1.0  # raises the logit of token 3 after token 2
    ((_, calls),) = cases.passes(model, [head], [TokenSequence(0, [1, 2, 3, 4, 2, 0])])
    scores = token_scores(calls["head"], head, 0, query)[0]
    assert scores.nonzero().flatten().tolist() == [1, 4]
    assert scores[1] > 0 > scores[4]  # position 1 predicts token 3 as the query does, position 4 another
