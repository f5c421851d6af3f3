from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import worlds
from rank_bm25 import BM25Okapi, BM25Plus

from flows.cluster import open_workers
from storage.database import session
from storage.errors import InputError, MismatchError, StoreError
from storage.prompts import make_prompt
from storage.sequences import all_parts, all_sequence_ids, corpus_parts, read_tokens
from storage.store import create_store
from storage.tables import read_part, write_part
from tasks.candidates import LEXICAL, CandidateParameters, find_candidates
from tasks.compute import ComputeParameters
from tasks.corpus import CorpusParameters, ingest
from tasks.embeddings import embed_corpus
from tasks.fanout import Workers
from tasks.index import build_index
from tasks.learning.tokenizer import train_tokenizer
from tasks.lexical import query_terms

ROOT = Path(__file__).parents[2]
PROMPTS = [
    make_prompt("The otter went to the", " harbour.", "otter"),
    make_prompt("Nobody saw the viper, the viper", " leave.", "viper"),
]


def indexed(path, model, *files):
    store = create_store(path)
    ingest.fn(store, model, CorpusParameters(inputs=tuple(map(str, files))), Workers())
    for terms in ("tokens", "words"):
        build_index.fn(store, Workers(), terms)
    return store


def candidates(store, model, run="r", **parameters):
    find_candidates.fn(store, run, model, PROMPTS, CandidateParameters(**parameters), Workers())
    return rows_of(store, run)


def rows_of(store, run):
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


@pytest.mark.parametrize("scorer", ["bm25", "bm25plus"])
def test_scores_over_words_equal_rank_bm25(store, gpt2, scorer):
    texts = [text for _, text in sequence_texts(store)]
    model = (BM25Okapi if scorer == "bm25" else BM25Plus)([words_of(text) for text in texts])
    found = candidates(store, gpt2, run=f"words-{scorer}", filters=(scorer,), terms="words", top_k=1000)
    for prompt in PROMPTS:
        expected = model.get_scores(words_of(prompt.prompt + prompt.completion))
        ours = {row[1]: row[3] for row in found if row[0] == prompt.query_id}
        assert ours
        for k, (sequence_id, text) in enumerate(sequence_texts(store)):
            if sequence_id in ours:
                assert ours[sequence_id] == pytest.approx(expected[k], rel=1e-9)
            else:
                assert not set(words_of(text)) & set(words_of(prompt.prompt + prompt.completion))


def sequence_texts(store) -> list[tuple[int, str]]:
    with session(store) as connection:
        return connection.execute(
            "select sequence_id, d.text[start_char + 1:end_char] from sequences join documents d using (document_id) "
            "order by sequence_id"
        ).fetchall()


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def test_words_of_any_script_are_found_in_lower_case(store):
    text = "Ünïted НАЦИИ, l'été_2: नमस्ते! 東京"
    with session(store) as connection:
        (words,) = connection.execute("select words_of($t)", {"t": text}).fetchone()
    assert words == ["ünïted", "нации", "l", "été_2", "नमस्ते", "東京"]


def test_union_keeps_the_ranks_of_every_filter(store, gpt2):
    alone = {name: candidates(store, gpt2, run=f"alone-{name}", filters=(name,), top_k=4) for name in LEXICAL}
    union = candidates(store, gpt2, run="union", filters=tuple(reversed(LEXICAL)), top_k=4)
    assert union == sorted((row for rows in alone.values() for row in rows), key=lambda r: (r[0], r[2], r[4], r[1]))


def test_an_expression_restricts_filters_and_samples_without_changing_scores(store, gpt2):
    where = "text like '%the%' and n_tokens > 24"
    everything = candidates(store, gpt2, run="everything", filters=("bm25", "none"), top_k=1000, unfiltered=1000)
    with session(store) as connection:
        chosen = connection.execute(
            f"select sequence_id from sequences join documents using (document_id) where {where}"
        ).fetchall()
    chosen = {row[0] for row in chosen}
    found = candidates(store, gpt2, run="where", filters=("bm25", "none"), top_k=1000, unfiltered=1000, where=where)
    assert 0 < len(chosen) < len(all_sequence_ids(corpus_parts(store)))
    kept = [row[:4] for row in everything if row[1] in chosen]
    assert sorted(map(repr, kept)) == sorted(repr(row[:4]) for row in found)


