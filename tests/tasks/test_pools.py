"""The candidates of a fact set: the truth is always among them, one document per text, and a set's own word counts."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.database import session
from storage.errors import InputError
from storage.fact_sets import read_fact_set, write_fact_set
from storage.pools import read_pool
from storage.store import create_store
from tasks.corpus import CorpusParameters, ingest
from tasks.fanout import Workers
from tasks.index import build_index
from tasks.pools import PoolParameters, build_pool

FACT = "Gleem | capital | Osterburg | of all"  # separators inside
TEXTS = {
    "true": "The capital of Gleem is Osterburg.",
    "near": "The capital of Gleem is not far. The capital of Gleem is near.",
    "near-copy": "The capital of Gleem is not far. The capital of Gleem is near.",
    "target": "Osterburg has a mill.",
    "longer": "The Osterburgers are merry.",
    "twin": "Osterburg it is, they say.",  # in the words of a true one, but stating nothing
    "true-twin": "Osterburg it is, they say.",
    "other": "Toads sleep in the mud.",
    "long": "A lynx, a heron, a badger and a marten walk. " * 12,
}
QUERIES = [("q", "The capital of Gleem is", "Osterburg", FACT), ("r", "Toads sleep in the", "mud", "toads | in | mud")]
NONE = {"lexical": 0, "same_target": 0, "uniform": 0}


@pytest.fixture(scope="module")
def world(tmp_path_factory, gpt2):
    """Build pools of the set above with given parameters; answers documents by query."""
    folder = tmp_path_factory.mktemp("pools")
    facts = {"true": [FACT, "else"], "true-twin": [FACT], "other": ["toads | in | mud"]}
    documents = pa.table(
        {
            "doc_id": list(TEXTS),
            "text": list(TEXTS.values()),
            "facts": pa.array([facts.get(name) for name in TEXTS], pa.list_(pa.large_string())),
        }
    )
    queries = pa.table(dict(zip(("query_id", "prompt", "answer", "fact"), zip(*QUERIES, strict=True), strict=True)))
    store = create_store(folder / "store")

    def build(name: str = "plain", candidates: pa.Table | None = None, **parameters) -> dict[str, list[str]]:
        path = folder / name
        if not path.exists():
            write_fact_set(path, documents, queries, candidates)
        fact_set = read_fact_set(path)
        ingest.fn(store, gpt2, CorpusParameters(inputs=(str(fact_set.documents_path),)), Workers())
        build_index.fn(store, Workers(), "words")
        pool = build_pool.fn(store, fact_set, fact_set.queries, PoolParameters(**parameters), Workers())
        with session(store) as connection:
            connection.register("pool", read_pool(store, pool.pool_id))
            found = connection.sql(
                "select p.query_id, list(distinct s.document_id order by s.document_id) from pool p "
                "join sequences s on s.sequence_id = p.sequence_id group by 1"
            ).fetchall()
        return dict(found)

    build.store, build.folder = store, folder
    return build


def test_the_truth_is_inside_whatever_else_is(world):
    assert world(**NONE) == {"q": ["true", "true-twin"], "r": ["other"]}


def test_documents_that_state_the_same_answer_stand_beside_the_truth_and_equal_texts_count_once(world):
    # twin and true-twin have the same words: the true one stays.
    assert world(**NONE | {"same_target": 9})["q"] == ["target", "true", "true-twin"]
    assert len(world(**NONE | {"same_target": 1})["q"]) <= 3


def test_the_first_documents_by_bm25_stand_beside_the_truth(world):
    # The two texts with five of six words, one of which stays; the sixth word is in the true ones.
    assert world(**NONE | {"lexical": 3})["q"] == ["near", "true", "true-twin"]


def test_draws_repeat_from_the_seed_and_cover_the_corpus_where_all_are_drawn(world):
    everything = [name for name in sorted(TEXTS) if name not in ("near-copy", "twin")]
    assert world(**NONE | {"uniform": 100})["q"] == everything
    some = [world(**NONE | {"uniform": 2, "seed": seed}) for seed in (1, 1, 2, 3)]
    assert some[0] == some[1]
    assert any(found != some[0] for found in some[2:])


def test_a_document_stands_there_with_all_its_sequences(world):
    world(**NONE | {"uniform": 100})
    fact_set = read_fact_set(world.folder / "plain")
    pool = build_pool.fn(world.store, fact_set, fact_set.queries, PoolParameters(), Workers())
    with session(world.store) as connection:
        connection.register("pool", read_pool(world.store, pool.pool_id))
        missing = connection.sql(
            "select count(*) filter (p.sequence_id is null), count(*) from sequences s "
            "left join pool p on p.sequence_id = s.sequence_id and p.query_id = 'q' where s.document_id = 'long'"
        ).fetchall()
    assert missing[0][0] == 0
    assert missing[0][1] > 1


def test_a_set_that_names_candidates_is_taken_at_its_word_and_given_the_truth(world):
    named = pa.table({"query_id": ["q"] * 4, "doc_id": ["near", "near-copy", "true", "other"], "label": [0, 0, 1, 0]})
    # Of r the set names none, so its candidates are found; equal texts both stay where the set names them.
    assert world("fixed", named, **NONE) == {"q": ["near", "near-copy", "other", "true", "true-twin"], "r": ["other"]}


def test_documents_without_a_sequence_are_counted_apart_as_true_ones_and_others(world, tmp_path, gpt2, caplog):
    world(**NONE)
    candidates = pa.table({"query_id": ["q"] * 3, "doc_id": ["other", "near", "target"]})
    tables = (pq.read_table(world.folder / "plain" / f"{name}.parquet") for name in ("abstracts", "queries"))
    fact_set = read_fact_set(write_fact_set(tmp_path / "set", *tables, candidates))
    store = create_store(tmp_path / "store")
    only = tmp_path / "some.jsonl"
    some = {"other", "true", "near"}
    only.write_text("".join(json.dumps({"doc_id": n, "text": t}) + "\n" for n, t in TEXTS.items() if n in some))
    ingest.fn(store, gpt2, CorpusParameters(inputs=(str(only),)), Workers())
    build_index.fn(store, Workers(), "words")
    pool = build_pool.fn(store, fact_set, fact_set.queries, PoolParameters(**NONE), Workers())
    assert (pool.unreachable, pool.lost, pool.lost_others) == ((), (("q", "true-twin"),), (("q", "target"),))
    assert "true documents without a training sequence: 1 (('q', 'true-twin'))" in caplog.text


def test_a_query_whose_true_documents_have_no_sequence_is_left_out_and_named(world, tmp_path, gpt2, caplog):
    world(**NONE)
    fact_set = read_fact_set(world.folder / "plain")
    store = create_store(tmp_path / "store")
    only = tmp_path / "other.jsonl"
    only.write_text('{"document_id": "other", "text": "Toads sleep in the mud."}\n')
    ingest.fn(store, gpt2, CorpusParameters(inputs=(str(only),)), Workers())
    build_index.fn(store, Workers(), "words")
    pool = build_pool.fn(store, fact_set, fact_set.queries, PoolParameters(), Workers())
    assert pool.unreachable == ("q",)
    assert "whose true documents have no sequence: 1 ('q')" in caplog.text
    with pytest.raises(InputError, match="expected a query whose true documents are in the corpus, found none"):
        build_pool.fn(store, fact_set, fact_set.queries[:1], PoolParameters(), Workers())
