"""Tail-patch: against torch's own SGD, to first order against autograd, and that the weights come back."""

from __future__ import annotations

import copy

import cases
import pytest
import torch
from oracles import assert_agree

from tasks.influence.batches import TokenSequence
from tasks.influence.tail_patch import tail_patches

QUERIES = {4: TokenSequence(4, (3, 5, 2, 7), 2), 9: TokenSequence(9, (1, 4, 4, 2, 6, 9), 5)}
SEQUENCES = {s.sequence_id: s for s in cases.corpus(17, (7, 3, 5))}
ASKED_OF = {40: [4, 9], 47: [9], 54: [4]}


def log_p(model, query):
    """log p of the tokens from first_scored on, token by token."""
    ids = torch.tensor([list(query.token_ids)])
    logs = model(ids).logits[0].log_softmax(-1)
    return sum(logs[t - 1, ids[0, t]] for t in range(query.first_scored, ids.shape[1]))


def loss(model, sequence):
    """Mean over the predicted tokens."""
    return -log_p(model, TokenSequence(0, sequence.token_ids, 1)) / (len(sequence.token_ids) - 1)


@pytest.mark.parametrize("family", list(cases.FAMILIES))
def test_a_patch_is_a_step_of_torch_s_own_gradient_descent(family):
    model = cases.FAMILIES[family]()
    found = {(p.query, p.sequence): p for p in tail_patches(model, QUERIES, SEQUENCES, ASKED_OF, 0.01, 2)}
    assert set(found) == {(4, 40), (9, 40), (9, 47), (4, 54)}
    for (query, sequence), patch in found.items():
        other = copy.deepcopy(model).requires_grad_(True)
        optimizer = torch.optim.SGD(other.parameters(), lr=0.01)
        before = log_p(other, QUERIES[query])
        loss(other, SEQUENCES[sequence]).backward()
        optimizer.step()
        assert_agree([patch.before, patch.after], [before.item(), log_p(other, QUERIES[query]).item()], 1e-6)


def test_to_first_order_a_patch_is_the_rate_times_the_inner_product_of_the_gradients():
    model = copy.deepcopy(cases.llama()).requires_grad_(True)
    parameters = list(model.parameters())
    query, sequence = QUERIES[4], SEQUENCES[54]
    of_query = torch.autograd.grad(log_p(model, query), parameters)
    of_sequence = torch.autograd.grad(loss(model, sequence), parameters)
    product = -sum((a * b).sum() for a, b in zip(of_query, of_sequence, strict=True)).item()
    errors = []
    for rate in (1e-2, 1e-3):
        (patch,) = tail_patches(model, {4: query}, {54: sequence}, {54: [4]}, rate, 1)
        errors.append(abs((patch.after - patch.before) / rate - product))
    assert errors[1] < 0.05 * abs(product)
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.5)  # what is left is of second order


@pytest.mark.parametrize("fails", [False, True])
def test_every_weight_comes_back_to_the_last_bit(fails):
    model = copy.deepcopy(cases.gpt2(dtype=torch.float32))
    model.transformer.wpe.weight.requires_grad_(True)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    patches = tail_patches(model, QUERIES, SEQUENCES, {40: [4], 47: [77 if fails else 9]}, 0.5, 1)
    if fails:
        with pytest.raises(KeyError):
            list(patches)
    else:
        assert all(abs(p.after - p.before) > 1e-3 for p in patches)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.requires_grad == (name == "transformer.wpe.weight")
