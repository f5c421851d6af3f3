"""Fact-tracing sets: who is a proponent of what, which queries are left out, what is said of a broken folder."""

from __future__ import annotations

import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.errors import InputError
from storage.fact_files import DOCUMENT_ID
from storage.fact_sets import (
    FactQuery,
    collapse_keys,
    fixed_candidates,
    proponents,
    read_fact_set,
    write_fact_set,
)
from storage.inputs import find_inputs, read_documents

DOCUMENTS = pa.table(
    {
        "doc_id": ["d1", "d2", "d3", "d4", "d5"],
        "text": ["one", "two", "three", "four", "five"],
        "facts": [["a | b | c", "x"], ["x", "x"], [], None, ["a | b", "c | x"]],
        "sentence": ["s1", "s2", "s1", None, "s5"],
    }
)
QUERIES = pa.table(
    {
        "query_id": ["q1", "q2"],
        "prompt": ["Who?", ""],
        "answer": ["c", "ex"],
        "fact": ["a | b | c", "x"],
        "relation": [1, 2],
    }
)


NOT_UTF8 = pa.StringArray.from_buffers(2, pa.array(["abc", "d"]).buffers()[1], pa.py_buffer(b"ab\xffd"))


def changed(table: pa.Table, **columns) -> pa.Table:
    return pa.table({name: table[name] for name in table.column_names} | columns)


def test_a_document_is_a_proponent_when_its_facts_hold_the_query_s_fact_to_the_letter(tmp_path):
    found = read_fact_set(write_fact_set(tmp_path / "set", DOCUMENTS, QUERIES))
    assert found.queries == (FactQuery("q1", "Who?", "c", "a | b | c"), FactQuery("q2", "", "ex", "x"))
    assert proponents(found) == {"q1": ("d1",), "q2": ("d1", "d2")}  # d5 splits at the separators, d2 says it twice
    assert fixed_candidates(found) is None
    assert (found.without_proponent, found.without_answer) == ((), ())