def test_the_embedding_filter_stands_beside_the_others(store, gpt2):
    embed_corpus.fn(store, gpt2, 1, ComputeParameters(), Workers())
    n = len(all_sequence_ids(corpus_parts(store)))
    found = candidates(
        store, gpt2, run="embedding", filters=("bm25", "embedding"), embedding_layer=1, top_k=7,
        where=f"sequence_id < {n // 2}",
    )  # fmt: skip
    for query in ("otter", "viper"):
        nearest = [row for row in found if row[0] == query and row[2] == "embedding"]
        assert [row[4] for row in nearest] == list(range(1, 8))
        assert all(row[1] < n // 2 and -1 <= row[3] <= 1 for row in nearest)
        assert [row[3] for row in nearest] == sorted((row[3] for row in nearest), reverse=True)
        assert any(row[2] == "bm25" for row in found if row[0] == query)


def test_an_expression_that_reads_something_else_is_refused(store, gpt2):
    with pytest.raises(InputError, match="found a subquery"):
        CandidateParameters(where="(select count(*) from runs) = 0")


def test_more_candidates_than_sequences_are_those_that_share_a_term(store, gpt2):
    tokens = read_tokens(store, all_sequence_ids(corpus_parts(store)))
    found = candidates(store, gpt2, run="large", top_k=10_000_000)
    for prompt in PROMPTS:
        terms = set(query_terms(gpt2, prompt))
        sharing = {i for i, ids in tokens.items() if terms & set(ids)}
        assert {row[1] for row in found if row[0] == prompt.query_id} == sharing


def test_a_query_of_unknown_words_has_no_candidates(store, gpt2):
    prompts = [make_prompt("...", " !?", "marks"), PROMPTS[0]]
    parameters = CandidateParameters(terms="words", top_k=5)
    assert find_candidates.fn(store, "marks", gpt2, prompts, parameters, Workers()) == 5


def test_a_corpus_without_a_word_has_no_candidates(tmp_path, gpt2):
    file = worlds.write_jsonl(tmp_path / "marks.jsonl", [{"text": "... !? ..."}, {"text": "— — —"}])
    assert candidates(indexed(tmp_path / "s", gpt2, file), gpt2, terms="words") == []


def test_a_model_with_another_tokenizer_is_refused(tmp_path, store, gpt2):
    other = shutil.copytree(gpt2, tmp_path / "other")
    train_tokenizer((d["text"] for d in worlds.documents()[:9]), 300).save_pretrained(other)
    with pytest.raises(MismatchError, match="with which it was cut and indexed"):
        candidates(store, other, run="other")


@pytest.mark.parametrize("relation", ["postings", "terms"])
@pytest.mark.parametrize("damage", ["footer", "gone"])
def test_a_broken_shard_is_named_and_the_others_can_be_searched(tmp_path, gpt2, relation, damage):
    records = worlds.documents()
    files = [worlds.write_jsonl(tmp_path / f"{k}.jsonl", records[16 * k : 16 * k + 16]) for k in range(3)]
    whole, rest = indexed(tmp_path / "whole", gpt2, *files), indexed(tmp_path / "rest", gpt2, files[0], files[2])
    path = whole.file(relation, "p00001")
    path.unlink() if damage == "gone" else path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(StoreError, match=re.escape(str(path))):
        candidates(whole, gpt2, run="broken")
    found = candidates(whole, gpt2, run="skipped", skip_broken=True)
    lost = corpus_parts(whole)[1]
    expected = candidates(rest, gpt2, run="skipped")
    moved = [(q, i if i < lost.first_sequence_id else i + lost.n_sequences, *r) for q, i, *r in expected]
    assert found == moved


def test_a_replaced_part_takes_the_rows_of_its_shards_along(tmp_path, gpt2):
    file = worlds.write_jsonl(tmp_path / "a.jsonl", worlds.documents()[:16])
    store = indexed(tmp_path / "s", gpt2, file)
    worlds.write_jsonl(file, worlds.documents()[16:32])
    ingest.fn(store, gpt2, CorpusParameters(inputs=(str(file),)), Workers())
    (old,) = (part for part in all_parts(store) if part.status == "replaced")
    for relation in ("terms", "postings", "words", "word_postings", "word_lengths"):
        assert read_part(store, relation, old.name).num_rows == 0


def test_postings_are_counts_of_tokens(store):
    tokens = read_tokens(store, all_sequence_ids(corpus_parts(store)))
    expected = sorted((t, i, n) for i, ids in tokens.items() for t, n in Counter(ids).items())
    with session(store) as connection:
        assert connection.execute("from stored.postings").fetchall() == expected
        frequencies = Counter(t for ids in tokens.values() for t in set(ids))
        assert connection.execute("from terms order by term_id").fetchall() == sorted(frequencies.items())


def test_a_shard_of_many_segments_is_searched_as_one(tmp_path, gpt2, corpus, store, monkeypatch):
    monkeypatch.setattr("tasks.index.SEGMENT", 100)
    monkeypatch.setattr("tasks.index.BATCH", 3)
    cut = indexed(tmp_path / "s", gpt2, corpus)
    assert pq.ParquetFile(cut.file("postings", "p00000")).num_row_groups > 3
    for k, terms in enumerate(("tokens", "words")):
        parameters = {"filters": LEXICAL, "terms": terms, "top_k": 1000}
        assert candidates(cut, gpt2, f"cut{k}", **parameters) == candidates(store, gpt2, f"cut{k}", **parameters)


def test_a_gap_in_the_sequence_ids_is_an_error(tmp_path, gpt2, corpus):
    store = indexed(tmp_path / "s", gpt2, corpus)
    table = read_part(store, "sequences", "p00000")
    write_part(store, "sequences", "p00000", columns=table.slice(0, 3))
    store.file("terms", "p00000").unlink()
    write_part(store, "sequences", "p00000", columns=pa.concat_tables([table.slice(0, 3), table.slice(4)]))
    with pytest.raises(StoreError, match="without a gap"):
        build_index.fn(store, Workers())


def test_words_of_sequences_that_cross_documents_are_refused(tmp_path, gpt2, corpus):
    store = create_store(tmp_path / "s")
    ingest.fn(store, gpt2, CorpusParameters(inputs=(str(corpus),), packing="concatenate"), Workers())
    with pytest.raises(InputError, match="packing concatenate"):
        build_index.fn(store, Workers(), "words")


def test_a_killed_build_goes_on_with_the_missing_shards(tmp_path, gpt2, monkeypatch):
    records = worlds.documents()
    files = [worlds.write_jsonl(tmp_path / f"{k}.jsonl", records[16 * k : 16 * k + 16]) for k in range(3)]
    store, undisturbed = create_store(tmp_path / "s"), indexed(tmp_path / "u", gpt2, *files)
    ingest.fn(store, gpt2, CorpusParameters(inputs=tuple(map(str, files))), Workers())
    script = (
        "import os, sys\nimport tasks.index as index\nfrom storage.store import open_store\n"
        "from tasks.fanout import Workers\nwrite = index._write_token_shard\n"
        "def killed(job, batches):\n"
        "    os.kill(os.getpid(), 9) if job.part == 'p00001' else write(job, batches)\n"
        "index._write_token_shard = killed\n"
        "index.build_index.fn(open_store(sys.argv[1]), Workers())\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(store.root)], cwd=ROOT, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    complete = store.file("postings", "p00000").stat().st_mtime_ns
    assert build_index.fn(store, Workers()) == 2
    assert store.file("postings", "p00000").stat().st_mtime_ns == complete
    assert candidates(store, gpt2, "killed", top_k=9) == candidates(undisturbed, gpt2, "killed", top_k=9)


@pytest.mark.e2e
def test_workers_killed_while_building_and_searching_change_nothing(tmp_path, gpt2):
    records = worlds.documents()
    files = [worlds.write_jsonl(tmp_path / f"{k}.jsonl", records[24 * k : 24 * k + 24]) for k in range(2)]
    undisturbed, store = indexed(tmp_path / "u", gpt2, *files), create_store(tmp_path / "s")
    ingest.fn(store, gpt2, CorpusParameters(inputs=tuple(map(str, files))), Workers())

    def die_in(module: str, function: str) -> None:
        """Let this process end where it would call the function; the worker that Dask starts in its place does not."""
        import importlib

        setattr(importlib.import_module(module), function, lambda *_: os.kill(os.getpid(), signal.SIGKILL))

    with open_workers("local", 2) as workers:
        pids = set(workers.lexical().run(os.getpid).values())
        workers.lexical().run(die_in, "tasks.index", "_write_token_shard")
        build_index.fn(store, workers)
        later = set(workers.lexical().run(os.getpid).values())
        assert not pids & later
        workers.lexical().run(die_in, "tasks.lexical", "read_postings")
        find_candidates.fn(store, "r", gpt2, PROMPTS, CandidateParameters(top_k=9), workers)
        assert not later & set(workers.lexical().run(os.getpid).values())
    assert rows_of(store, "r") == candidates(undisturbed, gpt2, "r", top_k=9)


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


@pytest.mark.parametrize("shards_at_once", [1, 10])
def test_candidates_do_not_depend_on_the_number_of_parts(tmp_path, gpt2, store, shards_at_once, monkeypatch):
    monkeypatch.setattr("tasks.lexical.HITS", shards_at_once * 5 * len(PROMPTS))
    records = worlds.documents()
    files = [worlds.write_jsonl(tmp_path / f"{k}.jsonl", records[16 * k : 16 * k + 16]) for k in range(3)]
    three = indexed(tmp_path / "three", gpt2, *files)
    for k, parameters in enumerate(
        (
            {"top_k": 5, "filters": LEXICAL},
            {"top_k": 5, "filters": LEXICAL, "terms": "words"},
            {"filters": ("none",)},
            {"unfiltered": 9},
            {"top_k": 3, "filters": ("bm25", "none"), "unfiltered": 4, "where": "document_id >= 'd'"},
        )
    ):
        run = f"parts{k}-{shards_at_once}"
        assert candidates(store, gpt2, run, **parameters) == candidates(three, gpt2, run, **parameters)


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
