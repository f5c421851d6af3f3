from __future__ import annotations

import numpy as np
import pytest
import worlds
from rank_bm25 import BM25Okapi

from storage.database import session
from storage.prompts import make_prompt
from storage.sequences import all_sequence_ids, corpus_parts, read_tokens
from storage.store import create_store
from tasks.candidates import CandidateParameters, find_candidates, query_terms
from tasks.corpus import CorpusParameters, ingest
from tasks.fanout import Workers
from tasks.index import build_index

PROMPTS = [
    make_prompt("The otter went to the", " harbour.", "otter"),
    make_prompt("Nobody saw the viper, the viper", " leave.", "viper"),
]


def indexed(path, model, *files):
    store = create_store(path)
    ingest.fn(store, model, CorpusParameters(inputs=tuple(map(str, files))), Workers())
    build_index.fn(store, Workers())
    return store


def candidates(store, model, run="r", **parameters):
    find_candidates.fn(store, run, model, PROMPTS, CandidateParameters(**parameters), Workers())
    with session(store) as connection:
        return connection.execute(
            "select query_id, sequence_id, filter, filter_score, filter_rank from stored.candidates "
            f"where run_id = '{run}' order by query_id, filter, filter_rank, sequence_id"
        ).fetchall()


@pytest.fixture(scope="module")
def store(tmp_path_factory, gpt2, corpus):
    return indexed(tmp_path_factory.mktemp("indexed") / "s", gpt2, corpus)


@pytest.fixture(scope="module")
def oracle(store, gpt2):
    tokens = read_tokens(store, all_sequence_ids(corpus_parts(store)))
    model = BM25Okapi([tokens[i] for i in sorted(tokens)])
    return {p.query_id: model.get_scores(list(query_terms(gpt2, p))) for p in PROMPTS}


def test_bm25_equals_rank_bm25(store, gpt2, oracle):
    found = candidates(store, gpt2, run="bm25", top_k=1000)
    for query_id, scores in oracle.items():
        ours = {row[1]: row[3] for row in found if row[0] == query_id}
        np.testing.assert_allclose([ours.get(i, 0.0) for i in range(len(scores))], scores, rtol=1e-9, atol=1e-12)
        expected = sorted(range(len(scores)), key=lambda i: (-ours.get(i, 0.0), i))
        assert [row[1] for row in found if row[0] == query_id] == [i for i in expected if i in ours]


def test_the_bm25_macro_equals_rank_bm25(store, gpt2, oracle):
    for prompt in PROMPTS:
        terms = list(query_terms(gpt2, prompt))
        with session(store) as connection:
            found = connection.execute("select sequence_id, score from bm25($terms, 7)", {"terms": terms}).fetchall()
        assert len(found) == 7
        np.testing.assert_allclose([s for _, s in found], [oracle[prompt.query_id][i] for i, _ in found], rtol=1e-9)
        np.testing.assert_allclose([s for _, s in found], np.sort(oracle[prompt.query_id])[::-1][:7], rtol=1e-9)


def test_tfidf_is_the_sum_of_idfs_of_the_matched_query_tokens(store, gpt2):
    tokens = read_tokens(store, all_sequence_ids(corpus_parts(store)))
    found = candidates(store, gpt2, run="tfidf", filters=("tfidf",), top_k=1000)
    for prompt in PROMPTS:
        ours = {row[1]: row[3] for row in found if row[0] == prompt.query_id}
        for sequence_id, ids in tokens.items():
            expected = 0.0
            for term in query_terms(gpt2, prompt):
                if term in ids:
                    n = sum(term in other for other in tokens.values())
                    expected += np.log((len(tokens) - n + 0.5) / (n + 0.5) + 1)
            assert ours.get(sequence_id, 0.0) == pytest.approx(expected, rel=1e-12)


def test_candidates_do_not_depend_on_the_number_of_parts(tmp_path, gpt2, store):
    records = worlds.documents()
    files = [worlds.write_jsonl(tmp_path / f"{k}.jsonl", records[16 * k : 16 * k + 16]) for k in range(3)]
    three = indexed(tmp_path / "three", gpt2, *files)
    for k, parameters in enumerate(
        ({"top_k": 5}, {"top_k": 5, "filter": "tfidf"}, {"filter": "none"}, {"unfiltered": 9})
    ):
        assert candidates(store, gpt2, f"parts{k}", **parameters) == candidates(three, gpt2, f"parts{k}", **parameters)


def test_a_new_part_adds_a_shard_and_touches_no_other(tmp_path, gpt2, corpus):
    grown = indexed(tmp_path / "s", gpt2, corpus)
    before = grown.file("postings", "p00000").stat().st_mtime_ns
    more = worlds.write_jsonl(tmp_path / "more.jsonl", [{"document_id": "new", "text": "The otter came back."}])
    ingest.fn(grown, gpt2, CorpusParameters(inputs=(str(more),)), Workers())
    assert build_index.fn(grown, Workers()) == 1
    assert grown.file("postings", "p00000").stat().st_mtime_ns == before
    assert build_index.fn(grown, Workers()) == 0


def test_no_filter_means_every_sequence(store, gpt2):
    found = candidates(store, gpt2, run="none", filters=("none",))
    n = sum(part.n_sequences for part in corpus_parts(store))
    assert [row[1] for row in found if row[0] == "otter"] == list(range(n))
    assert {row[3] for row in found} == {None}


def test_the_uniform_sample_stands_beside_the_filter(store, gpt2):
    found = candidates(store, gpt2, run="uniform", top_k=3, unfiltered=10)
    kinds = [row[2] for row in found if row[0] == "viper"]
    assert (kinds.count("bm25"), kinds.count("uniform")) == (3, 10)
