"""Per-sequence gradients against differentiation with respect to the weights themselves."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import cases
import oracles
import pytest
import torch

from tasks.influence.batches import Batch, TokenSequence, collate
from tasks.influence.covariance import covariance_sums
from tasks.influence.gradients import homogeneous, inputs_of, scored_positions, sequence_gradients
from tasks.influence.modules import select_modules
from tasks.influence.objectives import true_token_gradient
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
        sequence_gradients(c[module.name], module) for _, c in sweep(model, [module], pair, true_token_gradient)
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


# Left padding

LEFT = [*cases.corpus(17, lengths=(7, 3, 12, 5)), TokenSequence(2, [4, 9, 1, 16, 2, 8], first_scored=4)]
# Eager attention of Llama and GPT-NeoX takes its softmax in float32, where float64's mask value is −∞ and a row of
# padding, which sees nothing, has no softmax: left padding needs sdpa or a model in float32.
ATTENTIONS = {"sdpa": (torch.float64, 1e-6), "eager": (torch.float32, 1e-4)}


def attending(model, attention: str):
    """A copy of the model whose attention is computed by one implementation."""
    model = copy.deepcopy(model)
    model.set_attn_implementation(attention)
    return model


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("model", cases.BIASES)
def test_left_padded_sequences_have_the_gradients_they_have_alone(model, attention):
    dtype, tolerance = ATTENTIONS[attention]
    model = attending(cases.BIASES[model](seed=1, dtype=dtype), attention)
    modules = select_modules(model, "all")
    ((_, calls),) = sweep(model, modules, [collate(LEFT, padding="left")], true_token_gradient)
    for module in modules:
        for found, s in zip(sequence_gradients(calls[module.name], module), LEFT, strict=True):
            expected = oracles.sequence_gradient(model, module.name, s.token_ids, s.first_scored)
            oracles.assert_agree(found, expected, tolerance)


@pytest.mark.parametrize("model", cases.BIASES)
def test_each_token_of_a_left_padded_sequence_has_the_gradient_it_has_alone(model):
    model = cases.BIASES[model]()
    modules = select_modules(model, "all")
    sequences = LEFT[:-1]
    ((batch, calls),) = sweep(model, modules, [collate(sequences, padding="left")], true_token_gradient)
    width = batch.token_ids.shape[1]
    for module in modules:
        (call,) = calls[module.name]
        shares = torch.einsum("bto,bti->btoi", call.deltas, inputs_of(call, module))
        for row, s in zip(shares, sequences, strict=True):
            alone = oracles.positions(model, module.name, s.token_ids)
            start, end = width - len(s.token_ids), width - 1
            oracles.assert_agree(row[start:end], torch.stack([torch.outer(d, a) for a, d in alone]), 1e-6)
            assert not row[:start].any(), f"{module.name}: the padding of sequence {s.sequence_id} has a gradient"
            assert not row[end:].any(), f"{module.name}: the last token of sequence {s.sequence_id} has a gradient"


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_the_content_of_the_left_padding_reaches_no_gradient(family):
    model = cases.FAMILIES[family]()
    modules = select_modules(model, "all")
    batch = collate(LEFT, padding="left")
    other = batch.token_ids.masked_fill(batch.attention_mask == 0, 13)
    assert not torch.equal(other, batch.token_ids)
    pair = [batch, Batch(batch.sequence_ids, other, batch.scored, batch.attention_mask, batch.position_ids)]
    (_, first), (_, second) = sweep(model, modules, pair, true_token_gradient)
    for module in modules:
        found, expected = (sequence_gradients(calls[module.name], module) for calls in (second, first))
        oracles.assert_agree(found, expected, 1e-7)


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_covariances_are_the_same_for_padding_on_either_side(family):
    model = cases.FAMILIES[family]()
    modules = select_modules(model, "all")
    right, left = (
        covariance_sums(sweep(model, modules, [collate(LEFT, padding=side)], true_token_gradient), modules)
        for side in ("right", "left")
    )
    for name, expected in right.items():
        oracles.assert_agree(left[name].inputs.dense, expected.inputs.dense, 1e-6)
        oracles.assert_agree(left[name].deltas.dense, expected.deltas.dense, 1e-6)
        assert left[name].positions == expected.positions


def test_sampled_labels_are_the_same_for_padding_on_either_side():
    model = cases.llama()
    labels = []
    for side in ("right", "left"):
        batch = collate(LEFT, padding=side)
        drawn = cases.sample_labels(
            torch.softmax(model(**batch.model_inputs, use_cache=False).logits, -1), batch, seed=3
        )
        labels.append([row[keep].tolist() for row, keep in zip(drawn, batch.scored, strict=True)])
    assert labels[0] == labels[1]


# Packing


def packed(documents: Sequence[Sequence[int]], mask: str | None, dtype: torch.dtype = torch.float64) -> Batch:
    """One row of several documents that do not see one another; the token that begins one is never predicted."""
    lengths = [len(d) for d in documents]
    tokens = torch.tensor([[token for d in documents for token in d]])
    scored = torch.cat([torch.arange(n) < n - 1 for n in lengths])[None]
    if mask is None:
        return Batch(torch.tensor([5]), tokens, scored)
    seen = torch.block_diag(*(torch.ones(n, n).tril() for n in lengths)).bool()[None, None]
    hidden = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    return Batch(torch.tensor([5]), tokens, scored, hidden if mask == "additive" else seen, positions)


DOCUMENTS = [[7, 2, 9, 11, 3], [5, 16, 1, 4, 8, 12, 2]]


def gradients_of_row(model, modules, batch):
    ((_, calls),) = sweep(model, modules, [batch], true_token_gradient)
    return {module.name: sequence_gradients(calls[module.name], module)[0] for module in modules}


# Eager attention adds its mask, whatever its type: a boolean one is for sdpa only.
@pytest.mark.parametrize(("attention", "mask"), [("sdpa", "additive"), ("sdpa", "boolean"), ("eager", "additive")])
@pytest.mark.parametrize("model", cases.BIASES)
def test_a_packed_row_has_the_sum_of_its_documents_gradients(model, attention, mask):
    model = attending(cases.BIASES[model](), attention)
    modules = select_modules(model, "all")
    for name, found in gradients_of_row(model, modules, packed(DOCUMENTS, mask)).items():
        expected = sum(oracles.sequence_gradient(model, name, document) for document in DOCUMENTS)
        oracles.assert_agree(found, expected, 1e-6)


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_without_mask_and_positions_a_packed_row_mixes_its_documents(family):
    model = cases.FAMILIES[family]()
    modules = select_modules(model, "all")
    apart, mixed = (gradients_of_row(model, modules, packed(DOCUMENTS, mask)) for mask in ("additive", None))
    for name, gradient in apart.items():
        distance = float((mixed[name] - gradient).norm() / gradient.norm())
        assert distance > 0.01, f"{name}: the documents' mask changes the gradient by {distance:.3g} only"


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_each_token_of_a_packed_row_has_the_gradient_it_has_in_its_document(family):
    model = cases.FAMILIES[family]()
    modules = select_modules(model, "all")
    ((batch, calls),) = sweep(model, modules, [packed(DOCUMENTS, "additive")], true_token_gradient)
    for module in modules:
        a, d = scored_positions(calls[module.name], module, batch)
        expected = [pair for document in DOCUMENTS for pair in oracles.positions(model, module.name, document)]
        oracles.assert_agree(a, torch.stack([a for a, _ in expected]), 1e-6)
        oracles.assert_agree(d, torch.stack([d for _, d in expected]), 1e-6)
