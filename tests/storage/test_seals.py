from __future__ import annotations

import hashlib
import random

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from storage.errors import StoreError
from storage.seals import BLANK, seal_is_whole
from storage.store import create_store
from storage.tables import write_part
from storage.tensors import read_tensors, write_tensors


@pytest.fixture
def files(tmp_path):
    store = create_store(tmp_path / "s")
    write_part(store, "documents", "p0", columns={
        "document_id": ["a", "b"], "text": ["otters", 'headwater_sha256":"' + "a" * 64], "source": ["", ""],
        "metadata": ["{}", "{}"],
    })  # fmt: skip
    tensors = store.root / "factors" / "fit-1" / "0.basis.safetensors"
    write_tensors(store, tensors, {"a": torch.arange(5.0)}, {"module": "h.0"})
    return [store.file("documents", "p0"), tensors]


def test_a_sealed_file_is_whole_and_reads_as_any_other(files):
    table, tensors = files
    assert [seal_is_whole(path) for path in files] == [True, True]
    assert pq.read_table(table, partitioning=None)["document_id"].to_pylist() == ["a", "b"]
    assert duckdb.sql(f"select count(*) from '{table}'").fetchall() == [(2,)]
    assert read_tensors(tensors)["a"].tolist() == [0, 1, 2, 3, 4]


def test_the_seal_is_the_digest_of_the_bytes_with_zeros_in_its_place(files):
    for path in files:
        data = path.read_bytes()
        at = data.rindex(b"headwater_sha256") + len(b"headwater_sha256")
        start = next(k for k in range(at, at + 4) if data[k : k + 64].isalnum())
        blank = data[:start] + BLANK.encode() + data[start + 64 :]
        assert hashlib.sha256(blank).hexdigest() == data[start : start + 64].decode()


def test_any_changed_bit_is_found_except_in_the_name_of_the_seal(files):
    generator = random.Random(0)
    for path in files:
        data = path.read_bytes()
        name = data.rindex(b"headwater_sha256")
        places = set(generator.sample(range(len(data)), min(300, len(data))))
        for at in places - set(range(name - 2, name + 19)):  # there it harms no data, and the file passes as an old one
            changed = bytearray(data)
            changed[at] ^= 1 << generator.randrange(8)
            path.write_bytes(changed)
            assert seal_is_whole(path) is False or not readable(path), at


def readable(path) -> bool:
    try:
        pq.read_table(path, partitioning=None) if path.suffix == ".parquet" else read_tensors(path)
    except (pa.ArrowException, OSError, StoreError):
        return False
    return True


def test_a_file_without_a_seal_is_neither_whole_nor_broken(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "old.parquet")
    assert seal_is_whole(tmp_path / "old.parquet") is None
