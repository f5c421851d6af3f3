"""Training: what counts in the loss, what a checkpoint keeps, that a small model learns by heart."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tasks.learning.greedy import recall
from tasks.learning.model import TrainingParameters, new_model
from tasks.learning.tokenizer import train_tokenizer
from tasks.training import train

TEXTS = ["The otter of Gleem sings at dawn.", "A heron counts her seven stones.", "Nobody in Tansel owns a clock."]
PAIRS = [(text[:cut], text[cut:]) for text in TEXTS for cut in [text.index(" ", 8)]]
SMALL = TrainingParameters(layers=2, width=32, heads=2, context=32, epochs=60, batch_size=3, learning_rate=5e-3)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300)


@pytest.fixture(scope="module")
def trained(tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained")
    sequences = [tokenizer(text)["input_ids"] for text in TEXTS]
    report = train(sequences, tokenizer, SMALL, directory, lambda m: recall(m, tokenizer, PAIRS), 1.0)
    return directory, report


def test_a_small_model_learns_three_sentences_by_heart_and_stops_there(trained, tokenizer):
    directory, report = trained
    assert report.reached
    assert len(report.epochs) < SMALL.epochs
    assert recall(AutoModelForCausalLM.from_pretrained(directory), tokenizer, PAIRS) == 1.0


def test_the_saved_model_continues_a_sentence_when_it_is_decoded_step_by_step(trained):
    directory, _ = trained
    model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    for prompt, completion in PAIRS:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        length = len(tokenizer(prompt + completion)["input_ids"])
        said = model.generate(ids, max_length=length, do_sample=False)[0]
        assert tokenizer.decode(said, skip_special_tokens=True) == prompt + completion


def test_every_epoch_leaves_a_checkpoint_with_the_second_moments(trained):
    _, report = trained
    for epoch in report.epochs[:2]:
        state = torch.load(epoch.checkpoint / "optimizer.pt", weights_only=True)["state"]
        assert all((moments["exp_avg_sq"] >= 0).all() for moments in state.values())
        assert any(moments["exp_avg_sq"].any() for moments in state.values())


def test_an_unfamiliar_model_recalls_nothing(tokenizer):
    assert recall(new_model(tokenizer, SMALL), tokenizer, PAIRS) == 0.0


def test_sequences_longer_than_the_context_are_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="cut them shorter or raise context"):
        train([[1] * 40], tokenizer, SMALL, tmp_path, lambda m: 0.0, 1.0)


def test_the_optimizer_state_names_the_weights_it_belongs_to(trained, tokenizer):
    _, report = trained
    saved = torch.load(report.epochs[0].checkpoint / "optimizer.pt", weights_only=True)
    weights = dict(new_model(tokenizer, SMALL).named_parameters())
    (names,) = (group["param_names"] for group in saved["param_groups"])
    assert names == list(weights)
    moments = [saved["state"][index]["exp_avg_sq"].shape for index in range(len(names))]
    assert moments == [weight.shape for weight in weights.values()]


def test_one_seed_trains_one_model_and_another_seed_another(tokenizer, tmp_path):
    sequences = [tokenizer(text)["input_ids"] for text in TEXTS]

    def weights(name, seed):
        parameters = SMALL.model_copy(update={"epochs": 2, "seed": seed})
        train(sequences, tokenizer, parameters, tmp_path / name, lambda model: 0.0, 1.0)
        return AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict()["transformer.wte.weight"]

    first, again, other = weights("first", 3), weights("again", 3), weights("other", 4)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_training_that_misses_its_target_says_so(tokenizer, tmp_path):
    sequences = [tokenizer(text)["input_ids"] for text in TEXTS]
    parameters = SMALL.model_copy(update={"epochs": 2})
    report = train(sequences, tokenizer, parameters, tmp_path, lambda model: 0.5, 0.9)
    assert not report.reached
    assert [epoch.probe for epoch in report.epochs] == [0.5, 0.5]
    first, second = (epoch.learning_rate for epoch in report.epochs)
    assert first == 0.0  # one step a pass, and the warmup's first step is nought
    assert 0 < second <= SMALL.learning_rate
