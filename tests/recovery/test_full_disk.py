"""A disk that fills while a trace writes: a clear error, nothing half-written; with room again, the same tables."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from recovery import walks
from tables import assert_same

FILLED, CATALOG = 64 * 1024, 512 * 1024  # bytes: less than the small files of a stage, more than the one of views


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 3 MiB, mounted for the test."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting a small file system is not permitted: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path, room: int) -> Path:
    """Leave so many bytes free."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    with ballast.open("wb") as file:
        file.write(b"\0" * (shutil.disk_usage(disk).free - room))
    return ballast


@pytest.mark.e2e
def test_a_trace_goes_on_where_the_disk_was_full(small_disk, tmp_path, gpt2):
    files = walks.three_files(tmp_path / "corpus")
    walks.walk(walks.parameters(tmp_path / "wide", gpt2, files), tmp_path / "log")
    expected = walks.tables(tmp_path / "wide")
    asked, stopped_in = walks.parameters(small_disk / "s", gpt2, files), set()
    room = 0
    for attempt in range(40):
        ballast = fill(small_disk, room)
        process = walks.start(asked, tmp_path / f"log{attempt}")
        process.join(walks.PATIENCE)
        ballast.unlink()
        if process.exitcode == 0:
            break
        last = walks.changes_in(tmp_path / f"log{attempt}")[-1]
        assert last.event == "error"
        assert f"writing {small_disk / 's'}" in last.path
        assert "expected room on the disk, found none left. Free some space and run the same command again" in last.path
        stopped_in.add(last.stage)
        room = CATALOG if "headwater.duckdb" in last.path else FILLED
        for path in (small_disk / "s").rglob("*.parquet"):
            pq.ParquetFile(path).read()
        left = [p for p in (*(small_disk / "s" / "work").glob("*"), *(small_disk / "s").rglob(".*")) if p.is_file()]
        assert left == [], "files whose writing failed"
    assert process.exitcode == 0
    assert stopped_in >= {"start", "corpus", "factors"}  # whatever the sizes of files, it stopped in several stages
    assert_same(walks.tables(small_disk / "s"), expected)
