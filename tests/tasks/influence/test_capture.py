"""What the hooks see, and that they leave nothing behind."""

from __future__ import annotations

import cases
import oracles
import pytest
import torch
from torch import nn

from tasks.influence.batches import collate
from tasks.influence.capture import capturing
from tasks.influence.errors import InfluenceError
from tasks.influence.gradients import sequence_gradients
from tasks.influence.modules import select_modules
from tasks.influence.objectives import true_token_loss


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules())


def run_once(model, modules, sequences):
    batch = collate(sequences)
    with capturing(model, modules) as captured:
        loss = true_token_loss(model(input_ids=batch.token_ids, use_cache=False).logits, batch)
        return captured.gradients(loss)


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_inputs_and_deltas_are_those_of_a_probe(family):
    model = cases.FAMILIES[family]()
    sequence = cases.corpus(17, lengths=(8,))[0]
    modules = select_modules(model, "all")
    calls = run_once(model, modules, [sequence])
    for module in modules:
        (call,) = calls[module.name]
        a, d = map(torch.stack, zip(*oracles.positions(model, module.name, sequence.token_ids), strict=True))
        oracles.assert_agree(call.inputs[0, :7], a[:, : module.d_in], 1e-6)
        oracles.assert_agree(call.deltas[0, :7], d, 1e-6)
        assert not call.deltas[0, 7].any()  # the last token predicts nothing


def test_calls_stand_in_the_order_of_the_pass():
    model = cases.frozen(cases.Looped())
    sequence = cases.corpus(11, lengths=(6,))[0]
    first, second = run_once(model, select_modules(model, "step"), [sequence])["step"]
    expected = oracles.positions(model, "step", sequence.token_ids)
    oracles.assert_agree(first.inputs[0, :5], torch.stack([a[:4] for a, _ in expected[:5]]), 1e-6)
    oracles.assert_agree(second.inputs[0, :5], torch.stack([a[:4] for a, _ in expected[5:]]), 1e-6)


def test_a_module_that_does_not_reach_the_loss_has_zero_deltas():
    class Aside(cases.Toy):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def body(self, h):
            self.unused(h)
            return self.used(h)

    model = cases.frozen(Aside())
    calls = run_once(model, select_modules(model, "used|unused"), cases.corpus(11))
    assert not calls["unused"][0].deltas.any()
    assert calls["used"][0].deltas.any()


def test_no_hook_stays_on_the_model():
    model = cases.llama()
    run_once(model, select_modules(model, "all"), cases.corpus(17))
    assert hooks_of(model) == 0


def test_no_hook_stays_on_the_model_after_an_error():
    model = cases.llama()
    hooks = []

    def fail():
        with capturing(model, select_modules(model, "all")):
            hooks.append(hooks_of(model))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [*hooks, hooks_of(model)] == [14, 0]


def test_the_graph_begins_at_the_first_tracked_module():
    model = cases.llama()
    wants = {}

    def note(name):
        def hook(module, inputs, output):
            wants[name] = output.requires_grad

        return hook

    handles = [m.register_forward_hook(note(name)) for name, m in model.named_modules() if name.endswith("_proj")]
    try:
        run_once(model, select_modules(model, r"model\.layers\.1\.mlp\.up_proj"), cases.corpus(17))
    finally:
        for handle in handles:
            handle.remove()
    assert not any(wanted for name, wanted in wants.items() if name.startswith("model.layers.0")), wants
    assert wants["model.layers.1.mlp.down_proj"]
    assert all(p.grad is None for p in model.parameters())


def test_outputs_that_are_not_sequences_of_positions_are_refused():
    class Flat(cases.Toy):
        def body(self, h):
            return self.inner(h.flatten(0, 1)).view(h.shape)

    model = Flat()
    model.inner = nn.Linear(4, 4)
    model = cases.frozen(model)
    with pytest.raises(InfluenceError, match=r"module inner: .*\[batch, position, width\].*Leave it out"):
        run_once(model, select_modules(model, "inner"), cases.corpus(11))


class InPlace(cases.Toy):
    """Overwrites what a module gave, as nn.ReLU(inplace=True) does."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.middle, self.down = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def body(self, h):
        return self.down(torch.relu_(self.middle(torch.tanh(self.up(h)))))


@pytest.mark.parametrize("expression", ["up|middle|down", "middle"])
def test_an_output_changed_in_place_gives_the_right_gradient_or_an_error(expression):
    model = cases.frozen(InPlace())
    modules = select_modules(model, expression)
    sequence = cases.corpus(11, lengths=(6,))[0]
    try:
        calls = run_once(model, modules, [sequence])
    except InfluenceError:
        return
    for module in modules:
        expected = oracles.sequence_gradient(model, module.name, sequence.token_ids)
        oracles.assert_agree(sequence_gradients(calls[module.name], module)[0], expected, 1e-6)
