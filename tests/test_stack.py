"""Surprises of Prefect, Dask and DuckDB 2.0 that this code is built around; a test fails when a release mends one."""

from __future__ import annotations

import ast
import pickle
import subprocess
import sys
import threading
import time
import tomllib
from importlib.metadata import distributions, requires, version
from pathlib import Path

import cloudpickle
import dask
import duckdb
import pyarrow as pa
import pytest
from distributed import Client, Status
from jobs import end_the_process
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from flows.cluster import open_workers
from storage.database import session
from storage.store import create_store
from tasks.fanout import WorkerLost, fan_out
from tasks.index import build_index, build_shard

ROOT = Path(__file__).parents[1]


def python(program: str, **environment: str) -> str:
    """What a fresh interpreter prints, started outside the project's folder."""
    import os

    done = subprocess.run(
        [sys.executable, "-c", program], cwd="/", env={**os.environ, **environment}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


@pytest.mark.parametrize("python", ["3.11.0", "3.12.0", "3.13.0"])
def test_the_lock_is_complete_whichever_python_reads_it(python):
    """What is locked is installed without resolving, so what some Pythons alone need must stand there too."""
    of = {"python_version": python.rpartition(".")[0], "python_full_version": python}
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    locked = {
        canonicalize_name(r.name): r for r in map(Requirement, lines) if r.marker is None or r.marker.evaluate(of)
    }
    assert len(locked) > 150
    for name in locked.keys() & {canonicalize_name(d.metadata["Name"]) for d in distributions()}:
        for needed in map(Requirement, requires(name) or []):
            wanted = needed.marker is None or needed.marker.evaluate({**of, "extra": ""})
            if wanted and needed.name != "torchvision":  # asked for, and never imported here
                assert canonicalize_name(needed.name) in locked, f"{name} {needed}"


# Prefect


def test_prefect_is_held_to_the_fastapi_and_sqlalchemy_that_it_runs_with():
    """Newer ones install without a complaint; then Prefect does not import, or no scheduled run ever appears."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    pins = {r.name: r for r in map(Requirement, wanted) if r.name in ("fastapi", "sqlalchemy", "prefect")}
    locked = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line)
    assert str(pins["prefect"].specifier) == "==3.8.8"
    assert "0.155.0" not in pins["fastapi"].specifier
    assert "2.1.0" not in pins["sqlalchemy"].specifier
    for name, pin in pins.items():
        found = next(number for package, number in locked.items() if package.lower().split("[")[0] == name)
        assert pin.specifier.contains(found.split()[0])
        assert pin.specifier.contains(version(name))
    import prefect.server.api.concurrency_limits_v2  # noqa: F401  # what a newer FastAPI breaks


def test_the_heartbeat_cannot_be_switched_off_by_the_environment():
    from prefect.settings.models.flows import FlowsSettings
    from pydantic import ValidationError

    for text in ("0", "29", ""):
        with pytest.raises(ValidationError):
            FlowsSettings(heartbeat_frequency=text)
    assert FlowsSettings(heartbeat_frequency=None).heartbeat_frequency is None


def test_extra_loggers_are_given_a_handler_and_no_level_and_the_terminal_can_be_quiet_alone():
    told = python(
        "import logging\nfrom prefect.logging.configuration import setup_logging\nsetup_logging()\n"
        "ours = logging.getLogger('pinned')\n"
        "print([type(h).__name__ for h in ours.handlers], ours.level, logging.getLogger().level)\n"
        "runs = logging.getLogger('prefect.flow_runs')\n"
        "print([h.level for h in logging.getLogger().handlers], runs.isEnabledFor(20))",
        PREFECT_LOGGING_EXTRA_LOGGERS="pinned",
        PREFECT_LOGGING_LEVEL="INFO",
        PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL="CRITICAL",
    )
    assert told.splitlines() == ["['APILogHandler'] 0 30", "[50] True"]


def test_a_stage_would_go_to_a_worker_by_value_with_all_that_it_names_and_a_job_goes_by_name():
    with pytest.raises(pickle.PicklingError, match="not the same object"):
        pickle.dumps(build_index.fn)
    with pytest.raises(TypeError, match="cannot pickle '_contextvars.ContextVar'"):
        cloudpickle.dumps(build_index.fn)
    assert len(pickle.dumps(build_shard)) < 100


@pytest.fixture(scope="module")
def client(prefect_db):
    from prefect.client.orchestration import get_client

    return get_client(sync_client=True)


def test_an_artifact_s_key_has_no_capitals_or_points_and_one_without_a_key_is_on_no_list(client):
    from prefect import flow
    from prefect.artifacts import create_markdown_artifact, create_progress_artifact
    from prefect.client.schemas.filters import (
        ArtifactCollectionFilter,
        ArtifactCollectionFilterLatestId,
        ArtifactFilter,
        ArtifactFilterId,
    )
    from prefect.exceptions import PrefectHTTPStatusError

    made: dict = {}

    @flow
    def leave() -> None:
        for key in ("Capital", "with.point", "with_line"):
            with pytest.raises((PrefectHTTPStatusError, ValueError)):
                create_markdown_artifact("x", key=key)
        made["ring"] = create_progress_artifact(10.0)
        made["page"] = create_markdown_artifact("x", key="pinned-key")

    leave()
    wanted = ArtifactFilterId(any_=[made["page"], made["ring"]])
    latest = ArtifactCollectionFilter(latest_id=ArtifactCollectionFilterLatestId(any_=wanted.any_))
    listed = client.read_latest_artifacts(artifact_filter=latest)
    assert [collection.latest_id for collection in listed] == [made["page"]]
    found = client.read_artifacts(artifact_filter=ArtifactFilter(id=wanted))
    assert {artifact.id for artifact in found} == {made["page"], made["ring"]}


def test_a_task_s_timeout_does_not_stop_what_runs_in_a_thread(client):
    """So no stage has one: it would be called failed while it goes on writing."""
    from prefect import flow, task

    ended: list[bool] = []
    held = threading.Lock()
    held.acquire()

    @task(timeout_seconds=0.2)
    def work() -> None:
        try:
            held.acquire()  # as a kernel or a long read: a call that Python cannot break off
        finally:
            ended.append(True)

    @flow
    def submit() -> None:
        future = work.submit()
        time.sleep(1.0)
        assert ended == []
        held.release()
        future.wait()

    state = submit(return_state=True)
    assert ended == [True]
    assert "AssertionError" not in (state.message or "")
    declared = [
        path.name
        for path in [*(ROOT / "tasks").glob("*.py"), *(ROOT / "flows").glob("*.py")]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        for decorator in node.decorator_list
        if "timeout_seconds" in ast.unparse(decorator)
    ]
    assert declared == []


def test_a_limit_that_nobody_made_limits_nothing_unless_asked_strictly(client):
    from prefect.concurrency._asyncio import ConcurrencySlotAcquisitionError
    from prefect.concurrency.sync import concurrency

    with concurrency("made-by-nobody", occupy=1):
        pass
    with pytest.raises(ConcurrencySlotAcquisitionError), concurrency("made-by-nobody", occupy=1, strict=True):
        pass


# Dask


@pytest.fixture(scope="module")
def one_worker():
    with Client(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, silence_logs=50) as made:
        yield made


def test_a_job_waits_for_ever_for_a_resource_that_no_worker_has_and_is_not_woken_when_one_gains_it(one_worker):
    async def gain(dask_worker):
        await dask_worker.set_resources(PINNED=1)

    async def resume(dask_worker):
        dask_worker.status = Status.paused
        dask_worker.status = Status.running

    future = one_worker.submit(abs, -2, resources={"PINNED": 1})
    with pytest.raises(TimeoutError):
        future.result(timeout=0.5)
    one_worker.run(gain)
    with pytest.raises(TimeoutError):
        future.result(timeout=0.5)
    one_worker.run(resume)
    assert future.result(timeout=20) == 2


def test_a_worker_that_dies_every_time_is_a_lost_worker_and_prefect_s_retries_have_no_part_in_it():
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        open_workers("local", 2) as workers,
        pytest.raises(WorkerLost, match="expected workers that live through a job"),
    ):
        fan_out(workers.lexical, end_the_process, [1, 2], "deadly")


# DuckDB


@pytest.fixture
def connection():
    with duckdb.connect() as made:
        yield made


def test_relations_have_no_fetchone(connection):
    with pytest.raises(AttributeError):
        connection.sql("select 1").fetchone()
    assert connection.sql("select 1").fetchall() == [(1,)]


def test_arrow_is_a_reader_and_a_table_has_its_own_name(connection):
    relation = connection.sql("from range(3)")
    assert isinstance(relation.arrow(), pa.RecordBatchReader)
    assert isinstance(connection.sql("from range(3)").to_arrow_table(), pa.Table)
    with pytest.raises(AttributeError):
        connection.execute("from range(3)").fetch_arrow_table()


def test_lambdas_are_spelt_out(connection):
    with pytest.raises(duckdb.BinderException, match="lambda"):
        connection.execute("select list_transform([1], x -> x + 1)")
    assert connection.execute("select list_transform([1], lambda x: x + 1)").fetchall() == [([2],)]


def test_a_catalog_is_written_in_a_version_that_1_x_cannot_read_unless_told(tmp_path):
    told = {"new": {}, "old": {"storage_compatibility_version": "v1.0.0"}}
    for name, config in told.items():
        duckdb.connect(str(tmp_path / name), config=config).close()
    new, old = (int.from_bytes((tmp_path / name).read_bytes()[12:20], "little") for name in told)
    assert old <= 68 < new


def test_a_view_needs_a_file_when_it_is_made_and_when_it_is_asked(connection, tmp_path):
    view = f"create view v as from read_parquet('{tmp_path}/*.parquet')"
    with pytest.raises(duckdb.IOException, match="No files found"):
        connection.execute(view)
    connection.execute(f"copy (select 1 as a) to '{tmp_path}/only.parquet'")
    connection.execute(view)
    (tmp_path / "only.parquet").unlink()
    with pytest.raises(duckdb.IOException, match="No files found"):
        connection.execute("from v").fetchall()


def test_a_half_written_file_breaks_every_reader_of_its_directory(connection, tmp_path):
    connection.execute(f"copy (select 1 as a) to '{tmp_path}/whole.parquet'")
    (tmp_path / "half.parquet").write_bytes((tmp_path / "whole.parquet").read_bytes()[:-3])
    with pytest.raises(duckdb.Error, match="magic bytes|too small"):
        connection.execute(f"from read_parquet('{tmp_path}/*.parquet')").fetchall()


def test_who_writes_a_database_locks_every_other_process_out(tmp_path):
    path = tmp_path / "catalog.duckdb"
    with duckdb.connect(str(path)):
        told = python(
            "import duckdb\n"
            f"try: duckdb.connect({str(path)!r}, read_only=True)\n"
            "except duckdb.IOException as error: print(error)"
        )
    assert "Conflicting lock" in told


def test_a_directory_that_may_be_read_may_be_written_to(tmp_path):
    """Why storage/readonly.py looks at every statement of a user: read-only is the database, not the directory."""
    duckdb.connect(str(tmp_path / "d.duckdb")).close()
    (tmp_path / "tables").mkdir()
    with duckdb.connect(str(tmp_path / "d.duckdb"), read_only=True) as locked:
        locked.execute("set allowed_directories = [$tables]", {"tables": f"{tmp_path}/tables/"})
        locked.execute("set enable_external_access = false")
        locked.execute(f"with x as (copy (select 1) to '{tmp_path}/tables/a.csv') from x")
    assert (tmp_path / "tables" / "a.csv").exists()


def test_what_is_needed_is_built_in_and_full_text_search_is_not(connection):
    built_in = "select extension_name from duckdb_extensions() where install_mode = 'STATICALLY_LINKED'"
    names = {name for (name,) in connection.execute(built_in).fetchall()}
    assert {"json", "parquet"} <= names
    assert "fts" not in names


def test_every_connection_is_given_a_limit_in_place_of_most_of_the_machine(tmp_path, monkeypatch):
    from storage.settings import settings

    monkeypatch.setenv("HEADWATER_MEMORY_LIMIT_GIB", "0.5")
    settings.cache_clear()
    try:
        with session(create_store(tmp_path / "s")) as connection:
            limit, bar = connection.execute(
                "select current_setting('memory_limit'), current_setting('enable_progress_bar')"
            ).fetchall()[0]
    finally:
        monkeypatch.undo()
        settings.cache_clear()
    assert (limit, bar) == ("512.0 MiB", False)


def test_no_function_of_ours_is_called_from_sql():
    """DuckDB 2.0 prints of leaked instances at the end of a process that made one."""
    made = [
        path.name
        for folder in ("storage", "tasks", "flows")
        for path in (ROOT / folder).rglob("*.py")
        if "create_function" in path.read_text()
    ]
    assert made == []
