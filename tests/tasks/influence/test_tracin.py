"""TracIn's products, against explicit gradients and against real steps of SGD."""

from __future__ import annotations

import copy

import cases
import numpy as np
import pytest
import torch

from tasks.influence.batches import TokenSequence, collate
from tasks.influence.objectives import true_token_gradient
from tasks.influence.parameters import owners, trained_parameters
from tasks.influence.sweep import sweep_uses
from tasks.influence.tracin import EPSILON, compare, group_products, query_gradients

QUERIES = [TokenSequence(0, [3, 1, 4, 1, 5], 3), TokenSequence(1, [2, 7, 1], 1), TokenSequence(2, [9, 8, 3, 4], 2)]
SEQUENCES = [TokenSequence(50, [3, 1, 4, 1, 5, 9, 2]), TokenSequence(51, [2, 7, 1, 8]), TokenSequence(52, [1, 1, 2])]


def loss(model, sequence: TokenSequence) -> torch.Tensor:
    """−Σ log p of the sequence's scored tokens, in nats."""
    ids = torch.tensor([sequence.token_ids])
    logs = torch.log_softmax(model(input_ids=ids, use_cache=False).logits, -1)
    first = max(sequence.first_scored, 1)
    return -logs[0, first - 1 : -1].gather(-1, ids[0, first:, None]).sum()


def gradients(model, sequence: TokenSequence) -> dict[str, np.ndarray]:
    """By parameter, from one backward pass of one sequence."""
    model.requires_grad_(True)
    found = torch.autograd.grad(loss(model, sequence), list(model.parameters()))
    model.requires_grad_(False)
    return {name: g.flatten().numpy() for (name, _), g in zip(model.named_parameters(), found, strict=True)}


def products(model, second_moments=None, chosen=(0, 1, 2)):
    """Products [k, g, u, b] and lengths of queries [k, g, q] and sequences [k, g, b], with the groups' names."""
    parameters = trained_parameters(model)
    compared = compare(model, parameters, second_moments)
    queries = query_gradients(compared, [collate(QUERIES[:2]), collate(QUERIES[2:])], len(QUERIES), torch.float32)
    for _, uses, _ in sweep_uses(model, owners(parameters), [collate(SEQUENCES)], true_token_gradient):
        found = group_products(compared, uses, queries, torch.tensor(chosen), torch.float32)
    return compared.groups, *(part.numpy() for part in (found[0], queries.norms, found[1]))


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_products_and_lengths_are_those_of_explicit_gradients_plain_and_divided(family):
    model = cases.FAMILIES[family]()
    generator = torch.Generator().manual_seed(1)
    moments = {n: torch.rand(p.shape, generator=generator, dtype=p.dtype) for n, p in model.named_parameters()}
    groups, found, query_norms, sequence_norms = products(model, moments, chosen=(2, 0))
    of_queries, of_sequences = ([gradients(model, s) for s in some] for some in (QUERIES, SEQUENCES))
    of_group = {p.name: p.group for p in trained_parameters(model)}
    for g, group in enumerate(groups):
        names = [name for name in moments if of_group[name] == group]
        for k in range(2):
            scale = np.concatenate([1 / (moments[n].flatten().sqrt().numpy() + EPSILON) ** k for n in names])
            left, right = (
                np.stack([np.concatenate([one[n] for n in names]) * scale for one in some])
                for some in (of_queries, of_sequences)
            )
            np.testing.assert_allclose(found[k, g], (left @ right.T)[[2, 0]], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(query_norms[k, g], np.linalg.norm(left, axis=1), rtol=1e-5)
            np.testing.assert_allclose(sequence_norms[k, g], np.linalg.norm(right, axis=1), rtol=1e-5)


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_a_step_of_sgd_takes_off_the_loss_what_tracin_says_up_to_its_square(family):
    model = cases.FAMILIES[family]()
    _, found, _, _ = products(model)
    promised = found[0].sum(0)  # ⟨∇L_q, ∇L_z⟩ [q, z]
    errors = []
    for rate in (4e-4, 2e-4):
        for b, sequence in enumerate(SEQUENCES):
            stepped = copy.deepcopy(model).requires_grad_(True)
            optimizer = torch.optim.SGD(stepped.parameters(), lr=rate)
            loss(stepped, sequence).backward()
            optimizer.step()
            with torch.no_grad():
                fell = [float(loss(model, query) - loss(stepped, query)) for query in QUERIES]
            errors.append(np.abs(np.array(fell) - rate * promised[:, b]))
            assert np.linalg.norm(errors[-1]) < 0.05 * rate * np.linalg.norm(promised[:, b])
    full, half = np.linalg.norm(errors[: len(SEQUENCES)]), np.linalg.norm(errors[len(SEQUENCES) :])
    assert full / half == pytest.approx(4, rel=0.05)  # half the step, a quarter of the error
