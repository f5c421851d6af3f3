"""One pass over many sequences: lazy, finite, repeatable, and gone without a trace."""

from __future__ import annotations

import copy
import math
import re

import cases
import pytest
import torch

from tasks.influence.batches import TokenSequence, batches
from tasks.influence.errors import InfluenceError
from tasks.influence.gradients import sequence_gradients
from tasks.influence.modules import select_modules
from tasks.influence.objectives import true_token_gradient
from tasks.influence.sweep import native_precision, sweep


def test_a_sweep_gives_each_batch_with_the_calls_of_every_module():
    model = cases.llama()
    modules = select_modules(model, "all")
    sequences = cases.corpus(17)
    given = []

    def stream():
        for batch in batches(sequences, 2):
            given.append(batch)
            yield batch

    for n, (batch, calls) in enumerate(sweep(model, modules, stream(), true_token_gradient), start=1):
        assert batch is given[-1]
        assert len(given) == n  # no batch is read before the last one was used
        assert set(calls) == {m.name for m in modules}
        for module in modules:
            (call,) = calls[module.name]
            assert call.deltas.shape == (*batch.token_ids.shape, module.d_out)
            assert call.inputs.shape == (*batch.token_ids.shape, module.d_in)
    assert n == 3


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_the_same_sweep_gives_the_same_bits(family):
    model = cases.FAMILIES[family](seed=1, dtype=torch.float32)
    modules = select_modules(model, "all")
    one, other = (cases.passes(model, modules, cases.corpus(17)) for _ in range(2))
    for (_, a), (_, b) in zip(one, other, strict=True):
        for module in modules:
            assert torch.equal(a[module.name][0].deltas, b[module.name][0].deltas)
            assert torch.equal(a[module.name][0].inputs, b[module.name][0].inputs)


def test_a_sweep_leaves_the_model_as_it_was():
    model = cases.gpt2()
    before = {name: p.clone() for name, p in model.named_parameters()}
    cases.passes(model, select_modules(model, "all"), cases.corpus(17))
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_a_sweep_under_no_grad_differentiates_all_the_same():
    model = cases.gpt2()
    module = select_modules(model, "mlp")[0]
    ((_, expected),) = cases.passes(model, [module], cases.corpus(17), 9)
    with torch.no_grad():
        ((_, found),) = cases.passes(model, [module], cases.corpus(17), 9)
    assert torch.equal(found[module.name][0].deltas, expected[module.name][0].deltas)


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_bfloat16_passes_point_where_float32_passes_point(family):
    model = cases.FAMILIES[family](seed=1, dtype=torch.float32)
    modules = select_modules(model, "mlp")
    sequences = cases.corpus(17)
    exact, rounded = (
        list(sweep(model, modules, batches(sequences, 6), true_token_gradient, precision))
        for precision in (torch.float32, torch.bfloat16)
    )
    for module in modules:
        a, b = (sequence_gradients(calls[module.name], module).flatten(1) for ((_, calls),) in (exact, rounded))
        cosines = torch.cosine_similarity(a, b)
        assert cosines.min() > 0.99, (module.name, cosines.tolist())
        assert not torch.equal(a, b)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("batch_size", [1, 3, 6])
def test_non_finite_gradients_are_refused_with_their_sequence_and_module(poison, batch_size):
    model = copy.deepcopy(cases.llama())
    model.model.embed_tokens.weight.data[22] = poison
    module = select_modules(model, r"model\.layers\.1\.mlp\.down_proj")
    healthy = cases.corpus(20)
    assert len(cases.passes(model, module, healthy, batch_size)) == math.ceil(6 / batch_size)
    sick = [*healthy, TokenSequence(777, [1, 2, 22, 3])]
    with pytest.raises(InfluenceError, match=r"module model\.layers\.1\.mlp\.down_proj: .*sequence 777 \(1 of"):
        cases.passes(model, module, sick, batch_size)
    assert not any(m._forward_hooks for m in model.modules())


def test_the_module_that_is_named_is_where_a_gradient_broke():
    model = copy.deepcopy(cases.neox())
    modules = select_modules(model, "mlp")
    h = next(m for name, m in model.named_modules() if name == modules[2].name)
    h.register_full_backward_hook(lambda module, inputs, outputs: (inputs[0] * math.nan,))  # after its own δ
    with pytest.raises(InfluenceError, match=f"module {re.escape(modules[1].name)}: expected finite output gradients"):
        cases.passes(model, modules, cases.corpus(17), 6)


def test_a_float16_model_on_a_cpu_is_refused():
    model = copy.deepcopy(cases.llama()).half()
    with pytest.raises(InfluenceError, match=r"expected float32 or bfloat16 weights on a CPU, found float16"):
        cases.passes(model, select_modules(model, "mlp"), cases.corpus(17), 6)


def test_float32_is_the_precision_where_nothing_multiplies_bfloat16_natively(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert native_precision(torch.device("cpu")) == torch.float32
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert native_precision(torch.device("cpu")) == torch.bfloat16
