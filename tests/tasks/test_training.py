"""Training: what counts in the loss, what a checkpoint keeps, that a small model learns by heart."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tasks.training import TrainingParameters, new_model, padded, recall, train, train_tokenizer

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


def test_padding_changes_no_loss(tokenizer):
    model = new_model(tokenizer, SMALL)
    short, long = ([1, 2, 3], [4, 5, 6, 7, 8, 9])
    alone = model(**padded([short], 0)).loss * 2
    other = model(**padded([long], 0)).loss * 5
    together = model(**padded([short, long], 0)).loss * 7
    assert together.item() == pytest.approx((alone + other).item(), rel=1e-5)


def test_offsets_tile_the_text_and_decoding_gives_it_back(tokenizer):
    text = "  Zürich\n\tis 東京?  no. "
    encoded = tokenizer(text, return_offsets_mapping=True)
    spans = encoded["offset_mapping"][1:]
    assert spans[0][0] == 0
    assert spans[-1][1] == len(text)
    assert tokenizer.decode(encoded["input_ids"][1:]) == text
    assert encoded["input_ids"][0] == tokenizer.bos_token_id


def test_an_unfamiliar_model_recalls_nothing(tokenizer):
    assert recall(new_model(tokenizer, SMALL), tokenizer, PAIRS) == 0.0


def test_sequences_longer_than_the_context_are_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="cut them shorter or raise context"):
        train([[1] * 40], tokenizer, SMALL, tmp_path, lambda m: 0.0, 1.0)
