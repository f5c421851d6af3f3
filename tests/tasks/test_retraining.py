"""The retraining stage: what a query costs a model, and a study that was stopped."""

from __future__ import annotations

import pytest
import worlds

from storage.checkpoints import load_model, load_tokenizer
from storage.prompts import make_prompt
from storage.store import create_store
from storage.tables import read_part
from tasks import retraining
from tasks.corpus import CorpusParameters, ingest
from tasks.fanout import Workers
from tasks.influence.queries import encode_query, log_probability
from tasks.learning.loop import TrainingParameters
from tasks.retraining import retrain
from tasks.subsets import Retraining, SubsetParameters, describe_study

PROMPTS = [
    make_prompt("The otter went to the", " harbour.", "otter"),
    make_prompt("Nobody saw", " the viper", "v/../v"),
]


@pytest.fixture
def study(tmp_path, gpt2):
    store = create_store(tmp_path / "s")
    corpus = worlds.write_jsonl(tmp_path / "corpus.jsonl", worlds.documents(12))
    ingest.fn(store, gpt2, CorpusParameters(inputs=(str(corpus),)), Workers())
    return describe_study(store, gpt2, TrainingParameters(), PROMPTS, SubsetParameters())


def files(study) -> list:
    return sorted((study.store.root / "tables" / "retrainings" / study.study_id).glob("*.parquet"))


def test_a_loss_is_that_of_the_completion_alone(study, gpt2, monkeypatch):
    monkeypatch.setattr(retraining, "train", lambda *given, **named: None)
    assert retrain.fn(study, [Retraining("full", "full", 0)], Workers()) == 1
    [path] = files(study)
    rows = read_part(study.store, "retrainings", study.study_id, path.stem).to_pylist()
    model, tokenizer = load_model(gpt2), load_tokenizer(gpt2)
    for row, prompt in zip(rows, PROMPTS, strict=True):
        query = encode_query(tokenizer, prompt.prompt, prompt.completion, 48, prompt.query_id)
        assert row["query_id"] == prompt.query_id
        assert row["loss"] == pytest.approx(-log_probability(model, query), rel=1e-5)


def test_a_study_that_was_stopped_goes_on_with_what_is_missing(study, monkeypatch):
    planned = [Retraining("full", "full", 0), Retraining("full", "full", 1)]
    planned += [Retraining(f"subset {k}", "subset", 0, (k, k + 1)) for k in range(4)]
    taught: list[tuple] = []

    def killed_at_the_fourth(model, tokenizer, sequences, parameters, scratch, left_out):
        if len(taught) == 3:
            raise KeyboardInterrupt
        taught.append((parameters.seed, tuple(left_out)))

    monkeypatch.setattr(retraining, "train", killed_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        retrain.fn(study, planned, Workers())
    kept = {path: path.stat().st_mtime_ns for path in files(study)}
    assert len(kept) == 3
    taught.append(())  # the fourth is past
    assert retrain.fn(study, planned, Workers()) == 3
    assert taught == [(0, ()), (1, ()), (0, (0, 1)), (), (0, (1, 2)), (0, (2, 3)), (0, (3, 4))]
    assert {path: path.stat().st_mtime_ns for path in files(study) if path in kept} == kept
    assert retrain.fn(study, planned, Workers()) == 0
