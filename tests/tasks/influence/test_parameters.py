"""Every parameter's gradient by sequence, against autograd on one sequence at a time."""

from __future__ import annotations

from types import SimpleNamespace

import cases
import pytest
import torch
from torch import nn
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tasks.influence.batches import TokenSequence, collate
from tasks.influence.errors import InfluenceError
from tasks.influence.objectives import true_token_gradient
from tasks.influence.parameters import owners, require_autograd, sequence_gradients, trained_parameters
from tasks.influence.sweep import sweep_uses

LENGTHS = (9, 4, 7)


def opt():
    """Learned positions that are looked up from the attention mask, and a padding token."""
    config = OPTConfig(
        vocab_size=19, hidden_size=8, num_hidden_layers=2, ffn_dim=12, num_attention_heads=2,
        max_position_embeddings=24, word_embed_proj_dim=8, pad_token_id=1,
    )  # fmt: skip
    return cases.frozen(OPTForCausalLM(config))


def gemma():
    """A normalisation that multiplies by 1 + weight; an embedding that is scaled."""
    config = GemmaConfig(
        vocab_size=19, hidden_size=8, num_hidden_layers=2, intermediate_size=12, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4, max_position_embeddings=24,
    )  # fmt: skip
    return cases.frozen(GemmaForCausalLM(config))


def qwen():
    """A normalisation inside attention, whose output has four axes; an output head of its own."""
    config = Qwen3Config(
        vocab_size=19, hidden_size=8, num_hidden_layers=2, intermediate_size=12, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4, max_position_embeddings=24, tie_word_embeddings=False,
    )  # fmt: skip
    return cases.frozen(Qwen3ForCausalLM(config))


MODELS = {**cases.FAMILIES, "opt": opt, "gemma": gemma, "qwen": qwen}


def autograd(model, sequence: TokenSequence) -> dict[str, torch.Tensor]:
    """dL/dθ of one sequence by its own backward pass: L is the sum of −log p over its tokens."""
    ids = torch.tensor([sequence.token_ids])
    model.requires_grad_(True)
    try:
        logs = torch.log_softmax(model(input_ids=ids, use_cache=False).logits, -1)
        first = max(sequence.first_scored, 1)
        loss = -logs[0, first - 1 : -1].gather(-1, ids[0, first:, None]).sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    finally:
        model.requires_grad_(False)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(model.named_parameters(), gradients, strict=True)
    }


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_a_batch_are_those_of_each_sequence_alone(name):
    model = MODELS[name]()
    sequences = [
        TokenSequence(k, s.token_ids, first)
        for k, (s, first) in enumerate(zip(cases.corpus(17, LENGTHS), (1, 1, 4), strict=True))
    ]
    parameters = trained_parameters(model)
    assert {p.name for p in parameters} == {name for name, _ in model.named_parameters()}
    expected = [autograd(model, sequence) for sequence in sequences]
    for batch, uses, _ in sweep_uses(model, owners(parameters), [collate(sequences)], true_token_gradient):
        for parameter in parameters:
            for rows, found in sequence_gradients(model, parameter, uses):
                for k, gradient in zip(batch.sequence_ids[rows].tolist(), found, strict=True):
                    want = expected[k][parameter.name].flatten()
                    torch.testing.assert_close(gradient, want, rtol=1e-5, atol=2e-6, msg=parameter.name)


def test_a_tied_embedding_gathers_its_look_up_and_its_use_as_output_head():
    model = cases.gpt2()
    [embedding] = [p for p in trained_parameters(model) if p.group == "embedding"]
    assert embedding.name == "transformer.wte.weight"
    assert embedding.uses == (("transformer.wte", "weight"), ("lm_head", "weight"))


def test_groups_are_the_embedding_the_head_each_block_and_the_others():
    by_group: dict[str, set[str]] = {}
    for parameter in trained_parameters(qwen()):
        by_group.setdefault(parameter.group, set()).add(parameter.name)
    assert set(by_group) == {"embedding", "head", "block 0", "block 1", "other"}
    assert by_group["embedding"] == {"model.embed_tokens.weight"}
    assert by_group["head"] == {"lm_head.weight"}
    assert by_group["other"] == {"model.norm.weight"}


class Borrowing(GPT2LMHeadModel):
    """Uses the weight of its first normalisation once more, outside of the module that owns it."""

    def forward(self, input_ids=None, **keywords):
        output = super().forward(input_ids=input_ids, **keywords)
        output.logits = output.logits * self.transformer.h[0].ln_1.weight.mean()
        return output


def test_a_parameter_that_works_outside_of_its_module_is_named():
    config = GPT2Config(n_layer=1, n_embd=8, n_head=2, n_inner=12, vocab_size=17, n_positions=24)
    model = cases.frozen(Borrowing(config))
    with pytest.raises(InfluenceError, match=r"h\.0\.ln_1\.weight"):
        require_autograd(model, trained_parameters(model), TokenSequence(0, [3, 5, 2, 7]))
    sound = cases.gpt2()
    require_autograd(sound, trained_parameters(sound), TokenSequence(0, [3, 5, 2, 7]))


class Pair(nn.Module):
    """A module with a weight that returns two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, h):
        return h * self.weight, h


class Paired(cases.Toy):
    """A model in which a module's output is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()

    def body(self, h):
        return self.pair(h)[0]

    def forward(self, input_ids, use_cache=False) -> SimpleNamespace:
        return super().forward(input_ids, use_cache)


def test_a_module_whose_output_is_no_tensor_is_named():
    model = cases.frozen(Paired())
    batch = collate([TokenSequence(0, [3, 5, 2])])
    with pytest.raises(InfluenceError, match="module pair.*tuple"):
        list(sweep_uses(model, ["pair"], [batch], true_token_gradient))
