"""SIGKILL of Dask workers in the middle of jobs: the run completes, with the tables of an undisturbed one."""

from __future__ import annotations

import psutil
import pytest
from recovery import walks
from recovery.deadly import MARKS, PLACES
from tables import assert_same


@pytest.mark.e2e
def test_a_run_completes_although_a_worker_is_killed_in_every_stage(tmp_path, gpt2, monkeypatch):
    files, marks = walks.three_files(tmp_path / "corpus"), tmp_path / "marks"
    marks.mkdir()
    walks.walk(walks.parameters(tmp_path / "calm", gpt2, files, cluster="local"), tmp_path / "log")
    process = walks.start(
        walks.parameters(tmp_path / "s", gpt2, files, cluster="local"),
        tmp_path / "log",
        environment={MARKS: str(marks), "HEADWATER_WORKERS": "2"},
        worker_preload="recovery.deadly",
    )
    walks.ended(process, tmp_path / "log")
    assert {mark.name for mark in marks.iterdir()} == set(PLACES)
    assert_same(walks.tables(tmp_path / "s"), walks.tables(tmp_path / "calm"))


@pytest.mark.e2e
def test_no_worker_outlives_a_killed_flow(tmp_path, gpt2):
    files = walks.three_files(tmp_path / "corpus")
    asked = walks.parameters(tmp_path / "s", gpt2, files, cluster="local")
    with walks.halted(asked, tmp_path / "log", ("after lexical index", "os.link")) as process:
        workers = psutil.Process(process.pid).children(recursive=True)
        assert len(workers) >= 2
        process.kill()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []
