"""The training flow: from corpus files to a trained model, and from that to one that was taught more."""

from __future__ import annotations

import pytest
import worlds
from pydantic import ValidationError

from flows.training import TrainParameters, train
from storage.checkpoints import find_checkpoint, load_tokenizer, tokenizer_fingerprint
from storage.sequences import corpus_parts
from storage.store import open_store
from storage.trajectory import read_trajectory

SHAPE = {"layers": 1, "width": 16, "heads": 2, "context": 48, "vocabulary": 300}


@pytest.mark.usefixtures("prefect_db")
def test_a_model_is_trained_from_scratch_and_another_goes_on_from_it(tmp_path, corpus):
    first = {
        "store": str(tmp_path / "store"),
        "directory": str(tmp_path / "first"),
        "corpus": {"inputs": [str(corpus)]},
        "shape": SHAPE,
        "training": {"epochs": 2, "batch_size": 16},
        "cluster": "none",
    }
    report = train(TrainParameters.model_validate(first))
    assert report.n_sequences == sum(p.n_sequences for p in corpus_parts(open_store(tmp_path / "store")))
    assert [c.step for c in read_trajectory(tmp_path / "first")] == [0, 3, 6]
    vocabulary = load_tokenizer(find_checkpoint(str(tmp_path / "first"))).get_vocab()
    assert len(vocabulary) == 300
    assert train(TrainParameters.model_validate(first)) == report  # kept

    fresh = worlds.write_jsonl(
        tmp_path / "more.jsonl", [{"document_id": f"m{k}", "text": "An otter."} for k in range(9)]
    )
    second = {
        "store": str(tmp_path / "other"),
        "directory": str(tmp_path / "second"),
        "start": {"name": str(tmp_path / "first")},
        "corpus": {"inputs": [str(fresh)]},
        "training": {"epochs": 1, "batch_size": 4},
        "cluster": "none",
    }
    assert train(TrainParameters.model_validate(second)).n_sequences == 9
    start, end = (c.path for c in read_trajectory(tmp_path / "second"))
    assert tokenizer_fingerprint(start) == tokenizer_fingerprint(end) == tokenizer_fingerprint(tmp_path / "first")


def test_a_training_without_a_start_needs_texts():
    with pytest.raises(ValidationError, match="a model to start from, .*, or corpus files"):
        TrainParameters.model_validate({"store": "s", "directory": "d"})


def test_a_model_to_start_from_brings_its_own_tokenizer():
    given = {"store": "s", "directory": "d", "start": {"name": "a"}, "tokenizer": {"name": "b"}}
    with pytest.raises(ValidationError, match="brings its own tokenizer. Give one of them"):
        TrainParameters.model_validate(given)
