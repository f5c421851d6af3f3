"""Datasets that a corpus is a mixture of: what tells them apart, and what is refused before anything is trained."""

from __future__ import annotations

import json

import pytest
import worlds
from pydantic import ValidationError
from tiny_runs import write_run

from storage.database import session
from storage.errors import InputError
from storage.prompts import make_prompt
from storage.sequences import all_sequence_ids, corpus_parts
from storage.store import create_store
from tasks.corpus import CorpusParameters, ingest
from tasks.fanout import Workers
from tasks.learning.ascent import AscentParameters
from tasks.learning.loop import TrainingParameters
from tasks.mixtures import (
    MixtureParameters,
    UnlearningParameters,
    describe_unlearning,
    find_mixture,
    leave_datasets_out,
)

PROMPTS = [make_prompt("The otter went to the", " harbour.", "otter"), make_prompt("Nobody saw", " it.", "viper")]
BY_FILE = MixtureParameters()


def store_of(tmp_path, model, *files: list[dict], **cut):
    made = create_store(tmp_path / "s")
    paths = [worlds.write_jsonl(tmp_path / f"{name}.jsonl", records) for name, records in zip("abcdef", files)]  # noqa: B905
    ingest.fn(made, model, CorpusParameters(inputs=tuple(map(str, paths)), **cut), Workers())
    return made


@pytest.fixture(scope="module")
def three_files(tmp_path_factory, gpt2):
    return store_of(tmp_path_factory.mktemp("mixture"), gpt2, *thirds())


def thirds() -> list[list[dict]]:
    documents = worlds.documents(12)
    return [documents[:3], documents[3:7], documents[7:]]


def test_each_file_is_a_dataset_and_every_sequence_is_in_one(three_files):
    store = three_files
    found = find_mixture(store, BY_FILE, PROMPTS)
    assert list(found.datasets) == ["a", "b", "c"]
    assert [len(ids) for ids in found.datasets.values()] == [3, 4, 5]
    assert sorted(i for ids in found.datasets.values() for i in ids) == all_sequence_ids(corpus_parts(store)).tolist()
    assert found.groups == {"all queries": ("otter", "viper")}


def test_a_field_of_the_metadata_or_the_source_names_datasets_across_files(tmp_path, gpt2):
    documents = [d | {"topic of": "abc"[k % 3], "source": "xyzw"[k % 4]} for k, d in enumerate(worlds.documents(12))]
    store = store_of(tmp_path, gpt2, documents[:6], documents[6:])
    by_field = find_mixture(store, MixtureParameters(dataset="topic of"), PROMPTS).datasets
    assert by_field == {name: tuple(range(k, 12, 3)) for k, name in enumerate("abc")}
    by_source = find_mixture(store, MixtureParameters(dataset="source"), PROMPTS).datasets
    assert by_source == {name: tuple(range("xyzw".index(name), 12, 4)) for name in "wxyz"}


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path, gpt2):
    store = create_store(tmp_path / "s")
    paths = [worlds.write_jsonl(tmp_path / of / "same.jsonl", d) for of, d in zip("xyz", thirds(), strict=True)]
    ingest.fn(store, gpt2, CorpusParameters(inputs=tuple(map(str, paths))), Workers())
    assert list(find_mixture(store, BY_FILE, PROMPTS).datasets) == list(map(str, paths))


def test_too_few_datasets_are_refused(tmp_path, gpt2):
    store = store_of(tmp_path, gpt2, *thirds()[:2])
    with pytest.raises(
        InputError, match="at least 3 datasets, of which a correlation.*found 2 by file: a, b.*datasets-by"
    ):
        find_mixture(store, BY_FILE, PROMPTS)
    with pytest.raises(InputError, match="found 1 by source: fable"):
        find_mixture(store, MixtureParameters(dataset="source"), PROMPTS)


def test_documents_that_name_no_dataset_are_counted_and_one_is_named(tmp_path, gpt2):
    records = worlds.documents(12)
    for k in (4, 9):
        del records[k]["colour"]
    store = store_of(tmp_path, gpt2, records)
    with pytest.raises(InputError, match="dataset in 'colour', found 2 without it, among them 'd004'"):
        find_mixture(store, MixtureParameters(dataset="colour"), PROMPTS)


def test_a_dataset_in_which_no_sequence_begins_is_refused(tmp_path, gpt2):
    documents = worlds.documents(12)
    named = [d | {"topic": name} for d, name in zip(documents, "abcabcabcabc", strict=True)]
    named.insert(1, {"document_id": "short", "text": "Oh.", "topic": "d"})
    store = store_of(tmp_path, gpt2, named, packing="concatenate", sequence_length=40)
    with pytest.raises(InputError, match="dataset 'd': expected training sequences, found none.*--packing document"):
        find_mixture(store, MixtureParameters(dataset="topic"), PROMPTS)


