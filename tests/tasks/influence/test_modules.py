"""Which matrices are attributed, and that the coverage table hides nothing."""

from __future__ import annotations

from collections import Counter

import cases
import pytest
from transformers import GPT2LMHeadModel, LlamaForCausalLM

from tasks.influence.errors import InfluenceError
from tasks.influence.modules import GROUPS, coverage, layer_of, select_modules

BLOCK = {  # modules per block: names, MLP first
    "gpt2": (["mlp.c_fc", "mlp.c_proj"], ["attn.c_attn", "attn.c_proj"]),
    "neox": (["mlp.dense_h_to_4h", "mlp.dense_4h_to_h"], ["attention.query_key_value", "attention.dense"]),
    "llama": (
        ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"],
    ),
}
PREFIX = {"gpt2": "transformer.h", "neox": "gpt_neox.layers", "llama": "model.layers"}


@pytest.mark.parametrize("group", ["mlp", "attention", "all"])
@pytest.mark.parametrize("family", cases.FAMILIES)
def test_a_group_names_the_matrices_of_every_block(family, group):
    mlp, attention = BLOCK[family]
    wanted = {"mlp": mlp, "attention": attention, "all": mlp + attention}[group]
    expected = {f"{PREFIX[family]}.{layer}.{name}" for layer in (0, 1) for name in wanted}
    assert {m.name for m in select_modules(cases.FAMILIES[family](), group)} == expected


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_a_tracked_module_describes_w_as_output_by_input(family):
    model = cases.FAMILIES[family]()
    for module in select_modules(model, "all"):
        layer = model.get_submodule(module.name)
        o, i = layer.weight.T.shape if module.kind == "Conv1D" else layer.weight.shape
        assert (module.d_out, module.d_in, module.bias) == (o, i, layer.bias is not None)
        assert module.parameters == sum(p.numel() for p in layer.parameters()) == o * module.columns
        assert module.layer == layer_of(module.name) == int(module.name.split(".")[2])


def test_gpt2_conv1d_is_tracked_as_written_down_transposed():
    fc = select_modules(cases.gpt2(), r".*\.0\.mlp\.c_fc")[0]
    assert (fc.kind, fc.d_out, fc.d_in, fc.columns) == ("Conv1D", 12, 8, 9)


def test_an_expression_matches_whole_names():
    assert [m.name for m in select_modules(cases.llama(), r"model\.layers\.1\.mlp\.up_proj")] == [
        "model.layers.1.mlp.up_proj"
    ]
    with pytest.raises(InfluenceError):
        select_modules(cases.llama(), r"layers\.1\.mlp\.up_proj")


def test_an_expression_that_matches_nothing_names_what_there_is():
    with pytest.raises(InfluenceError, match=r"'decoder.*'.*GPT2LMHeadModel.*transformer\.h\.0\.attn\.c_attn"):
        select_modules(cases.gpt2(), "decoder.*")


def test_an_expression_that_matches_only_embeddings_and_norms_is_refused():
    with pytest.raises(InfluenceError, match="found none"):
        select_modules(cases.gpt2(), r"transformer\.(wte|wpe|ln_f)")


def test_a_broken_expression_names_the_groups():
    with pytest.raises(InfluenceError, match=r"'mlp\.\('.*mlp, attention, all"):
        select_modules(cases.gpt2(), "mlp.(")


def test_modules_with_one_weight_are_one_module():
    model = cases.frozen(cases.Tied())
    assert [m.name for m in select_modules(model, "first|second")] == ["first"]


@pytest.mark.parametrize("expression", [*GROUPS, r"lm_head|embed_out", ".*"])
@pytest.mark.parametrize("family", cases.FAMILIES)
def test_coverage_counts_every_parameter_once(family, expression):
    model = cases.FAMILIES[family]()
    rows = coverage(model, select_modules(model, expression), expression)
    assert sum(row.parameters for row in rows) == model.num_parameters()
    assert max(Counter(row.module for row in rows).values()) == 1
    assert all(row.reason for row in rows)


@pytest.mark.parametrize("expression", [*GROUPS, "lm_head", ".*"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_coverage_counts_as_tracked_what_is_tracked(family, expression):
    model = cases.FAMILIES[family]()
    modules = select_modules(model, expression)
    inside = {row.module: row.parameters for row in coverage(model, modules, expression) if row.tracked}
    assert inside == {m.name: m.parameters for m in modules}


@pytest.mark.parametrize("expression", ["mlp", "all", ".*"])
def test_coverage_counts_tied_modules_once(expression):
    expression = {"mlp": "first", "all": "first|second"}.get(expression, expression)
    model = cases.frozen(cases.Tied("own"))
    rows = coverage(model, select_modules(model, expression), expression)
    assert sum(row.parameters for row in rows) == sum(p.numel() for p in model.parameters())
    second = next(row for row in rows if row.module == "second")
    assert "shares its weight with first" in second.reason


def test_coverage_gives_tied_embeddings_one_row_with_their_parameters():
    model = cases.gpt2()
    assert isinstance(model, GPT2LMHeadModel)
    rows = {row.module: row for row in coverage(model, select_modules(model, "mlp"), "mlp")}
    assert rows["transformer.wte"].parameters == 17 * 8
    assert rows["lm_head"].parameters == 0
    assert "shares" in rows["lm_head"].reason


def test_coverage_says_why_each_parameter_is_out():
    model = cases.llama()
    assert isinstance(model, LlamaForCausalLM)
    rows = {row.module: row for row in coverage(model, select_modules(model, "mlp"), "mlp")}
    assert rows["model.layers.0.mlp.up_proj"].tracked
    assert "does not match 'mlp'" in rows["model.layers.0.self_attn.q_proj"].reason
    assert "not a linear map" in rows["model.norm"].reason
    assert "not a linear map" in rows["model.embed_tokens"].reason


def test_a_module_that_is_named_but_not_supported_is_listed_with_its_type():
    model = cases.llama()
    expression = r"model\.(embed_tokens|norm|layers\.0\.mlp\..*)"
    modules = select_modules(model, expression)
    rows = {row.module: row for row in coverage(model, modules, expression)}
    assert [m.name.rsplit(".", 1)[1] for m in modules] == ["gate_proj", "up_proj", "down_proj"]
    for name, kind in (("model.embed_tokens", "Embedding"), ("model.norm", "LlamaRMSNorm")):
        assert not rows[name].tracked
        assert rows[name].reason.startswith(f"matches {expression!r}, but {kind} is not a linear map")
        assert rows[name].reason.endswith("unsupported")


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("transformer.h.3.mlp.c_fc", 3),
        ("model.layers.11.mlp.experts.4.up", 11),
        ("lm_head", -1),
        ("layers2.fc", -1),
    ],
)
def test_the_layer_is_the_first_number_of_a_name(name, layer):
    assert layer_of(name) == layer
