"""The head apart: the same gradients as through whole logits, and the model left as it was."""

from __future__ import annotations

from functools import partial

import cases
import oracles
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from tasks.influence import head as head_file
from tasks.influence.batches import TokenSequence, batches, collate
from tasks.influence.head import Head, apart
from tasks.influence.modules import select_modules
from tasks.influence.objectives import sampled_token_gradient, true_token_gradient, true_token_loss
from tasks.influence.sweep import sweep

NO_CAST = torch.autocast("cpu", torch.bfloat16, enabled=False)
OBJECTIVES = {"true": true_token_gradient, "sampled": partial(sampled_token_gradient, seed=3)}


def gemma2(cap: float | None) -> Gemma2ForCausalLM:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=17, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, final_logit_softcapping=cap, attn_implementation="eager",
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return Gemma2ForCausalLM(config).double().eval().requires_grad_(False)


def deltas(model, sequences, objective) -> list[torch.Tensor]:
    modules = select_modules(model, "all")
    return [
        calls[module.name][0].deltas
        for _, calls in sweep(model, modules, batches(sequences, 3), objective)
        for module in modules
    ]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("rows", [1, 5, 10**6], ids="{} rows at a time".format)
@pytest.mark.parametrize("family", cases.FAMILIES)
def test_gradients_through_some_rows_at_a_time_equal_those_through_all_logits(family, rows, objective, monkeypatch):
    model, sequences = cases.FAMILIES[family](seed=1), cases.corpus(17)
    with monkeypatch.context() as patch:
        patch.setattr(head_file, "_is_last", lambda model, module: False)
        whole = deltas(model, sequences, OBJECTIVES[objective])
    monkeypatch.setattr(head_file, "CACHED", rows * 17)
    with apart(model, NO_CAST) as head:
        assert head.linear is not None
    for one, other in zip(deltas(model, sequences, OBJECTIVES[objective]), whole, strict=True):
        oracles.assert_agree(one, other, 1e-6)


@pytest.mark.parametrize("cap", [None, 0.05])
def test_a_model_that_caps_its_logits_is_differentiated_through_the_cap(cap):
    model = gemma2(cap)
    with apart(model, NO_CAST) as head:
        assert (head.linear is None) == (cap is not None)
    modules = select_modules(model, "mlp")
    batch = collate(cases.corpus(17)[:3])
    ((_, calls),) = sweep(model, modules, [batch], true_token_gradient)
    for module in modules:
        weight = model.get_submodule(module.name).weight.requires_grad_()
        loss = true_token_loss(model(**batch.model_inputs, use_cache=False).logits, batch)
        (expected,) = torch.autograd.grad(loss, weight)
        weight.requires_grad_(False)
        (call,) = calls[module.name]
        oracles.assert_agree(torch.einsum("bto,bti->oi", call.deltas, call.inputs), expected, 1e-5)


def test_nothing_is_computed_for_rows_that_are_not_scored():
    seen = []

    def objective(logits, batch, rows):
        seen.extend(rows.tolist())
        return true_token_gradient(logits, batch, rows)

    batch = collate([TokenSequence(0, [3, 4, 5, 6, 7], first_scored=3), TokenSequence(1, [1, 2])])
    gradient = Head().gradient(torch.randn(2, 5, 17), batch, objective)
    assert seen == [2, 3, 5]
    assert gradient.flatten(0, 1).any(1).nonzero().flatten().tolist() == [2, 3, 5]


@pytest.mark.parametrize("fails", [False, True])
def test_the_head_is_put_back(fails):
    model = cases.llama()
    before = model(input_ids=torch.tensor([[1, 2]])).logits

    def objective(logits, batch, rows):
        if fails:
            raise KeyboardInterrupt
        return true_token_gradient(logits, batch, rows)

    try:
        deltas(model, cases.corpus(17)[:2], objective)
    except KeyboardInterrupt:
        assert fails
    assert "forward" not in vars(model.get_output_embeddings())
    assert torch.equal(model(input_ids=torch.tensor([[1, 2]])).logits, before)


def test_a_head_that_somebody_watches_is_left_alone():
    model, seen = cases.llama(), []
    handle = model.get_output_embeddings().register_forward_hook(lambda *_: seen.append(1))
    with apart(model, NO_CAST) as head:
        assert head.linear is None
        model(input_ids=torch.tensor([[1, 2]]))
    assert seen == [1]
    handle.remove()
