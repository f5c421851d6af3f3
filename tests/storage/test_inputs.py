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