def test_queries_are_grouped_by_a_field_that_all_or_none_have(three_files):
    store = three_files
    named = [
        make_prompt("The", f" {name}.", name, json.dumps({"group": name[0]})) for name in ("otter", "viper", "orca")
    ]
    assert find_mixture(store, BY_FILE, named).groups == {"o": ("otter", "orca"), "v": ("viper",)}
    with pytest.raises(InputError, match="query otter: expected a field 'group' that names its group.*--groups-by"):
        find_mixture(store, BY_FILE, [PROMPTS[0], named[1]])


@pytest.mark.parametrize("name", ["", "a'b", 'a"b', "$.x"])
def test_a_field_is_a_name_and_no_expression(name):
    with pytest.raises(ValidationError):
        MixtureParameters(dataset=name)


def test_a_study_leaves_each_dataset_out_once_a_seed_and_keeps_its_name_as_it_grows(three_files, gpt2):
    store = three_files
    mixture = find_mixture(store, BY_FILE, PROMPTS)
    study, planned = leave_datasets_out(store, gpt2, TrainingParameters(), PROMPTS, mixture, [4])
    assert [(r.name, r.kind, r.seed, r.left_out) for r in planned] == [
        ("without a", "dataset", 4, (0, 1, 2)), ("without b", "dataset", 4, (3, 4, 5, 6)),
        ("without c", "dataset", 4, (7, 8, 9, 10, 11)),
    ]  # fmt: skip
    more, of_two = leave_datasets_out(store, gpt2, TrainingParameters(seed=9), PROMPTS, mixture, [4, 5])
    assert (more.study_id, of_two[:3]) == (study.study_id, planned)
    others = [
        leave_datasets_out(store, gpt2, TrainingParameters(epochs=2), PROMPTS, mixture, [4])[0].study_id,
        leave_datasets_out(store, gpt2, TrainingParameters(), PROMPTS[:1], mixture, [4])[0].study_id,
    ]
    assert len({study.study_id, *others}) == 3


def test_an_epoch_with_more_steps_than_the_other_datasets_have_sequences_is_refused(three_files, gpt2):
    store = three_files
    mixture = find_mixture(store, BY_FILE, PROMPTS)
    with pytest.raises(InputError, match="retraining on 7 of 12 sequences.*12 steps.*--batch-size to 2"):
        leave_datasets_out(store, gpt2, TrainingParameters(batch_size=1), PROMPTS, mixture, [0])


def test_influences_are_summed_over_whatever_names_a_dataset(tmp_path, gpt2):
    """Sequence z has influence z + 1 on the query: of twelve the odd ones are red, six and six stand in two files."""
    documents = [d | {"source": "xyz"[k % 3]} for k, d in enumerate(worlds.documents(12))]
    store = store_of(tmp_path, gpt2, documents[:6], documents[6:])
    write_run(store, "run-a", n=12)
    with session(store) as connection:
        sums = {
            by: connection.sql(
                "select dataset, influence, n_sequences from dataset_influences('run-a', \"by\" := $by)",
                params={"by": by},
            ).fetchall()
            for by in ("file", "source", "colour")
        }
    assert sums == {
        "file": [("p00000", 21.0, 6), ("p00001", 57.0, 6)],
        "source": [("x", 22.0, 4), ("y", 26.0, 4), ("z", 30.0, 4)],
        "colour": [("blue", 36.0, 6), ("red", 42.0, 6)],
    }


def test_an_unlearning_is_named_by_what_decides_its_losses_and_by_nothing_else(three_files, gpt2, llama):
    mixture = find_mixture(three_files, BY_FILE, PROMPTS)
    asked = UnlearningParameters()

    def names(model=gpt2, prompts=PROMPTS, **changed) -> tuple[str, str]:
        parameters = asked.model_copy(update=changed)
        untrac, inverse = describe_unlearning(three_files, model, mixture, prompts, parameters)
        return untrac.study_id, inverse.study_id

    untrac, inverse = names()
    for changed in ({"model": llama}, {"prompts": PROMPTS[:1]}):
        other = names(**changed)
        assert len({untrac, inverse, *other}) == 4
    faster = AscentParameters(learning_rate=1e-4)
    for changed in ({"datasets": faster}, {"unlearned": 9}):
        assert names(**changed)[0] != untrac
        assert names(**changed)[1] == inverse
    for changed in ({"queries": faster}, {"measured": 9}):
        assert names(**changed)[0] == untrac
        assert names(**changed)[1] != inverse


def test_the_defaults_are_those_of_the_paper():
    """Adafactor at 5e-5, one pass over a dataset one by one; the queries in steps of 256, fifty times."""
    datasets, queries = UnlearningParameters().datasets, UnlearningParameters().queries
    assert (datasets.learning_rate, datasets.epochs, datasets.batch_size) == (5e-5, 1, 1)
    assert (queries.learning_rate, queries.epochs, queries.batch_size) == (5e-5, 50, 256)