@pytest.mark.parametrize("text", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_every_arrow_type_of_strings_and_lists_reads_alike(tmp_path, text):
    plain = pa.large_list(pa.large_string()) if text == pa.large_string() else pa.list_(pa.string())
    documents = changed(
        DOCUMENTS, doc_id=pa.array(DOCUMENTS["doc_id"].to_pylist()).cast(text), facts=DOCUMENTS["facts"].cast(plain)
    )
    queries = changed(QUERIES, fact=pa.array(QUERIES["fact"].to_pylist()).cast(text))
    found = read_fact_set(write_fact_set(tmp_path / "set", documents, queries))
    assert proponents(found) == {"q1": ("d1",), "q2": ("d1", "d2")}


def test_queries_without_a_proponent_or_an_answer_are_left_out_counted_and_named(tmp_path, caplog):
    queries = pa.table(
        {
            "query_id": ["q1", "lost", "none", "blank"],
            "prompt": ["Who?"] * 4,
            "answer": ["c", "c", "c", " "],
            "fact": ["x", "nowhere", None, "x"],
        }
    )
    with caplog.at_level(logging.WARNING):
        found = read_fact_set(write_fact_set(tmp_path / "set", DOCUMENTS, queries))
    assert [q.query_id for q in found.queries] == ["q1"]
    assert [q.query_id for q in found.without_proponent] == ["lost", "none"]
    assert [q.query_id for q in found.without_answer] == ["blank"]
    assert "2 queries whose fact no document holds are left out: lost, none" in caplog.text
    assert "1 queries without an answer are left out: blank" in caplog.text


def test_fixed_candidates_hold_the_truth_whatever_the_file_says(tmp_path, caplog):
    named = [("q1", "d3", 0), ("q1", "d3", 0), ("q2", "d2", 1), ("q2", "d4", 0)]
    candidates = pa.table(dict(zip(("query_id", "doc_id", "label"), zip(*named, strict=True), strict=True)))
    found = read_fact_set(write_fact_set(tmp_path / "set", DOCUMENTS, QUERIES, candidates))
    with caplog.at_level(logging.WARNING):
        assert fixed_candidates(found) == {"q1": ("d1", "d3"), "q2": ("d1", "d2", "d4")}
    assert "candidates of 2 queries lacked a proponent" in caplog.text
    only_q2 = read_fact_set(write_fact_set(tmp_path / "two", DOCUMENTS, QUERIES, candidates.slice(2)))
    assert fixed_candidates(only_q2) == {"q2": ("d1", "d2", "d4")}


@pytest.mark.parametrize(
    ("row", "named"), [(("q9", "d1"), "query 'q9'"), (("q1", "d9"), "document 'd9'"), (("q1", None), "document None")]
)
def test_candidates_that_the_set_does_not_have_are_refused(tmp_path, row, named):
    candidates = pa.table({"query_id": ["q1", row[0]], "doc_id": ["d1", row[1]]})
    folder = write_fact_set(tmp_path / "set", DOCUMENTS, QUERIES, candidates)
    with pytest.raises(InputError, match=f"found others: {named}"):
        read_fact_set(folder)


def test_a_query_may_have_other_names_that_are_right_too(tmp_path):
    queries = changed(QUERIES, aliases=pa.array([["see", "c", "sea", "see", None, " "], None]))
    found = read_fact_set(write_fact_set(tmp_path / "set", DOCUMENTS, queries))
    assert [query.aliases for query in found.queries] == [("see", "sea"), ()]


@pytest.mark.parametrize("values", [["sea", "see"], [1, 2], [{"name": "sea"}, None], [[1], [2]]])
def test_a_column_of_aliases_that_holds_no_lists_of_text_is_another_column(tmp_path, caplog, values):
    folder = write_fact_set(tmp_path / "set", DOCUMENTS, changed(QUERIES, aliases=pa.array(values)))
    assert [query.aliases for query in read_fact_set(folder).queries] == [(), ()]
    assert "column aliases is" in caplog.text


def test_versions_of_one_text_share_a_key_where_the_set_names_the_column(tmp_path):
    alone = read_fact_set(write_fact_set(tmp_path / "alone", DOCUMENTS, QUERIES))
    assert collapse_keys(alone) == {name: name for name in ("d1", "d2", "d3", "d4", "d5")}
    shared = read_fact_set(write_fact_set(tmp_path / "shared", DOCUMENTS, QUERIES, collapse="sentence"))
    assert collapse_keys(shared) == {"d1": "s1", "d2": "s2", "d3": "s1", "d4": "d4", "d5": "s5"}


@pytest.mark.parametrize(
    ("documents", "queries", "said"),
    [
        (DOCUMENTS.drop_columns("facts"), QUERIES, "found no facts among doc_id, text, sentence"),
        (DOCUMENTS, QUERIES.drop_columns("answer"), "found no answer among query_id, prompt, fact, relation"),
        (pa.concat_tables([DOCUMENTS, DOCUMENTS.slice(1, 1)]), QUERIES, "found 1 that occur again: 'd2'"),
        (DOCUMENTS, pa.concat_tables([QUERIES, QUERIES]), "found 2 that occur again: 'q1', 'q2'"),
        (changed(DOCUMENTS, facts=pa.array(["x"] * 5)), QUERIES, "a complete Parquet file with"),
        (DOCUMENTS, changed(QUERIES, prompt=pa.array(["a", None])), "found none in 1: 'q2'"),
        (DOCUMENTS, changed(QUERIES, fact=pa.array(["u", "v"])), "found none among 2"),
        (DOCUMENTS, changed(QUERIES, query_id=pa.array(["q1", " "])), "found 1 rows without one"),
        (changed(DOCUMENTS, doc_id=pa.array(["a", "", None, "d", "e"])), QUERIES, "found 2 rows without one"),
        (DOCUMENTS, changed(QUERIES, prompt=NOT_UTF8), r"queries.parquet: expected UTF-8 as prompt"),
        (DOCUMENTS, changed(QUERIES, query_id=NOT_UTF8), r"queries.parquet: expected UTF-8 as query_id"),
        (DOCUMENTS, QUERIES.append_column("prompt", QUERIES["prompt"]), "found twice prompt among"),
    ],
)  # fmt: skip
def test_a_broken_set_says_which_file_and_what_is_wrong_with_it(tmp_path, documents, queries, said):
    folder = write_fact_set(tmp_path / "set", documents, queries)
    with pytest.raises(InputError, match=said):
        read_fact_set(folder)


def test_a_missing_file_or_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="a file abstracts.parquet, found no such folder"):
        read_fact_set(tmp_path / "nowhere")
    pq.write_table(DOCUMENTS, tmp_path / "abstracts.parquet")
    with pytest.raises(InputError, match="a file queries.parquet, found abstracts.parquet"):
        read_fact_set(tmp_path)


