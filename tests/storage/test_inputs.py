from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.errors import InputError
from storage.inputs import BadDocument, find_inputs, read_documents


def documents(path):
    (file,) = find_inputs([path])
    return [document for batch in read_documents(file) for document in batch]


@pytest.fixture
def records():
    return [{"doc_id": f"d{k}", "text": f"text {k}", "source": "s", "year": k} for k in range(3)]


def test_parquet_jsonl_and_datasets_give_the_same_documents(tmp_path, records):
    from datasets import Dataset

    pq.write_table(pa.Table.from_pylist(records), tmp_path / "c.parquet")
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, records)))
    Dataset.from_list(records).save_to_disk(tmp_path / "c")
    parquet, jsonl, dataset = (documents(tmp_path / name) for name in ("c.parquet", "c.jsonl", "c"))
    assert parquet == jsonl == dataset
    assert [(d.document_id, d.text, d.source, d.metadata) for d in parquet][1] == ("d1", "text 1", "s", '{"year": 1}')


def test_a_dataset_dict_gives_one_input_per_split(tmp_path, records):
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset.from_list(records), "test": Dataset.from_list(records[:1])}).save_to_disk(
        tmp_path / "d"
    )
    assert [(file.split, sum(map(len, read_documents(file)))) for file in find_inputs([tmp_path / "d"])] == [
        ("train", 3),
        ("test", 1),
    ]


def test_plain_text_is_one_document_named_after_its_file(tmp_path):
    (tmp_path / "walden.txt").write_text("I went to the woods.\n", encoding="utf-8")
    (document,) = documents(tmp_path / "walden.txt")
    assert (document.document_id, document.text, document.source) == ("walden:0", "I went to the woods.\n", "walden")


def test_a_folder_stands_for_its_files_in_alphabetical_order(tmp_path):
    for name in ("b.txt", "a.jsonl", "notes.pdf"):
        (tmp_path / name).write_text('{"text": "x"}')
    assert [file.path.name for file in find_inputs([tmp_path])] == ["a.jsonl", "b.txt"]


def test_a_truncated_parquet_file_is_named(tmp_path, records):
    path = tmp_path / "c.parquet"
    pq.write_table(pa.Table.from_pylist(records), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"c\.parquet: expected a complete Parquet file"):
        documents(path)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_missing_text_column_is_named_with_the_columns_there_are(tmp_path, suffix):
    path = tmp_path / f"c.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"body": ["x"]}), path)
    else:
        path.write_text('{"body": "x"}')
    with pytest.raises(InputError, match="expected a column 'text', found columns body"):
        documents(path)


def test_a_broken_json_line_is_named_by_number(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"text": "x"}\n{"text": \n')
    with pytest.raises(InputError, match="line 2"):
        documents(tmp_path / "c.jsonl")


def test_bad_documents_are_told_apart_and_do_not_hide_the_others(tmp_path):
    column = pa.array([b"good", b"\xff\xfe", b"  ", b"also good"], pa.binary())
    pq.write_table(pa.table({"text": column}), tmp_path / "c.parquet")
    (tmp_path / "c.jsonl").write_bytes(b'{"text": "good"}\n{"text": "\xff"}\n{"text": ""}\n{"text": "also good"}\n')
    for name in ("c.parquet", "c.jsonl"):
        found = documents(tmp_path / name)
        assert [type(d) is BadDocument for d in found] == [False, True, True, False], name
        assert "not UTF-8" in found[1].reason
        assert found[2].reason == "empty text"


def test_invalid_utf8_inside_a_string_column_is_found(tmp_path):
    good, bad = b"good", b"caf\xe9"
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, len(good), len(good) + len(bad))))
    column = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(good + bad))
    pq.write_table(pa.table({"text": column}), tmp_path / "c.parquet")
    found = documents(tmp_path / "c.parquet")
    assert found[0].text == "good"
    assert found[1].reason == "not UTF-8 at byte 3"


@pytest.mark.parametrize("text", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_every_arrow_type_of_strings_tells_its_bad_document(tmp_path, text):
    good = pa.array(["good", "caf?", "also good"], pa.string())
    bad = pa.StringArray.from_buffers(3, good.buffers()[1], pa.py_buffer(b"goodcaf\xe9also good"))
    pq.write_table(pa.table({"text": bad.cast(text)}), tmp_path / "c.parquet")
    found = documents(tmp_path / "c.parquet")
    assert [getattr(document, "reason", document) for document in found][1] == "not UTF-8 at byte 3"
    assert [found[0].text, found[2].text] == ["good", "also good"]


def test_bad_bytes_in_a_column_of_metadata_cost_that_column_alone_and_in_the_ids_the_file(tmp_path, caplog):
    good = pa.array(["one", "two"], pa.string())
    bad = pa.StringArray.from_buffers(2, good.buffers()[1], pa.py_buffer(b"on\xe9two"))
    columns = {"text": ["x", "y"], "title": bad, "year": [1, 2]}
    pq.write_table(pa.table({"doc_id": ["a", "b"], **columns}), tmp_path / "title.parquet")
    found = documents(tmp_path / "title.parquet")
    assert [(d.document_id, json.loads(d.metadata)) for d in found] == [
        ("a", {"title": None, "year": 1}), ("b", {"title": None, "year": 2}),
    ]  # fmt: skip
    assert "column title is not UTF-8 and left out of the metadata" in caplog.text
    pq.write_table(pa.table({"doc_id": bad, **columns}), tmp_path / "ids.parquet")
    with pytest.raises(InputError, match="expected UTF-8 as doc_id"):
        documents(tmp_path / "ids.parquet")


def test_the_ids_come_from_the_column_that_is_named(tmp_path, records):
    for record in records:
        record["document_id"] = f"other {record['doc_id']}"
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "c.parquet")
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, records)))
    for name in ("c.parquet", "c.jsonl"):
        (usual,), (named,) = find_inputs([tmp_path / name]), find_inputs([tmp_path / name], "doc_id")
        ids = [[d.document_id for batch in read_documents(file) for d in batch] for file in (usual, named)]
        assert ids == [["other d0", "other d1", "other d2"], ["d0", "d1", "d2"]]
        assert usual.digest() != named.digest()  # or a store would take the one for the other
        with pytest.raises(InputError, match="expected a column 'name' of ids, found columns doc_id"):
            [*read_documents(*find_inputs([tmp_path / name], "name"))]
    (named,) = find_inputs([tmp_path / "c.parquet"], "document_id")
    assert named.digest() == find_inputs([tmp_path / "c.parquet"])[0].digest()


def test_a_document_without_the_id_that_was_named_is_a_bad_one(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"text": "x", "name": "n"}\n{"text": "y"}\n')
    found = [d for batch in read_documents(*find_inputs([tmp_path / "c.jsonl"], "name")) for d in batch]
    assert (found[0].document_id, found[1].reason) == ("n", "no name")


def test_a_missing_file_and_an_unknown_kind_are_named(tmp_path):
    with pytest.raises(InputError, match="nothing there"):
        find_inputs([tmp_path / "none.parquet"])
    (tmp_path / "c.xlsx").write_text("")
    with pytest.raises(InputError, match=r"\.xlsx"):
        find_inputs([tmp_path / "c.xlsx"])


def test_the_digest_follows_the_content_not_the_name(tmp_path):
    for name, text in (("a.txt", "one"), ("b.txt", "one"), ("c.txt", "two")):
        (tmp_path / name).write_text(text)
    a, b, c = (find_inputs([tmp_path / name])[0].digest() for name in ("a.txt", "b.txt", "c.txt"))
    assert a == b != c
