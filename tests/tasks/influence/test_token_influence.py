"""Input- and output-token influence, against gradients of single tokens, moved copies and finite differences."""

from __future__ import annotations

import copy
import re
from types import SimpleNamespace

import cases
import oracles
import pytest
import torch
from oracles import assert_agree
from torch import nn

from tasks.influence.batches import TokenSequence
from tasks.influence.errors import InfluenceError
from tasks.influence.modules import select_modules
from tasks.influence.queries import preconditioned_gradients
from tasks.influence.token_influence import MovedModel

QUERY = TokenSequence(0, (3, 5, 2, 7), 2)
[SEQUENCE] = cases.corpus(17, (6,))
TIGHT = {"gpt2": 1e-9, "neox": 1e-9, "llama": 1e-5}  # Llama normalises in float32
DAMPING = 0.3


def explicit_inverses(modules, seed: int = 3) -> dict[str, torch.Tensor]:
    """(G + λI)⁻¹ of each module, written out, of a random positive semidefinite G."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for m in modules:
        d = m.d_out * m.columns
        half = torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
        found[m.name] = torch.linalg.inv(half @ half.T + DAMPING * torch.eye(d, dtype=torch.float64))
    return found


def setting(family: str, expression: str = "mlp"):
    """A model, its modules, (G + λI)⁻¹ ∇L_q by explicit matrices, and the code under test."""
    model = cases.FAMILIES[family]()
    modules = select_modules(model, expression)
    inverses = explicit_inverses(modules)
    solutions = {
        m.name: (inverses[m.name] @ oracles.sequence_gradient(model, m.name, QUERY.token_ids, 2).flatten()).view(
            m.d_out, m.columns
        )
        for m in modules
    }
    return model, modules, solutions, MovedModel(model, modules, solutions)


def moved_copy(model, modules, solutions, alpha: float):
    """A model of its own, moved by α along −solutions."""
    other = copy.deepcopy(model)
    for m in modules:
        layer, step = other.get_submodule(m.name), -alpha * solutions[m.name]
        weight = step[:, : m.d_in]
        layer.weight.data += weight.T if m.kind == "Conv1D" else weight
        if m.bias:
            layer.bias.data += step[:, -1]
    return other


def by_token(model, tokens, vectors=None) -> torch.Tensor:
    """log p of each token but the first, from the model's ordinary forward pass."""
    given = {"input_ids": torch.tensor([tokens])} if vectors is None else {"inputs_embeds": vectors}
    logs = model(**given).logits[0].double().log_softmax(-1)
    return torch.stack([logs[t - 1, tokens[t]] for t in range(1, len(tokens))])


def scaled(model, tokens, scales) -> torch.Tensor:
    """The embeddings of the tokens, each times its own scale."""
    return model.get_input_embeddings()(torch.tensor([tokens])) * torch.as_tensor(scales)[:, None]


def scale_gradients(model, tokens) -> torch.Tensor:
    """∂ log p(z)/∂ε by token: the embedding times the gradient there."""
    vectors = scaled(model, tokens, torch.ones(len(tokens), dtype=torch.float64)).detach().requires_grad_()
    [found] = torch.autograd.grad(by_token(model, tokens, vectors).sum(), vectors)
    return (found * vectors)[0].sum(-1).detach()


