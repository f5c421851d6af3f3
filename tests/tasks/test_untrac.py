"""The unlearning stage: what it measures, what a stopped one goes on with, and an ascent that diverges."""

from __future__ import annotations

import numpy as np
import pytest
import worlds

from storage.checkpoints import load_tokenizer, read_model
from storage.database import rows, session
from storage.errors import ModelError
from storage.prompts import make_prompt
from storage.sequences import read_tokens
from storage.store import create_store
from tasks import untrac
from tasks.corpus import CorpusParameters, ingest
from tasks.fanout import Workers
from tasks.influence.batches import TokenSequence
from tasks.influence.queries import encode_query, log_probability
from tasks.learning.ascent import AscentParameters, ascend
from tasks.mixtures import MixtureParameters, UnlearningParameters, describe_unlearning, find_mixture
from tasks.untrac import unlearn

PROMPTS = [
    make_prompt("The otter went to the", " harbour.", "otter", '{"group": "../water"}'),
    make_prompt("Nobody saw", " the viper", "v/../v", '{"group": "land"}'),
]
FAST = UnlearningParameters(
    datasets=AscentParameters(learning_rate=1e-3, batch_size=2),
    queries=AscentParameters(learning_rate=1e-3, epochs=2, batch_size=2),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory, gpt2):
    root, documents = tmp_path_factory.mktemp("untrac"), worlds.documents(12)
    made = create_store(root / "s")
    paths = [worlds.write_jsonl(root / f"{c}.jsonl", documents[k::3]) for k, c in enumerate("abc")]
    ingest.fn(made, gpt2, CorpusParameters(inputs=tuple(map(str, paths))), Workers())
    return made


def studies_of(store, model, parameters=FAST):
    """UnTrac and UnTrac-Inverse."""
    mixture = find_mixture(store, MixtureParameters(), PROMPTS)
    return describe_unlearning(store, model, mixture, PROMPTS, parameters)


def files(study) -> list:
    return sorted((study.store.root / "tables" / "unlearnings" / study.study_id).glob("*.parquet"))


def losses(study) -> dict[tuple[str, str, str, str], dict]:
    with session(study.store) as connection:
        of = connection.sql("select * from unlearnings where study_id = $study", params={"study": study.study_id})
        table = of.to_arrow_table().to_pylist()
        assert len(rows(connection, "validation/unlearned", study=study.study_id)) == 3 * 2
    return {(r["kind"], r["unlearned"], r["measured"], r["name"]): r for r in table}


def test_queries_are_measured_after_each_dataset_and_datasets_after_each_group(store, gpt2):
    study, inverse = studies_of(store, gpt2)
    assert unlearn.fn(study, Workers()) == 1 + 3
    assert unlearn.fn(inverse, Workers()) == 1 + 2
    found = losses(study) | losses(inverse)
    assert len(found) == (2 + 3 * 2) + (3 + 2 * 3)
    model, tokenizer = read_model(gpt2).eval(), load_tokenizer(gpt2)
    queries = {p.query_id: encode_query(tokenizer, p.prompt, p.completion, 48, p.query_id) for p in PROMPTS}
    for name, query in queries.items():
        row = found["none", "", "query", name]
        assert row["loss"] == pytest.approx(-log_probability(model, query), rel=1e-5)
        assert row["n_tokens"] == len(query.token_ids) - query.first_scored
    ids = study.mixture.datasets["b"]
    tokens = read_tokens(study.store, np.array(ids))
    sequences = [TokenSequence(i, tokens[i]) for i in ids]
    row = found["none", "", "dataset", "b"]
    assert row["loss"] == pytest.approx(-sum(log_probability(model, s) for s in sequences), rel=1e-5)
    assert row["n_tokens"] == sum(len(s.token_ids) - 1 for s in sequences)
    ascend(model, sequences, FAST.datasets)
    row = found["dataset", "b", "query", "v/../v"]
    assert row["loss"] == pytest.approx(-log_probability(model, queries["v/../v"]), rel=1e-5)


def test_of_a_large_dataset_a_sample_is_measured(store, gpt2, monkeypatch):
    _, study = studies_of(store, gpt2, FAST.model_copy(update={"measured": 2}))
    measured: list[int] = []
    asked = untrac.sequence_losses
    monkeypatch.setattr(untrac, "ascend", lambda model, sequences, parameters: None)
    monkeypatch.setattr(untrac, "sequence_losses", lambda m, s: (measured.append(len(s)), asked(m, s))[1])
    unlearn.fn(study, Workers())
    assert measured == [2] * 3 + [2] * 3 * 2  # of each dataset's four sequences, before and after


def test_of_each_dataset_so_many_are_unlearned_as_are_asked_for(store, gpt2, monkeypatch):
    study, inverse = studies_of(store, gpt2, FAST.model_copy(update={"unlearned": 3}))
    climbed: list[list[int]] = []
    monkeypatch.setattr(
        untrac, "ascend", lambda model, sequences, _: climbed.append([s.sequence_id for s in sequences])
    )
    unlearn.fn(study, Workers())
    for ids, of in zip(climbed, study.mixture.datasets.values(), strict=True):
        assert len(set(ids)) == 3
        assert set(ids) < set(of)
    assert inverse.study_id == studies_of(store, gpt2)[1].study_id


def test_an_unlearning_that_was_stopped_goes_on_with_what_is_missing(store, gpt2, monkeypatch):
    study, _ = studies_of(store, gpt2, FAST.model_copy(update={"datasets": AscentParameters(epochs=2)}))
    climbed: list[int] = []

    def killed_at_the_third(model, sequences, parameters):
        if len(climbed) == 2:
            raise KeyboardInterrupt
        climbed.append(len(sequences))

    monkeypatch.setattr(untrac, "ascend", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        unlearn.fn(study, Workers())
    kept = {path: path.stat().st_mtime_ns for path in files(study)}
    assert len(kept) == 3  # the model as it is, and two datasets
    monkeypatch.setattr(untrac, "ascend", lambda model, sequences, parameters: climbed.append(len(sequences)))
    assert unlearn.fn(study, Workers()) == 1
    assert climbed == [4, 4, 4]
    assert {path: path.stat().st_mtime_ns for path in files(study) if path in kept} == kept
    assert unlearn.fn(study, Workers()) == 0


def test_an_ascent_that_diverges_is_named_with_its_rate_and_leaves_nothing(store, gpt2):
    study, _ = studies_of(store, gpt2, UnlearningParameters(datasets=AscentParameters(learning_rate=1.0)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(untrac, "ascend", lambda model, *_: next(model.parameters()).data.fill_(float("inf")))
        with pytest.raises(ModelError, match="after unlearning 'a': expected finite losses.*rate of 1\\. Lower"):
            unlearn.fn(study, Workers())
    assert len(files(study)) == 1  # that of the model as it is
