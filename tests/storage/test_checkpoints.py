from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from storage.checkpoints import (
    context_length,
    find_checkpoint,
    load_model,
    load_tokenizer,
    model_fingerprint,
    tokenizer_fingerprint,
)
from storage.errors import ModelError


@pytest.fixture
def copy(gpt2, tmp_path):
    return shutil.copytree(gpt2, tmp_path / "model")


def change_weight(path, change):
    weights = load_file(path / "model.safetensors")
    name = "transformer.h.0.mlp.c_fc.weight"
    weights[name] = change(weights[name].clone())
    save_file(weights, path / "model.safetensors", {"format": "pt"})


def test_one_changed_weight_changes_the_fingerprint(copy):
    before, tokens = model_fingerprint(copy), tokenizer_fingerprint(copy)
    change_weight(copy, lambda w: w.index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(1.5)))
    assert model_fingerprint(copy) != before
    assert tokenizer_fingerprint(copy) == tokens


def test_a_loaded_model_is_frozen_float32_and_in_evaluation_mode(gpt2):
    model = load_model(gpt2)
    assert not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training


def test_nan_weights_are_refused_with_the_parameter_s_name(copy):
    change_weight(copy, lambda w: w.index_fill(0, torch.tensor([0]), float("nan")))
    with pytest.raises(ModelError, match=r"h\.0\.mlp\.c_fc\.weight.*NaN or infinite"):
        load_model(copy)


def test_pickled_weights_alone_are_refused(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only pickled weights \(pytorch_model.bin\)"):
        find_checkpoint(str(copy))


def test_weights_that_were_cut_short_are_refused(copy):
    weights = copy / "model.safetensors"
    for kept in (weights.stat().st_size - 4, 200, 6):  # in the tensors, in the header, in the header's length
        weights.write_bytes(weights.read_bytes()[:kept])
        with pytest.raises(ModelError, match="expected a causal language model that transformers loads"):
            load_model(copy)


def test_a_model_without_tokenizer_is_refused(copy):
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="expected a tokenizer"):
        find_checkpoint(str(copy))


def test_a_model_without_configuration_is_refused(copy):
    (copy / "config.json").unlink()
    with pytest.raises(ModelError, match=r"expected config\.json"):
        find_checkpoint(str(copy))


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(ModelError, match="expected a directory, found none"):
        find_checkpoint(str(tmp_path / "nothing"))


def test_an_unreachable_hub_name_says_what_to_do(monkeypatch):
    import huggingface_hub

    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ModelError, match="no route to host.*download the model and name its directory"):
        find_checkpoint("someone/some-model")


def test_a_broken_tokenizer_is_named(copy):
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="tokenizer in"):
        load_tokenizer(copy)


def test_the_context_comes_from_the_configuration(gpt2, llama):
    assert context_length(gpt2) == context_length(llama) == 48


def test_saving_a_tokenizer_again_keeps_its_fingerprint_and_another_vocabulary_does_not(copy, tmp_path):
    from tasks.learning.tokenizer import train_tokenizer

    before = tokenizer_fingerprint(copy)
    tokenizer = load_tokenizer(copy)
    tokenizer(["a", "longer text"], padding=True, truncation=True, max_length=4)
    tokenizer.save_pretrained(tmp_path / "again")
    assert tokenizer_fingerprint(tmp_path / "again") == before
    train_tokenizer(["something else entirely"], 270).save_pretrained(tmp_path / "other")
    assert tokenizer_fingerprint(tmp_path / "other") != before