def influence_of(model, modules, solutions, tokens, scales) -> float:
    """∇L_zᵀ (G + λI)⁻¹ ∇L_q of a sequence whose embeddings are scaled, by autograd in a copy's parameters."""
    other = copy.deepcopy(model).requires_grad_(True)
    layers = {m.name: dict(other.get_submodule(m.name).named_parameters()) for m in modules}
    parameters = [p for layer in layers.values() for p in layer.values()]
    loss = -by_token(other, tokens, scaled(other, tokens, scales).detach()).sum()
    gradients = iter(torch.autograd.grad(loss, parameters))
    total = 0.0
    for m in modules:
        of = {name: next(gradients) for name in layers[m.name]}
        weight = of["weight"].T if m.kind == "Conv1D" else of["weight"]
        matrix = torch.cat([weight, of["bias"][:, None]], 1) if m.bias else weight
        total += float((matrix * solutions[m.name]).sum())
    return total


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_in_the_limit_a_tokens_output_influence_is_its_own_gradient_times_the_solution(family):
    model, modules, solutions, moved = setting(family)
    tokens = SEQUENCE.token_ids
    expected = [
        sum(
            (oracles.sequence_gradient(model, m.name, tokens[: t + 1], first_scored=t) * solutions[m.name]).sum()
            for m in modules
        )
        for t in range(1, len(tokens))
    ]
    assert_agree(moved.limit(SEQUENCE).outputs, torch.stack(expected), TIGHT[family])


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_output_influences_sum_to_the_influence_of_the_sequence_by_explicit_matrices(family):
    model, modules, _, moved = setting(family)
    inverses = explicit_inverses(modules)
    influence = sum(
        oracles.sequence_gradient(model, m.name, SEQUENCE.token_ids).flatten()
        @ inverses[m.name]
        @ oracles.sequence_gradient(model, m.name, QUERY.token_ids, 2).flatten()
        for m in modules
    )
    assert_agree(moved.limit(SEQUENCE).outputs.sum(), influence, TIGHT[family])


def test_under_ekfac_they_sum_to_the_influence_that_a_trace_stores():
    model = cases.gpt2(dtype=torch.float32)
    modules = select_modules(model, "mlp")
    metrics = cases.fit(model, modules, cases.corpus(17)).metrics(DAMPING)
    stored = sum(cases.influences(model, modules, [QUERY], [SEQUENCE], metrics).values())
    found = preconditioned_gradients(model, modules, [QUERY], lambda m: metrics[m.name])
    moved = MovedModel(model, modules, {name: value[0] for name, value in found.items()})
    assert_agree(moved.limit(SEQUENCE).outputs.sum(), stored[0, 0], 1e-4)
    # What the query's log p rises by is its own influence on itself; only its completion is counted.
    own = sum(cases.influences(model, modules, [QUERY], [TokenSequence(0, QUERY.token_ids, 2)], metrics).values())
    assert_agree(moved.rise(QUERY), own[0, 0], 1e-4)


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_at_a_step_both_are_differences_between_a_moved_copy_and_the_model(family):
    model, modules, solutions, moved = setting(family, "all")
    alpha, tokens = 0.05, SEQUENCE.token_ids
    other = moved_copy(model, modules, solutions, alpha)
    found = moved.moved(SEQUENCE, alpha)
    assert_agree(found.outputs, (by_token(other, tokens) - by_token(model, tokens)) / alpha, 10 * TIGHT[family])
    expected = (scale_gradients(other, tokens) - scale_gradients(model, tokens)) / alpha
    assert_agree(found.inputs, expected, 10 * TIGHT[family])


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_in_the_limit_a_tokens_input_influence_is_what_its_scale_adds_to_the_influence(family):
    model, modules, solutions, moved = setting(family)
    tokens, h = SEQUENCE.token_ids, 1e-4 if family != "llama" else 1e-2
    expected = []
    for t in range(len(tokens)):
        up, down = torch.ones(2, len(tokens), dtype=torch.float64)
        up[t] += h
        down[t] -= h
        sides = (influence_of(model, modules, solutions, tokens, scales) for scales in (up, down))
        expected.append((next(sides) - next(sides)) / (2 * h))
    found = moved.limit(SEQUENCE).inputs
    assert_agree(found, torch.tensor(expected), 1e-6 if family != "llama" else 1e-3)
    # All together: the derivative along the scale of every embedding.
    ones = torch.ones(len(tokens), dtype=torch.float64)
    whole = [influence_of(model, modules, solutions, tokens, ones + s * h) for s in (1, -1)]
    assert_agree(found.sum(), (whole[0] - whole[1]) / (2 * h), 1e-6 if family != "llama" else 1e-3)


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_a_step_errs_by_its_own_length(family):
    _, _, _, moved = setting(family)
    limit = moved.limit(SEQUENCE)
    errors = {"inputs": [], "outputs": []}
    for alpha in (1e-2, 1e-3):
        found = moved.moved(SEQUENCE, alpha)
        for name, of in errors.items():
            of.append(float((getattr(found, name) - getattr(limit, name)).norm()))
    for first, second in errors.values():
        assert second == pytest.approx(first / 10, rel=0.2)


