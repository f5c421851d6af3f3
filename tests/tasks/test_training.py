"""The training stage: what it leaves in a directory, what it keeps and refuses, and how it goes on after a kill."""

from __future__ import annotations

import pytest
import torch

from storage import trainings
from storage.checkpoints import load_tokenizer, model_fingerprint, read_model, tokenizer_fingerprint
from storage.errors import InputError, MismatchError
from storage.store import create_store
from storage.trajectory import read_second_moments, read_trajectory
from tasks.corpus import CorpusParameters, ingest
from tasks.fanout import Workers
from tasks.learning.loop import TrainingParameters
from tasks.learning.model import ModelShape
from tasks.training import make_untrained, teach

SHAPE = ModelShape(layers=1, width=16, heads=2, context=48, vocabulary=300)
BRIEF = TrainingParameters(epochs=2, batch_size=16, checkpoints=2)  # 48 fables: 3 and 6 steps


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture(scope="module")
def untrained(tmp_path_factory, corpus):
    return make_untrained.fn(tmp_path_factory.mktemp("new"), (str(corpus),), SHAPE, 0)


@pytest.fixture(scope="module")
def store(tmp_path_factory, corpus, untrained):
    made = create_store(tmp_path_factory.mktemp("store") / "s")
    ingest.fn(made, untrained, CorpusParameters(inputs=(str(corpus),)), Workers())
    return made


@pytest.fixture(scope="module")
def trained(tmp_path_factory, store, untrained):
    directory = tmp_path_factory.mktemp("trained") / "model"
    return directory, teach(store, untrained, BRIEF, directory)


def weights(path) -> dict[str, torch.Tensor]:
    return dict(read_model(path).named_parameters())


def assert_equal_weights(found, expected):
    for name, weight in weights(expected).items():
        assert torch.equal(weights(found)[name], weight), name


def test_a_training_leaves_the_start_the_checkpoints_and_the_model(trained, untrained):
    directory, report = trained
    checkpoints = read_trajectory(directory)
    assert [c.step for c in checkpoints] == [leg.step for leg in report.legs] == [0, 3, 6]
    assert [c.learning_rate for c in checkpoints] == [leg.learning_rate for leg in report.legs]
    assert_equal_weights(checkpoints[0].path, untrained)
    assert_equal_weights(directory, checkpoints[-1].path)
    assert not torch.equal(*(weights(c.path)["transformer.wte.weight"] for c in checkpoints[:2]))
    assert load_tokenizer(directory).get_vocab() == load_tokenizer(untrained).get_vocab()
    assert checkpoints[0].second_moments is None
    moments = read_second_moments(checkpoints[-1])
    assert {n: v.shape for n, v in moments.items()} == {n: w.shape for n, w in weights(directory).items()}
    assert [p.name for p in directory.rglob("*.pt*")] == []  # nothing pickled stays


def test_a_complete_training_is_kept_and_another_in_its_place_refused(trained, store, untrained, llama):
    directory, report = trained
    before = model_fingerprint(directory)
    assert teach(store, untrained, BRIEF, directory) == report
    with pytest.raises(MismatchError, match="the same parameters"):
        teach(store, untrained, BRIEF.model_copy(update={"seed": 1}), directory)
    with pytest.raises(MismatchError, match="the same start"):
        teach(store, llama, BRIEF, directory)
    assert model_fingerprint(directory) == before


@pytest.mark.parametrize("moment", ["keep_checkpoint", "keep_trained"])
def test_a_killed_training_ends_in_the_same_model(trained, store, untrained, tmp_path, monkeypatch, moment):
    directory = tmp_path / "model"
    replace = type(directory).replace

    def killed(path, target):
        if path.name == ("checkpoint-6" if moment == "keep_checkpoint" else "model.safetensors"):
            raise Killed
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(type(directory), "replace", killed)
        with pytest.raises(Killed):
            teach(store, untrained, BRIEF, directory)
    assert trainings.read_account(directory) is None
    assert not (directory / "config.json").exists()  # half a model is none
    assert [c.step for c in read_trajectory(directory)] == [0, 3] + [6] * (moment == "keep_trained")
    report = teach(store, untrained, BRIEF, directory)
    assert [leg.step for leg in report.legs] == [0, 3, 6]
    assert_equal_weights(directory, trained[0])


def test_a_llama_that_knows_something_is_taught_more(store, llama, tmp_path):
    report = teach(store, llama, BRIEF.model_copy(update={"epochs": 1}), tmp_path / "model")
    assert [leg.step for leg in report.legs] == [0, 2, 3]
    assert_equal_weights(tmp_path / "model" / "checkpoint-0", llama)
    assert not torch.equal(*(weights(p)["model.embed_tokens.weight"] for p in (llama, tmp_path / "model")))


def test_training_stops_at_its_target_and_says_whether_it_was_reached(store, untrained, tmp_path):
    early = teach(store, untrained, BRIEF, tmp_path / "early", lambda model, tokenizer: 0.7, 0.6)
    assert early.reached
    assert [leg.step for leg in early.legs] == [0, 3]
    missed = teach(store, untrained, BRIEF, tmp_path / "missed", lambda model, tokenizer: 0.5, 0.6)
    assert not missed.reached
    assert [leg.probe for leg in missed.legs] == [None, 0.5, 0.5]


def test_a_directory_with_something_else_in_it_is_left_alone(store, untrained, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="an empty place, or a training that was begun there, found thesis.txt"):
        teach(store, untrained, BRIEF, tmp_path)


def test_an_untrained_model_is_made_once_and_only_for_its_texts_and_shape(tmp_path, corpus, untrained):
    first = make_untrained.fn(tmp_path, (str(corpus),), SHAPE, 0)
    assert make_untrained.fn(tmp_path, (str(corpus),), SHAPE, 0) == first
    assert model_fingerprint(first) == model_fingerprint(untrained)
    with pytest.raises(MismatchError, match="the same texts, shape and seed"):
        make_untrained.fn(tmp_path, (str(corpus),), SHAPE, 1)


def test_a_new_model_takes_anothers_tokenizer_so_that_both_read_one_store(llama, tmp_path):
    start = make_untrained.fn(tmp_path / "new", (), SHAPE, 0, llama)
    assert tokenizer_fingerprint(start) == tokenizer_fingerprint(llama)
    network = read_model(start)
    assert network.get_input_embeddings().weight.shape == (len(load_tokenizer(llama)), SHAPE.width)
    assert make_untrained.fn(tmp_path / "new", (), SHAPE, 0, llama) == start
    with pytest.raises(MismatchError, match="another"):
        make_untrained.fn(tmp_path / "new", (), SHAPE, 1, llama)
