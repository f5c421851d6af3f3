"""Scratch: copies are whole for who holds them while others make room, and nobody else can have prepared its place."""

from __future__ import annotations

import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from upath import UPath

from storage import leftovers, places, scratch
from storage.errors import StoreError
from storage.settings import settings
from storage.store import Store


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADWATER_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setenv("HEADWATER_SCRATCH_GIB", str(1.5e6 / 2**30))  # one of the objects below, not two
    settings.cache_clear()
    yield tmp_path / "scratch" / "copies"
    settings.cache_clear()


@pytest.fixture
def objects(folder, monkeypatch):
    def get_file(self, source, target, **_):  # fsspec's own reads through one cursor for all threads
        Path(target).write_bytes(self.store[source].getvalue())

    monkeypatch.setattr(MemoryFileSystem, "get_file", get_file)
    found = [UPath(f"memory://{folder}/{k}.bin") for k in range(4)]
    for k, place in enumerate(found):
        place.write_bytes(bytes([k]) * 10**6)
    return found


def test_a_copy_that_is_held_stays_and_goes_when_it_is_not(folder, objects):
    with scratch.local_copy(objects[0]) as first, scratch.local_copy(objects[1]) as second:
        assert (first.exists(), second.exists()) == (True, True)
    with scratch.local_copy(objects[2]) as third:
        assert [path.name for path in folder.iterdir()] == [third.name]


def test_those_who_share_a_scratch_directory_take_nothing_from_one_another(objects):
    """Room for one copy, and eight that want four: whoever holds a copy reads all of it."""

    def read(n: int) -> bool:
        with scratch.local_copy(objects[n % 4]) as copy:
            time.sleep(0.001)
            return copy.read_bytes() == bytes([n % 4]) * 10**6

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(read, range(200)))


def test_a_download_of_another_process_is_left_alone_until_nobody_can_be_writing_it(folder, objects):
    folder.mkdir(parents=True)
    young, old = folder / "a.partial", folder / "b.partial"
    for path in (young, old):
        path.write_bytes(b"half" * 10**6)
    os.utime(old, (1, 1))
    with scratch.local_copy(objects[0]):
        assert (young.exists(), old.exists()) == (True, False)


@pytest.fixture
def default(tmp_path, monkeypatch):
    """Where the scratch directory stands that nobody named."""
    monkeypatch.delenv("HEADWATER_SCRATCH", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    settings.cache_clear()
    yield tmp_path / f"headwater-{os.getuid()}"
    settings.cache_clear()


def test_nobody_else_can_look_into_the_scratch_directory(default):
    assert scratch.scratch("uploads") == default / "uploads"
    default.chmod(0o755)  # as an older headwater made it
    scratch.scratch("uploads", "deeper")
    assert [path.stat().st_mode & 0o777 for path in (default, default / "uploads")] == [0o700, 0o700]


def test_a_scratch_directory_that_somebody_else_may_have_prepared_is_refused(default, tmp_path, monkeypatch):
    default.symlink_to(tmp_path)
    with pytest.raises(StoreError, match=r"found a link.*HEADWATER_SCRATCH"):
        scratch.scratch("uploads")
    default.unlink()
    default.mkdir()
    default.chmod(0o777)
    with pytest.raises(StoreError, match="others may write to"):
        scratch.scratch("uploads")
    default.chmod(0o700)
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    default.rename(default.with_name(f"headwater-{owner + 1}"))
    with pytest.raises(StoreError, match=f"one of user {owner}"):
        scratch.scratch("uploads")


def test_what_killed_processes_left_in_scratch_is_found(folder):
    for name in ("uploads/p.parquet.0123", "sessions/0123.duckdb", "sessions/views-0123.duckdb", "spill/x.tmp"):
        path = scratch.scratch(name.split("/")[0]) / name.split("/")[1]
        path.write_bytes(b"half")
        os.utime(path, (1, 1))
    found = leftovers.stale_work(Store(UPath(f"memory://{folder}/store")), timedelta(days=1))
    assert sorted(item.name for item in found) == ["0123.duckdb", "p.parquet.0123", "x.tmp"]


class Answering:
    """An object store that gives the put of a new object one answer after another."""

    def __init__(self, *codes: str | None) -> None:
        self.codes = list(codes)

    def put_file(self, source: str, target: str, mode: str) -> None:
        code = self.codes.pop(0)
        if code:
            error = OSError("refused")
            error.__cause__ = Exception()
            error.__cause__.response = {"Error": {"Code": code}}
            raise error


def test_a_conditional_request_that_met_another_one_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(places.time, "sleep", lambda seconds: None)

    def create(*codes: str | None) -> None:
        place = SimpleNamespace(fs=Answering(*codes), path="bucket/x")
        places.publish_new(tmp_path, place)
        assert place.fs.codes == []

    create("ConditionalRequestConflict", "ConditionalRequestConflict", None)
    with pytest.raises(FileExistsError):
        create("ConditionalRequestConflict", "PreconditionFailed")
    with pytest.raises(OSError, match="refused"):
        create("SlowDown")
