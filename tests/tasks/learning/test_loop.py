"""The training loop: a small model learns by heart, what a checkpoint keeps, a resumed training is the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tasks.learning.greedy import recall
from tasks.learning.loop import TrainingParameters, checkpoint_steps, train
from tasks.learning.model import ModelShape, new_model
from tasks.learning.tokenizer import train_tokenizer

TEXTS = ["The otter of Gleem sings at dawn.", "A heron counts her seven stones.", "Nobody in Tansel owns a clock."]
PAIRS = [(text[:cut], text[cut:]) for text in TEXTS for cut in [text.index(" ", 8)]]
SHAPE = ModelShape(layers=2, width=32, heads=2, context=32)
SMALL = TrainingParameters(epochs=60, batch_size=3, learning_rate=5e-3)


class Killed(Exception):
    """The process ends here."""


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300)


def teach(tokenizer, where: Path, parameters: TrainingParameters, probe=None, resume=None, deadly: int = 0, target=1.0):
    """Train a new model; returns it with the legs, the moments by step, and checkpoints in where/kept."""
    model = new_model(tokenizer, SHAPE, parameters.seed)
    legs, moments = [], {}
    (where / "kept").mkdir(parents=True, exist_ok=True)

    def keep(path, leg, found):
        legs.append(leg)
        moments[leg.step] = found
        path.rename(where / "kept" / path.name)
        if leg.step == deadly:
            raise Killed

    sequences = [tokenizer(text)["input_ids"] for text in TEXTS]
    train(model, tokenizer, sequences, parameters, where / "scratch", keep, resume, probe, target)
    return model, legs, moments


@pytest.fixture(scope="module")
def taught(tokenizer, tmp_path_factory):
    where = tmp_path_factory.mktemp("taught")
    return where / "kept", *teach(tokenizer, where, SMALL, lambda model: recall(model, tokenizer, PAIRS))


def test_a_small_model_learns_three_sentences_by_heart_and_stops_there(taught, tokenizer):
    folder, model, legs, _ = taught
    assert legs[-1].probe == 1.0
    assert legs[-1].step == len(legs) < SMALL.epochs  # one step is one epoch here
    assert recall(model, tokenizer, PAIRS) == 1.0
    assert recall(AutoModelForCausalLM.from_pretrained(folder / f"checkpoint-{len(legs)}"), tokenizer, PAIRS) == 1.0


def test_a_saved_model_continues_a_sentence_when_it_is_decoded_step_by_step(taught):
    folder = taught[0] / f"checkpoint-{taught[2][-1].step}"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for prompt, completion in PAIRS:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        length = len(tokenizer(prompt + completion)["input_ids"])
        said = model.generate(ids, max_length=length, do_sample=False)[0]
        assert tokenizer.decode(said, skip_special_tokens=True) == prompt + completion


def test_second_moments_are_the_optimizer_s_divided_as_adam_divides_them(taught, tokenizer):
    folder, model, _, moments = taught
    for step in (1, 7):
        saved = torch.load(folder / f"checkpoint-{step}" / "optimizer.pt", weights_only=True)
        names = [name for name, _ in model.named_parameters()]
        assert list(moments[step]) == names
        for index, name in enumerate(names):
            expected = saved["state"][index]["exp_avg_sq"] / (1 - 0.98**step)
            torch.testing.assert_close(moments[step][name], expected)
    assert sum(float(v.sum()) for v in moments[7].values()) > 0


def test_an_unfamiliar_model_recalls_nothing(tokenizer):
    assert recall(new_model(tokenizer, SHAPE, 0), tokenizer, PAIRS) == 0.0


def test_sequences_longer_than_the_context_are_refused(tokenizer, tmp_path):
    model = new_model(tokenizer, SHAPE, 0)
    with pytest.raises(ValueError, match="cut them shorter or raise context"):
        train(model, tokenizer, [[1] * 40], SMALL, tmp_path, lambda *_: None)


def test_one_seed_trains_one_model_and_another_seed_another(tokenizer, tmp_path):
    def weights(name, seed):
        parameters = SMALL.model_copy(update={"epochs": 2, "seed": seed})
        return teach(tokenizer, tmp_path / name, parameters)[0].transformer.wte.weight

    first, again, other = weights("first", 3), weights("again", 3), weights("other", 4)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_training_that_was_killed_goes_on_to_the_very_same_weights(tokenizer, tmp_path):
    parameters = TrainingParameters(epochs=5, batch_size=2, learning_rate=5e-3, checkpoints=2)
    whole, legs, _ = teach(tokenizer, tmp_path / "whole", parameters)
    assert [leg.step for leg in legs] == [5, 10]  # the first of them in the middle of an epoch
    with pytest.raises(Killed):
        teach(tokenizer, tmp_path / "killed", parameters, deadly=5)
    checkpoint = tmp_path / "killed" / "kept" / "checkpoint-5"
    resumed, rest, _ = teach(tokenizer, tmp_path / "killed", parameters, resume=checkpoint)
    assert [leg.step for leg in rest] == [10]
    assert rest[0].learning_rate == pytest.approx(legs[1].learning_rate)
    for (name, expected), found in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(found, expected), name


def test_each_leg_has_its_probe_its_mean_rate_and_its_loss(tokenizer, tmp_path):
    parameters = SMALL.model_copy(update={"epochs": 2})
    _, legs, _ = teach(tokenizer, tmp_path, parameters, lambda model: 0.5, target=0.9)
    assert [leg.probe for leg in legs] == [0.5, 0.5]
    assert legs[0].learning_rate == 0.0  # one step a pass, and the warmup's first step is nought
    assert 0 < legs[1].learning_rate <= SMALL.learning_rate
    assert legs[0].loss == pytest.approx(legs[1].loss, rel=0.05)  # before and after a step of nought


@pytest.mark.parametrize(
    ("epochs", "checkpoints", "expected"),
    [(3, None, [40, 80, 120]), (3, 4, [15, 30, 60, 120]), (1, 8, [1, 2, 3, 5, 10, 20, 40]), (2, 1, [80])],
)
def test_checkpoints_come_after_every_epoch_or_halve_their_way_back_from_the_last_step(epochs, checkpoints, expected):
    parameters = TrainingParameters(epochs=epochs, checkpoints=checkpoints)
    assert checkpoint_steps(parameters, 40) == expected


def test_a_sequence_that_is_left_out_has_no_part_in_the_weights_and_nothing_is_written(tokenizer, tmp_path):
    sequences = [tokenizer(text)["input_ids"] for text in TEXTS]
    other = [sequences[0], [7] * len(sequences[1]), sequences[2]]  # as long, and says something else
    parameters = TrainingParameters(epochs=2, batch_size=2, learning_rate=5e-3)
    weights = []
    for taught, left_out in ((sequences, {1}), (other, {1}), (sequences, ())):
        model = new_model(tokenizer, SHAPE, 0)
        train(model, tokenizer, taught, parameters, tmp_path / "scratch", left_out=left_out)
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
    assert list((tmp_path / "scratch").rglob("*")) == []
