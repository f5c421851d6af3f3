"""Trajectories: which folders are checkpoints, whose second moments are whose, what is said of a damaged one."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from transformers.optimization import Adafactor

from storage.errors import MismatchError, ModelError
from storage.trajectory import read_second_moments, read_trajectory

SEQUENCES = [{"input_ids": [k, 5, 9, 7 + k], "labels": [k, 5, 9, 7 + k]} for k in range(1, 9)]


def copies(source, folder, *names):
    for name in names:
        shutil.copytree(source, folder / name)
    return folder


def hugging_face_training(model, folder, **arguments):
    """Two epochs of a Trainer as anybody uses it; returns the model, whose parameters the optimizer has."""
    network = AutoModelForCausalLM.from_pretrained(model)
    optimizers = arguments.pop("optimizers", lambda network: (None, None))(network)
    settings = TrainingArguments(
        str(folder), num_train_epochs=2, per_device_train_batch_size=4, save_strategy="epoch", logging_steps=1,
        learning_rate=1e-3, use_cpu=True, report_to=[], disable_tqdm=True, **arguments,
    )  # fmt: skip
    trainer = Trainer(network, settings, train_dataset=SEQUENCES, optimizers=optimizers)
    trainer.train()
    return network, trainer.optimizer


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (["checkpoint-20", "checkpoint-3", "checkpoint-100"], [3, 20, 100]),
        (["step0", "step-512", "step1000-tokens4B"], [0, 512, 1000]),
        (["epoch_2", "llama2-epoch_10"], [2, 10]),
        (["checkpoint-1", "best", ".checkpoint-2"], [1]),
    ],
)
def test_sub_folders_with_a_model_and_a_number_are_checkpoints_by_step(tmp_path, gpt2, names, steps):
    found = read_trajectory(copies(gpt2, tmp_path, *names))
    assert [c.step for c in found] == steps
    assert all(c.learning_rate is None and c.second_moments is None for c in found)


def test_two_folders_of_one_step_and_a_folder_without_any_are_refused(tmp_path, gpt2):
    with pytest.raises(ModelError, match="step in their name, as checkpoint-500, found nothing"):
        read_trajectory(tmp_path)
    copies(gpt2, tmp_path, "step7", "checkpoint-7")
    with pytest.raises(ModelError, match="found checkpoint-7 and step7, both of step 7"):
        read_trajectory(tmp_path)
    with pytest.raises(ModelError, match="expected a directory, found none"):
        read_trajectory(tmp_path / "nowhere")


def test_checkpoints_of_different_shapes_and_half_written_ones_are_refused_by_name(tmp_path, gpt2, llama):
    copies(gpt2, tmp_path, "checkpoint-1", "checkpoint-2")
    weights = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    weights["transformer.wpe.weight"] = torch.zeros(50, 16)
    save_file(weights, tmp_path / "checkpoint-2" / "model.safetensors")
    with pytest.raises(MismatchError, match=r"checkpoint-1: transformer.wpe.weight \(48, 16\), found .* \(50, 16\)"):
        read_trajectory(tmp_path)
    (tmp_path / "checkpoint-2" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ModelError, match="readable"):
        read_trajectory(tmp_path)
    (tmp_path / "checkpoint-2" / "model.safetensors").unlink()
    (tmp_path / "checkpoint-2" / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match="only pickled weights"):
        read_trajectory(tmp_path)
    (tmp_path / "checkpoint-2" / "config.json").unlink()
    with pytest.raises(ModelError, match="Remove the folder if its writing was broken off"):
        read_trajectory(tmp_path)


def test_checkpoints_of_another_model_or_another_tokenizer_are_refused_by_name(tmp_path, gpt2, llama):
    copies(gpt2, tmp_path, "checkpoint-1", "checkpoint-2")
    assert len(read_trajectory(tmp_path, gpt2)) == 2
    with pytest.raises(MismatchError, match=r"checkpoint-1: expected the weights of .*found"):
        read_trajectory(tmp_path, llama)
    path = copies(gpt2, tmp_path, "checkpoint-3") / "checkpoint-3" / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    tokenizer["normalizer"] = {"type": "Lowercase"}
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(MismatchError, match=r"checkpoint-3: expected the tokenizer of .*found another one"):
        read_trajectory(tmp_path, gpt2)


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_moments_of_a_hugging_face_trainer_go_to_the_weights_they_belong_to(tmp_path, request, model):
    network, optimizer = hugging_face_training(request.getfixturevalue(model), tmp_path)
    first, last = read_trajectory(tmp_path)
    assert (first.step, last.step) == (2, 4)
    history = {e["step"]: e["learning_rate"] for e in json.loads((last.path / "trainer_state.json").read_text())[
        "log_history"] if "learning_rate" in e}  # fmt: skip
    assert (first.learning_rate, last.learning_rate) == (history[2], history[4])
    found = read_second_moments(last)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(found[name], optimizer.state[parameter]["exp_avg_sq"] / (1 - 0.999**4))
    assert found.keys() == dict(network.named_parameters()).keys()


def test_moments_of_one_optimizer_group_follow_the_model_s_order(tmp_path, gpt2):
    plain = lambda network: (torch.optim.Adam(network.parameters(), betas=(0.9, 0.9)), None)  # noqa: E731
    network, optimizer = hugging_face_training(gpt2, tmp_path, optimizers=plain)
    found = read_second_moments(read_trajectory(tmp_path)[-1])
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(found[name], optimizer.state[parameter]["exp_avg_sq"] / (1 - 0.9**4))


def test_adafactor_s_rows_and_columns_make_the_moments_that_it_divides_by(tmp_path, llama):
    rule = lambda network: (Adafactor(network.parameters(), lr=1e-3, relative_step=False), None)  # noqa: E731
    network, optimizer = hugging_face_training(llama, tmp_path, optimizers=rule)
    found = read_second_moments(read_trajectory(tmp_path)[-1])
    weight = network.model.layers[0].mlp.up_proj.weight
    state = optimizer.state[weight]
    step = Adafactor._approx_sq_grad(state["exp_avg_sq_row"], state["exp_avg_sq_col"])  # 1 / √v̂
    torch.testing.assert_close(found["model.layers.0.mlp.up_proj.weight"].rsqrt(), step)


def test_an_optimizer_state_that_runs_code_or_fits_no_weight_is_refused(tmp_path, gpt2):
    copies(gpt2, tmp_path, "checkpoint-5")
    path = tmp_path / "checkpoint-5" / "optimizer.pt"
    torch.save({"state": {}, "param_groups": [{"params": [], "hook": shutil.rmtree}]}, path)
    (checkpoint,) = read_trajectory(tmp_path)
    with pytest.raises(ModelError, match="tensors and numbers only"):
        read_second_moments(checkpoint)
    torch.save({"state": {0: {"step": 1, "exp_avg_sq": torch.ones(3)}}, "param_groups": [{"params": [0]}]}, path)
    with pytest.raises(MismatchError, match=r"transformer.wte.weight of shape .* found shape \(3,\)"):
        read_second_moments(checkpoint)
    path.unlink()
    with pytest.raises(ModelError, match="expected second moments"):
        read_second_moments(read_trajectory(tmp_path)[0])
