from __future__ import annotations

import json
import os

import pyarrow as pa
import pytest

from storage.errors import InputError, StoreError
from storage.schemas import SCHEMAS
from storage.store import create_store, explain_write, open_store, replacing
from storage.tables import has_part, read_part, write_part, writing


def test_a_new_store_answers_every_relation_with_no_rows(tmp_path):
    from storage.database import session

    store = create_store(tmp_path / "s")
    with session(store) as connection:
        counts = {name: connection.execute(f"select count(*) from {name}").fetchall()[0][0] for name in SCHEMAS}
    assert counts == dict.fromkeys(SCHEMAS, 0)


def test_a_store_is_not_made_over_other_files(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(StoreError, match="other files and no store.json"):
        create_store(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_store_of_a_newer_schema_is_refused_and_left_alone(tmp_path):
    store = create_store(tmp_path / "s")
    (store.root / "store.json").write_text(json.dumps({"headwater_store": 99}))
    with pytest.raises(StoreError, match="version 99, written by a newer headwater"):
        open_store(store.root)
    with pytest.raises(StoreError, match="version 99"):
        create_store(store.root)


def test_a_part_that_fails_half_way_is_absent_and_leaves_nothing(tmp_path):
    store = create_store(tmp_path / "s")
    rows = {"term_id": [1], "document_frequency": [2]}
    with pytest.raises(RuntimeError, match="power cut"), writing(store, "terms", "p0") as part:
        part.append(rows)
        raise RuntimeError("power cut")
    assert not has_part(store, "terms", "p0")
    assert list((store.root / "work").iterdir()) == []


def test_a_part_is_never_seen_under_its_name_before_it_is_whole(tmp_path):
    store = create_store(tmp_path / "s")
    final = store.file("terms", "p0")
    with replacing(store, final) as path:
        path.write_bytes(b"half")
        assert not final.exists()
        assert path.parent == store.root / "work"
    assert final.read_bytes() == b"half"


def test_a_truncated_part_is_named(tmp_path):
    store = create_store(tmp_path / "s")
    write_part(store, "terms", "p0", columns={"term_id": [1, 2], "document_frequency": [3, 4]})
    path = store.file("terms", "p0")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(StoreError, match="terms/p0.parquet"):
        read_part(store, "terms", "p0")


def test_rows_are_cast_to_the_relation_s_columns(tmp_path):
    store = create_store(tmp_path / "s")
    table = pa.table({"document_frequency": [3], "term_id": pa.array([7], pa.int64())})
    write_part(store, "terms", "p0", columns=table)
    assert read_part(store, "terms", "p0").schema.names == ["term_id", "document_frequency"]
    assert read_part(store, "terms", "p0").to_pylist() == [{"term_id": 7, "document_frequency": 3}]


@pytest.mark.parametrize("name", ["../escape", "a/b", "", ".hidden", "x" * 200, "nul\0"])
def test_a_name_from_outside_never_forms_a_path(tmp_path, name):
    store = create_store(tmp_path / "s")
    with pytest.raises(InputError, match="expected letters"):
        store.file("terms", name)


def test_a_full_disk_is_explained(tmp_path):
    with pytest.raises(StoreError, match="room on the disk.*run the same command again"), explain_write(tmp_path):
        raise OSError(28, os.strerror(28))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, which this system lacks")
def test_a_really_full_device_is_explained():
    with pytest.raises(StoreError, match="room on the disk"), explain_write("/dev/full"), open("/dev/full", "wb") as f:
        f.write(b"x" * 100_000)
        f.flush()


def test_a_file_in_the_way_of_a_directory_is_explained_not_swallowed(tmp_path):
    (tmp_path / "s").write_text("")
    with pytest.raises(StoreError, match="other files and no store.json"):
        create_store(tmp_path / "s")
