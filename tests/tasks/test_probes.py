"""Texts that nobody trained on, against inner products of autograd's own gradients."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from storage.errors import InputError
from storage.prompts import make_prompt
from storage.schemas import SCHEMAS
from storage.sequences import Part, write_manifest
from storage.store import create_store
from storage.tables import read_part, write_part
from tasks.compute import ComputeParameters
from tasks.fanout import Workers
from tasks.metrics import Damping
from tasks.probes import Probe, ProbeSet, Probing, score_probes
from tasks.studies.word_order import study_word_order

TEXTS = {"order kept": ("The otter went to the harbour.", "An otter went to a harbour."), "flipped": ("harbour otter",)}
ASKED = make_prompt("The otter went to the", " harbour.", "q0", "{}")


def probing(store, model, **changes) -> Probing:
    probes = tuple(Probe(kind, text) for kind, texts in TEXTS.items() for text in texts)
    given = {
        "store": store, "model": model, "modules": "mlp", "fit_id": None, "method": "identity", "damping": Damping(),
        "compute": ComputeParameters(batch_size=2), "sets": (ProbeSet("fable", (ASKED,), probes),),
    }  # fmt: skip
    return Probing(**given | changes)


def gradients_of_autograd(model, tokenizer, text: str, first: int) -> dict[str, torch.Tensor]:
    """Gradients of −log p of the tokens from `first` on, by parameter of the multilayer perceptrons."""
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    logits = model(ids).logits[0, :-1].log_softmax(-1)
    loss = -logits[torch.arange(ids.shape[1] - 1), ids[0, 1:]][first - 1 :].sum()
    named = {name: p for name, p in model.named_parameters() if ".mlp." in name}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


@pytest.fixture
def store(tmp_path):
    return create_store(tmp_path / "s")


def test_a_probes_influence_is_the_inner_product_of_gradients_and_splits_by_layer(store, gpt2):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(gpt2), AutoTokenizer.from_pretrained(gpt2)
    first = len(tokenizer("The otter went to the")["input_ids"])
    asked = gradients_of_autograd(model, tokenizer, "The otter went to the harbour.", first)
    probing_id = score_probes.fn(probing(store, gpt2), Workers())
    rows = read_part(store, "probe_influences", probing_id).to_pylist()
    assert len(rows) == 3 * 2
    for row in rows:
        found = gradients_of_autograd(model, tokenizer, row["text"], 1)
        names = [name for name in found if name.startswith(f"transformer.h.{row['layer']}.")]
        expected = sum(float((asked[name] * found[name]).sum()) for name in names)
        assert row["influence"] == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert {row["probe_group"]: row["text"] for row in rows}["flipped"] == "harbour otter"


def test_probes_are_scored_once_and_named_by_what_decides_their_numbers(store, gpt2, llama):
    first = probing(store, gpt2)
    probing_id = score_probes.fn(first, Workers())
    path = store.file("probe_influences", probing_id)
    before = path.stat().st_mtime_ns
    assert score_probes.fn(probing(store, gpt2, compute=ComputeParameters(batch_size=1)), Workers()) == probing_id
    assert path.stat().st_mtime_ns == before
    others = [
        probing(store, llama), probing(store, gpt2, modules="all"),
        probing(store, gpt2, sets=(ProbeSet("fable", (ASKED,), (Probe("order kept", "An otter."),)),)),
    ]  # fmt: skip
    assert len({first.probing_id, *(other.probing_id for other in others)}) == 4


def test_the_page_says_a_kinds_part_of_what_the_kept_order_teaches(store, gpt2):
    probing_id = score_probes.fn(probing(store, gpt2), Workers())
    sums: dict[str, float] = {}
    for row in read_part(store, "probe_influences", probing_id).to_pylist():
        sums[row["probe_group"]] = sums.get(row["probe_group"], 0.0) + row["influence"]
    page = study_word_order(store, {"gpt2": probing_id}, "")
    table = {row.name: row.cells[0].value for row in page.blocks[0].table.rows}
    assert table["order kept"] == "1.000"
    assert float(table["flipped"].replace("−", "-")) == pytest.approx(
        sums["flipped"] / (sums["order kept"] / 2), abs=1e-3
    )


def test_a_text_that_the_context_does_not_hold_is_refused(store, gpt2):
    asked = ProbeSet("fable", (ASKED,), (Probe("order kept", "otter " * 60),))
    with pytest.raises(InputError, match="probe 0 of fable.*expected 2 to 48 tokens.*Lengthen the text, or shorten it"):
        score_probes.fn(probing(store, gpt2, sets=(asked,)), Workers())


def test_a_sequence_of_the_corpus_is_scored_by_its_tokens_as_the_store_has_them(store, gpt2):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(gpt2), AutoTokenizer.from_pretrained(gpt2)
    # No text gives these tokens: they were cut out of the middle of a document, without the token that begins one.
    tokens = tokenizer("An otter went to a harbour.")["input_ids"][2:]
    write_part(store, "sequences", "p0", columns=columns("sequences", sequence_id=[7], token_ids=[tokens]))
    write_manifest(store, Part("p0", "x", "c", "t", "document", 48, 1, 0, 1, len(tokens), 7))
    in_two = (ASKED, make_prompt("Le loutre va au", " port.", "q1", '{"language": "fr"}'))
    asked = ProbeSet("fable", in_two, (Probe("text", "harbour otter"), Probe("first", sequence_id=7)))
    probing_id = score_probes.fn(probing(store, gpt2, sets=(asked,)), Workers())
    found = [row for row in read_part(store, "probe_influences", probing_id).to_pylist() if row["probe"] == 1]
    assert {row["text"] for row in found} == {None}
    ids = torch.tensor([tokens])
    loss = -model(ids).logits[0, :-1].log_softmax(-1)[torch.arange(len(tokens) - 1), ids[0, 1:]].sum()
    named = {name: p for name, p in model.named_parameters() if ".mlp." in name}
    own = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
    for prompt in in_two:
        first = len(tokenizer(prompt.prompt)["input_ids"])
        query = gradients_of_autograd(model, tokenizer, prompt.prompt + prompt.completion, first)
        expected = sum(float((query[name] * own[name]).sum()) for name in named)
        scored = sum(row["influence"] for row in found if row["query_id"] == prompt.query_id)
        assert scored == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert read_part(store, "probe_sequences", probing_id).to_pylist() == [
        {"probing_id": probing_id, "probe_set": "fable", "probe": 1, "sequence_id": 7}
    ]
    one, two = read_part(store, "probe_queries", probing_id).to_pylist()
    assert (one["query_id"], two["completion"], two["metadata"]) == ("q0", " port.", '{"language": "fr"}')
    whole = tokenizer(ASKED.prompt + ASKED.completion, return_tensors="pt")["input_ids"]
    first = len(tokenizer(ASKED.prompt)["input_ids"])
    logits = model(whole).logits[0, first - 1 : -1].log_softmax(-1).detach()
    assert one["n_completion_tokens"] == whole.shape[1] - first
    assert one["log_probability"] == pytest.approx(
        float(logits[torch.arange(len(logits)), whole[0, first:]].sum()), rel=1e-4
    )


def test_a_sequence_that_the_context_does_not_hold_is_named(store, gpt2):
    write_part(store, "sequences", "p0", columns=columns("sequences", sequence_id=[7], token_ids=[[5] * 60]))
    write_manifest(store, Part("p0", "x", "c", "t", "document", 60, 1, 0, 1, 60, 7))
    asked = ProbeSet("fable", (ASKED,), (Probe("first", sequence_id=7),))
    with pytest.raises(InputError, match="probe 0 of fable, sequence 7: expected 1 to 48 tokens.*Leave the model out"):
        score_probes.fn(probing(store, gpt2, sets=(asked,)), Workers())


def columns(relation: str, **given) -> dict[str, list]:
    n = len(next(iter(given.values())))
    return {name: given.get(name, [None] * n) for name in SCHEMAS[relation].names}
