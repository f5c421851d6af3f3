"""Per-sequence gradients against differentiation with respect to the weights themselves."""

from __future__ import annotations

import cases
import oracles
import pytest
import torch

from tasks.influence.batches import Batch, TokenSequence, collate
from tasks.influence.gradients import homogeneous, scored_positions, sequence_gradients
from tasks.influence.modules import select_modules
from tasks.influence.objectives import true_token_loss
from tasks.influence.sweep import sweep


def gradients_of(model, module, sequences, batch_size=4):
    """∇W of each sequence by its id."""
    found = {}
    for batch, calls in cases.passes(model, [module], sequences, batch_size):
        found |= zip(batch.sequence_ids.tolist(), sequence_gradients(calls[module.name], module), strict=True)
    return found


def assert_gradients(model, module, sequences, tolerance=1e-6, batch_size=4):
    found = gradients_of(model, module, sequences, batch_size)
    for s in sequences:
        expected = oracles.sequence_gradient(model, module.name, s.token_ids, s.first_scored)
        oracles.assert_agree(found[s.sequence_id], expected, tolerance)


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_sequence_gradients_equal_differentiation_by_the_weights(family):
    model = cases.FAMILIES[family]()
    sequences = cases.corpus(17, lengths=(7, 3, 12, 5))
    for module in select_modules(model, "all"):
        assert_gradients(model, module, sequences)


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_sequence_gradients_of_a_float32_model_lose_digits_only(family):
    model = cases.FAMILIES[family](seed=1, dtype=torch.float32)
    for module in select_modules(model, "mlp"):
        assert_gradients(model, module, cases.corpus(17, lengths=(9, 4, 6)), tolerance=1e-4)


@pytest.mark.parametrize("name", ["embed_out", "lm_head"])
def test_the_head_is_a_module_like_another(name):
    model = cases.neox() if name == "embed_out" else cases.llama()
    for module in select_modules(model, "lm_head|embed_out"):
        assert_gradients(model, module, cases.corpus(17, lengths=(7, 3)))


@pytest.mark.parametrize("bias", [True, False])
def test_a_module_called_twice_has_the_gradient_of_both_calls(bias):
    model = cases.frozen(cases.Looped(bias))
    assert_gradients(model, select_modules(model, "step")[0], cases.corpus(11))


@pytest.mark.parametrize("bias", ["none", "shared"])
def test_modules_with_one_weight_have_the_gradient_of_both(bias):
    model = cases.frozen(cases.Tied(bias))
    assert_gradients(model, select_modules(model, "first|second")[0], cases.corpus(11))


@pytest.mark.parametrize("bias", ["own", "first", "second"])
def test_modules_with_one_weight_do_not_mix_their_biases(bias):
    model = cases.frozen(cases.Tied(bias))
    assert_gradients(model, select_modules(model, "first|second")[0], cases.corpus(11))


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_a_sequence_has_the_same_gradient_in_every_batch(family):
    model = cases.FAMILIES[family]()
    module = select_modules(model, "mlp")[-1]
    sequences = cases.corpus(17)
    alone = gradients_of(model, module, sequences, batch_size=1)
    for batch_size, order in [(2, sequences), (6, sequences), (6, sequences[::-1]), (4, sequences[2:])]:
        for sequence_id, gradient in gradients_of(model, module, order, batch_size).items():
            oracles.assert_agree(gradient, alone[sequence_id], 1e-6)


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_the_content_of_the_padding_reaches_no_gradient(family):
    model = cases.FAMILIES[family]()
    module = select_modules(model, "all")[0]
    batch = collate(cases.corpus(17, lengths=(3, 9)))
    other = batch.token_ids.clone()
    other[0, 3:] = torch.arange(6) + 5
    pair = [batch, Batch(batch.sequence_ids, other, batch.scored)]
    first, second = (
        sequence_gradients(c[module.name], module) for _, c in sweep(model, [module], pair, true_token_loss)
    )
    oracles.assert_agree(second, first, 1e-7)


@pytest.mark.parametrize("first_scored", [1, 4, 6])
def test_only_scored_tokens_have_a_gradient(first_scored):
    model = cases.gpt2()
    query = TokenSequence(0, [1, 2, 3, 4, 5, 6, 7], first_scored)
    for module in select_modules(model, "mlp"):
        assert_gradients(model, module, [query])


def test_a_sequence_of_one_token_has_no_gradient():
    model = cases.gpt2()
    module = select_modules(model, "mlp")[0]
    found = gradients_of(model, module, [TokenSequence(0, [3]), TokenSequence(1, [3, 4, 5])])
    assert not found[0].any()
    assert found[1].any()
    assert not gradients_of(model, module, [TokenSequence(0, [3])])[0].any()


def test_the_homogeneous_coordinate_stands_last():
    inputs = torch.randn(2, 3, 4, dtype=torch.float64)
    with_bias = homogeneous(inputs, cases.tracked(5, 4, bias=True))
    assert torch.equal(with_bias[..., :4], inputs.float())
    assert torch.equal(with_bias[..., 4], torch.ones(2, 3))
    assert torch.equal(homogeneous(inputs, cases.tracked(5, 4)), inputs.float())


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_scored_positions_are_those_of_each_sequence_alone(family):
    model = cases.FAMILIES[family]()
    module = select_modules(model, "mlp")[0]
    sequences = sorted(cases.corpus(17, lengths=(7, 3, 5)), key=lambda s: -len(s.token_ids))
    ((batch, calls),) = cases.passes(model, [module], sequences)
    a, d = scored_positions(calls[module.name], module, batch)
    expected = [pair for s in sequences for pair in oracles.positions(model, module.name, s.token_ids)]
    oracles.assert_agree(a, torch.stack([a for a, _ in expected]), 1e-6)
    oracles.assert_agree(d, torch.stack([d for _, d in expected]), 1e-6)