def test_a_tied_head_moves_and_the_look_up_does_not():
    model = cases.gpt2()
    modules = select_modules(model, "lm_head")
    assert model.lm_head.weight is model.transformer.wte.weight
    untied = copy.deepcopy(model)
    untied.lm_head.weight = nn.Parameter(untied.lm_head.weight.detach().clone())
    head = {"lm_head": torch.randn(17, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}
    moved = MovedModel(model, modules, head)
    tokens, alpha = SEQUENCE.token_ids, 0.01
    other = copy.deepcopy(untied)
    other.lm_head.weight.data -= alpha * head["lm_head"]
    found = moved.moved(SEQUENCE, alpha)
    assert_agree(found.outputs, (by_token(other, tokens) - by_token(untied, tokens)) / alpha, 1e-9)
    expected = (scale_gradients(other, tokens) - scale_gradients(untied, tokens)) / alpha
    assert_agree(found.inputs, expected, 1e-9)
    # The influences leave the look-up out as well.
    stored = [calls["lm_head"] for _, calls in cases.passes(model, modules, [SEQUENCE])]
    influence = torch.einsum("to,ti,oi->", stored[0][0].deltas[0], stored[0][0].inputs[0], head["lm_head"])
    assert_agree(moved.limit(SEQUENCE).outputs.sum(), influence, 1e-6)  # its softmax is in float32


def test_modules_that_share_a_weight_move_together():
    model = cases.frozen(cases.Tied("own"))
    modules = select_modules(model, "first|second")
    step = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    other = copy.deepcopy(model)
    other.first.weight.data -= 0.01 * step[:, :4]
    other.first.bias.data -= 0.01 * step[:, 4]
    assert other.first.weight is other.second.weight
    found = MovedModel(model, modules, {"first": step}).moved(TokenSequence(0, (1, 4, 2, 9)), 0.01)
    assert_agree(found.outputs, (by_token(other, (1, 4, 2, 9)) - by_token(model, (1, 4, 2, 9))) / 0.01, 1e-9)


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_the_models_own_weights_stay_also_when_a_step_fails(family):
    model, modules, solutions, moved = setting(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    moved.limit(SEQUENCE)
    moved.moved(SEQUENCE, 0.1)
    bad = MovedModel(model, modules, {name: value * torch.inf for name, value in solutions.items()})
    with pytest.raises(InfluenceError, match=re.escape("at α = 0.1: expected finite numbers")):
        bad.moved(SEQUENCE, 0.1)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(p.requires_grad for p in model.parameters())


class TwoTables(cases.Toy):
    """A model that looks its tokens up in a second table, which no embedding shows."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Embedding(11, 4)

    def forward(self, input_ids=None, use_cache=False, inputs_embeds=None):
        """Logits that lack the second table where embeddings are given."""
        found = super().forward(input_ids, use_cache, inputs_embeds)
        return SimpleNamespace(logits=found.logits if input_ids is None else self.head(self.other(input_ids)))


def test_a_model_that_reads_its_tokens_elsewhere_is_refused():
    model = cases.frozen(TwoTables())
    moved = MovedModel(model, select_modules(model, "head"), {"head": torch.zeros(11, 4)})
    with pytest.raises(InfluenceError, match="it reads its tokens in another place too"):
        moved.limit(TokenSequence(0, (1, 2, 3)))


def test_a_model_that_takes_no_embeddings_is_refused():
    model = cases.frozen(cases.Toy())
    model.forward = lambda input_ids, use_cache=False: None
    moved = MovedModel(model, select_modules(model, "head"), {"head": torch.zeros(11, 4)})
    with pytest.raises(InfluenceError, match="expected one that takes embeddings"):
        moved.limit(TokenSequence(0, (1, 2, 3)))
