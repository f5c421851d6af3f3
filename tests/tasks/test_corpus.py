from __future__ import annotations

import pytest
import worlds

from storage.database import session
from storage.errors import InputError, MismatchError
from storage.sequences import all_sequence_ids, corpus_fingerprint, corpus_parts, current_parts, read_tokens
from storage.store import create_store
from tasks.corpus import CorpusParameters, ingest, require_alone
from tasks.fanout import Workers

cut = ingest.fn  # the stage without Prefect


def rows(store, statement):
    with session(store) as connection:
        return connection.execute(statement).fetchall()


def ingest_into(path, model, *inputs, **parameters):
    store = create_store(path)
    cut(store, model, CorpusParameters(inputs=tuple(map(str, inputs)), **parameters), Workers())
    return store


def test_a_store_that_is_to_hold_these_inputs_alone_is_refused_with_others(tmp_path, gpt2, corpus):
    store = ingest_into(tmp_path / "s", gpt2, corpus)
    other = worlds.write_jsonl(tmp_path / "other.jsonl", [{"document_id": "x", "text": "It rains."}])
    copied = tmp_path / "copied.jsonl"
    copied.write_bytes(corpus.read_bytes())
    for inputs in ((str(corpus),), (str(copied),), (str(other), str(corpus))):
        require_alone(store, CorpusParameters(inputs=inputs))
    with pytest.raises(MismatchError, match="found those of .*fables.jsonl as well. Name another store"):
        require_alone(store, CorpusParameters(inputs=(str(other),)))


def test_characters_of_a_sequence_are_those_that_its_tokens_spell(tmp_path, gpt2, corpus):
    from transformers import AutoTokenizer

    store = ingest_into(tmp_path / "s", gpt2, corpus, sequence_length=12)
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    found = rows(
        store, "select token_ids, text[start_char + 1:end_char] from sequences join documents using (document_id)"
    )
    assert len(found) > len(worlds.documents())
    for token_ids, text in found:
        assert tokenizer.decode(token_ids, skip_special_tokens=True) == text


def test_packing_by_document_keeps_every_token_but_lone_ones(tmp_path, gpt2, corpus):
    from transformers import AutoTokenizer

    store = ingest_into(tmp_path / "s", gpt2, corpus, sequence_length=7)
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    for document in worlds.documents()[:9]:
        expected = tokenizer(document["text"])["input_ids"]
        chunks = [expected[k : k + 7] for k in range(0, len(expected), 7)]
        found = rows(
            store,
            f"select token_ids from sequences where document_id = '{document['document_id']}' order by sequence_id",
        )
        assert [ids for (ids,) in found] == [chunk for chunk in chunks if len(chunk) > 1]


def test_concatenated_packing_fills_every_sequence_but_the_last(tmp_path, gpt2, corpus):
    from transformers import AutoTokenizer

    store = ingest_into(tmp_path / "s", gpt2, corpus, sequence_length=16, packing="concatenate")
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    stream = [token for d in worlds.documents() for token in tokenizer(d["text"])["input_ids"]]
    found = [ids for (ids,) in rows(store, "select token_ids from sequences order by sequence_id")]
    assert found == [stream[k : k + 16] for k in range(0, len(stream), 16) if len(stream[k : k + 16]) > 1]


def test_ids_and_rows_do_not_depend_on_the_number_of_parts(tmp_path, gpt2, corpus):
    records = worlds.documents()
    files = [worlds.write_jsonl(tmp_path / f"{k}.jsonl", records[16 * k : 16 * k + 16]) for k in range(3)]
    one, three = ingest_into(tmp_path / "one", gpt2, corpus), ingest_into(tmp_path / "three", gpt2, *files)
    columns = "select sequence_id, document_id, start_char, end_char, token_ids from sequences order by sequence_id"
    assert rows(one, columns) == rows(three, columns)
    assert len(corpus_parts(three)) == 3


def test_known_content_is_not_read_again_and_a_new_file_adds_a_part(tmp_path, gpt2, corpus):
    store = ingest_into(tmp_path / "s", gpt2, corpus)
    before = (store.file("sequences", "p00000").stat().st_mtime_ns, corpus_fingerprint(corpus_parts(store)))
    more = worlds.write_jsonl(tmp_path / "more.jsonl", [{"document_id": "new", "text": "The otter came back."}])
    cut(store, gpt2, CorpusParameters(inputs=(str(corpus), str(more))), Workers())
    assert store.file("sequences", "p00000").stat().st_mtime_ns == before[0]
    assert [p.name for p in current_parts(store)] == ["p00000", "p00001"]
    assert corpus_fingerprint(corpus_parts(store)) != before[1]


def test_a_changed_file_replaces_its_part_and_its_ids_are_not_given_again(tmp_path, gpt2):
    records = worlds.documents()[:4]
    path = worlds.write_jsonl(tmp_path / "c.jsonl", records)
    store = ingest_into(tmp_path / "s", gpt2, path)
    old = all_sequence_ids(corpus_parts(store))
    worlds.write_jsonl(path, [*records[:3], {"document_id": "d9", "text": "A viper sang."}])
    cut(store, gpt2, CorpusParameters(inputs=(str(path),)), Workers())
    new = all_sequence_ids(corpus_parts(store))
    assert set(old).isdisjoint(new)
    assert sorted(d for (d,) in rows(store, "select document_id from documents")) == ["d000", "d001", "d002", "d9"]
    assert set(read_tokens(store, new)) == set(new.tolist())


def test_an_empty_corpus_is_refused(tmp_path, gpt2):
    (tmp_path / "c.jsonl").write_text("")
    with pytest.raises(InputError, match="at least one document"):
        ingest_into(tmp_path / "s", gpt2, tmp_path / "c.jsonl")


def test_empty_documents_are_refused_by_name_or_counted(tmp_path, gpt2):
    path = worlds.write_jsonl(tmp_path / "c.jsonl", [{"text": "A lynx slept."}, {"text": ""}])
    with pytest.raises(InputError, match=r"row 1: empty text.*--bad-documents skip"):
        ingest_into(tmp_path / "s", gpt2, path)
    store = ingest_into(tmp_path / "s", gpt2, path, bad_documents="skip")
    assert [(p.n_documents, p.n_skipped) for p in corpus_parts(store)] == [(1, 1)]


def test_a_document_id_that_comes_twice_is_refused_and_the_corpus_stays(tmp_path, gpt2, corpus):
    store = ingest_into(tmp_path / "s", gpt2, corpus)
    again = worlds.write_jsonl(tmp_path / "again.jsonl", [{"document_id": "d003", "text": "Something else."}])
    with pytest.raises(InputError, match="'d003'"):
        cut(store, gpt2, CorpusParameters(inputs=(str(again),)), Workers())
    assert len(corpus_parts(store)) == 1


def test_another_tokenizer_or_cut_is_refused(tmp_path, gpt2, corpus):
    store = ingest_into(tmp_path / "s", gpt2, corpus)
    more = worlds.write_jsonl(tmp_path / "more.jsonl", [{"text": "The otter came back."}])
    with pytest.raises(MismatchError, match="48 tokens, as its corpus was cut"):
        cut(store, gpt2, CorpusParameters(inputs=(str(more),), sequence_length=8), Workers())


def test_a_sequence_longer_than_the_context_is_refused(tmp_path, gpt2, corpus):
    with pytest.raises(InputError, match="context of 48 tokens"):
        ingest_into(tmp_path / "s", gpt2, corpus, sequence_length=64)