def test_a_set_is_written_whole_or_not_at_all_and_never_over_another(tmp_path):
    def broken():
        yield DOCUMENTS
        raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        write_fact_set(tmp_path / "set", broken(), QUERIES)
    assert list(tmp_path.iterdir()) == []
    folder = write_fact_set(tmp_path / "set", iter([DOCUMENTS.slice(0, 2), DOCUMENTS.slice(2)]), QUERIES)
    assert pq.read_table(folder / "abstracts.parquet").equals(DOCUMENTS)
    assert write_fact_set(folder, iter([DOCUMENTS.slice(0, 2), DOCUMENTS.slice(2)]), QUERIES) == folder
    with pytest.raises(InputError, match="expected an empty place"):
        write_fact_set(folder, DOCUMENTS, QUERIES.slice(0, 1))


def test_the_digest_of_the_documents_is_blind_to_what_is_asked(tmp_path):
    first = read_fact_set(write_fact_set(tmp_path / "first", DOCUMENTS, QUERIES))
    asked = read_fact_set(write_fact_set(tmp_path / "asked", DOCUMENTS, changed(QUERIES, answer=pa.array(["c", "y"]))))
    text = changed(DOCUMENTS, text=pa.array(["one", "two", "three", "four", "six"]))
    taught = read_fact_set(write_fact_set(tmp_path / "taught", text, QUERIES))
    assert first.documents_fingerprint == asked.documents_fingerprint != taught.documents_fingerprint


IDS = [7, 12, 100, 101, -1]


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint8(), pa.string(), pa.large_string(), pa.string_view(),
                                  pa.dictionary(pa.int32(), pa.string())])  # fmt: skip
def test_a_set_and_the_corpus_that_is_read_from_it_name_the_documents_alike(tmp_path, kind):
    ids = pa.array([abs(k) for k in IDS] if kind == pa.uint8() else IDS)
    documents = changed(DOCUMENTS, doc_id=ids.cast(kind if pa.types.is_integer(kind) else pa.string()).cast(kind))
    documents = documents.append_column("document_id", pa.array(["d5", "d4", "d3", "d2", "d1"]))  # of something else
    found = read_fact_set(write_fact_set(tmp_path / "set", documents, QUERIES))
    (file,) = find_inputs([found.documents_path], DOCUMENT_ID)
    ingested = [document.document_id for batch in read_documents(file) for document in batch]
    assert ingested == list(collapse_keys(found)) == [str(k) for k in ids.to_pylist()]
    assert proponents(found) == {"q1": ("7",), "q2": ("12", "7")}


@pytest.mark.parametrize("kind", [pa.float64(), pa.binary(), pa.timestamp("us")])
@pytest.mark.parametrize("file", ["documents", "queries", "candidates"])
def test_ids_whose_text_two_readers_would_not_agree_on_are_refused(tmp_path, kind, file):
    tables = {
        "documents": DOCUMENTS,
        "queries": QUERIES,
        "candidates": pa.table({"query_id": ["q1"], "doc_id": ["d1"]}),
    }
    column = {"documents": "doc_id", "queries": "query_id", "candidates": "doc_id"}[file]
    tables[file] = changed(tables[file], **{column: pa.nulls(len(tables[file]), kind)})
    folder = write_fact_set(tmp_path / "set", **tables)
    with pytest.raises(InputError, match=f"expected text or integers as {column}, found"):
        read_fact_set(folder)


def test_docred_reads_with_a_proponent_for_every_query(shared_data):
    found = read_fact_set(shared_data / "fact_tracing" / "docred")
    truth = proponents(found)
    counts = pq.read_table(found.directory / "queries.parquet", columns=["query_id", "n_proponents"]).to_pylist()
    assert {row["query_id"]: row["n_proponents"] for row in counts} == {q: len(d) for q, d in truth.items()}
