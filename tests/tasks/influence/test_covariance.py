"""A and S against loops over scored positions."""

from __future__ import annotations

from functools import partial

import cases
import oracles
import pytest
import torch

from tasks.influence.batches import TokenSequence
from tasks.influence.capture import Call
from tasks.influence.covariance import CovarianceSums, add_covariances, covariance_sums
from tasks.influence.modules import select_modules
from tasks.influence.objectives import sampled_token_gradient


def sums_of(model, modules, sequences, batch_size=4, objective=None):
    return covariance_sums(cases.passes(model, modules, sequences, batch_size, objective), modules)


def loops(model, name, sequences, seed=None):
    """Σ ā āᵀ and Σ δ δᵀ, one position at a time."""
    a_ii = d_oo = 0
    for s in sequences:
        labels = None if seed is None else oracles.sampled_labels(model, s.token_ids, s.sequence_id, seed)
        for a, d in oracles.positions(model, name, s.token_ids, labels):
            a_ii, d_oo = a_ii + torch.outer(a, a), d_oo + torch.outer(d, d)
    return a_ii, d_oo


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_covariances_equal_loops_over_scored_positions(family):
    model = cases.FAMILIES[family]()
    sequences = cases.corpus(17, lengths=(7, 3, 6))
    modules = select_modules(model, "all")
    sums = sums_of(model, modules, sequences)
    for module in modules:
        a_ii, d_oo = loops(model, module.name, sequences)
        oracles.assert_agree(sums[module.name].inputs.dense, a_ii, 1e-6)
        oracles.assert_agree(sums[module.name].deltas.dense, d_oo, 1e-6)
        assert (sums[module.name].positions, sums[module.name].sequences) == (6 + 2 + 5, 3)


def test_covariances_of_the_true_fisher_use_the_sampled_labels():
    model = cases.gpt2()
    sequences = cases.corpus(17)
    modules = select_modules(model, "mlp")
    sums = sums_of(model, modules, sequences, objective=partial(sampled_token_gradient, seed=5))
    for module in modules:
        a_ii, d_oo = loops(model, module.name, sequences, seed=5)
        oracles.assert_agree(sums[module.name].inputs.dense, a_ii, 1e-6)
        oracles.assert_agree(sums[module.name].deltas.dense, d_oo, 1e-6)


def test_covariances_of_a_module_called_twice_hold_both_calls():
    model = cases.frozen(cases.Looped())
    sequences = cases.corpus(11)
    sums = sums_of(model, select_modules(model, "step"), sequences)["step"]
    a_ii, d_oo = loops(model, "step", sequences)
    oracles.assert_agree(sums.inputs.dense, a_ii, 1e-6)
    oracles.assert_agree(sums.deltas.dense, d_oo, 1e-6)


@pytest.mark.parametrize("width", [3, 255, 256, 257, 301])
def test_covariances_of_any_width_are_whole_and_symmetric(width):
    module = cases.tracked(width, width + 1, bias=True)
    passes = [(cases.full_batch(3, 5), {"m": cases.random_calls(module, 3, 5, seed=s)}) for s in (0, 1)]
    sums = covariance_sums(passes, [module])["m"]
    a = torch.cat([calls["m"][0].inputs.flatten(0, 1) for _, calls in passes]).double()
    a = torch.cat([a, torch.ones(len(a), 1)], dim=1)
    d = torch.cat([calls["m"][0].deltas.flatten(0, 1) for _, calls in passes]).double()
    oracles.assert_agree(sums.inputs.dense, a.T @ a, 1e-6)
    oracles.assert_agree(sums.deltas.dense, d.T @ d, 1e-6)
    assert torch.equal(sums.inputs.dense, sums.inputs.dense.T)
    assert torch.equal(sums.deltas.dense, sums.deltas.dense.T)


def test_the_homogeneous_coordinate_holds_the_mean_input_and_one():
    model = cases.gpt2()
    module = select_modules(model, "mlp")[0]
    sequences = cases.corpus(17)
    sums = sums_of(model, [module], sequences)[module.name]
    inputs = torch.stack([a for s in sequences for a, _ in oracles.positions(model, module.name, s.token_ids)])
    assert sums.inputs.dense.shape == (9, 9)
    assert sums.inputs.dense[-1, -1] == sums.positions == len(inputs)
    oracles.assert_agree(sums.inputs.dense[-1, :-1] / sums.positions, inputs[:, :-1].mean(0), 1e-6)


@pytest.mark.parametrize("family", cases.FAMILIES)
@pytest.mark.parametrize("objective", [None, partial(sampled_token_gradient, seed=1)], ids=["empirical", "sampled"])
def test_covariances_do_not_depend_on_batch_size_or_order(family, objective):
    model = cases.FAMILIES[family]()
    modules = select_modules(model, "mlp")
    sequences = cases.corpus(17)
    expected = sums_of(model, modules, sequences, 1, objective)
    for order, batch_size in [(sequences, 2), (sequences, 6), (sequences[::-1], 4)]:
        for name, found in sums_of(model, modules, order, batch_size, objective).items():
            oracles.assert_agree(found.inputs.dense, expected[name].inputs.dense, 1e-6)
            oracles.assert_agree(found.deltas.dense, expected[name].deltas.dense, 1e-6)
            assert (found.positions, found.sequences) == (expected[name].positions, expected[name].sequences)


@pytest.mark.parametrize("cuts", [[6], [1, 5], [2, 2, 2], [1] * 6])
def test_covariances_do_not_depend_on_the_parts_of_a_corpus(cuts):
    model = cases.neox()
    module = select_modules(model, "mlp")[0]
    sequences = cases.corpus(17)
    whole = sums_of(model, [module], sequences)[module.name]
    parts, rest = [], sequences
    for size in cuts:
        parts.append(sums_of(model, [module], rest[:size])[module.name])
        rest = rest[size:]
    found = add_covariances(parts)
    oracles.assert_agree(found.inputs.dense, whole.inputs.dense, 1e-6)
    oracles.assert_agree(found.deltas.dense, whole.deltas.dense, 1e-6)
    assert (found.positions, found.sequences) == (whole.positions, whole.sequences)


def test_adding_parts_keeps_digits_that_float32_would_lose():
    big, small = (
        CovarianceSums(cases.one_block(torch.full((1, 1), x)), cases.one_block(torch.zeros(1, 1)), 1, 1)
        for x in (2.0**24, 1.0)
    )
    assert add_covariances([big, small, small]).inputs.dense[0, 0] == 2.0**24 + 2


def test_covariances_of_a_bfloat16_pass_are_added_up_in_float32():
    module = cases.tracked(1, 1, bias=True)
    one = Call(torch.ones(1, 1, 1).bfloat16(), torch.ones(1, 1, 1).bfloat16())
    sums = covariance_sums([(cases.full_batch(1, 1), {"m": [one]})] * 301, [module])["m"]
    assert sums.inputs.dense.tolist() == [[301.0, 301.0], [301.0, 301.0]]  # bfloat16 would stop counting at 256
    assert sums.deltas.dense.tolist() == [[301.0]]


def test_a_sequence_that_predicts_nothing_counts_as_a_sequence_only():
    model = cases.gpt2()
    module = select_modules(model, "mlp")[0]
    with_it = [TokenSequence(0, [3]), TokenSequence(1, [3, 4, 5])]
    one, both = (sums_of(model, [module], s)[module.name] for s in (with_it[1:], with_it))
    oracles.assert_agree(both.inputs.dense, one.inputs.dense, 1e-7)
    assert (both.positions, both.sequences) == (2, 2)
