"""Fixtures that cost seconds and are shared: a Prefect database, a tiny model, a corpus, a traced store."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # the processes of `make test` share the cores, so none has threads of its own
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import storage  # noqa: F401  # sets the environment before worlds imports torch

# isort: split
import worlds

DATA = Path(__file__).parents[2] / "shared" / "data"  # real corpora and models; absent outside the founders' machines


@pytest.fixture(scope="session")
def prefect_db():
    """A temporary Prefect server; only tests that run flows pay its 8 s."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, PREFECT_LOGGING_LEVEL, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    # Without the heartbeat a flow run ends a second earlier; it can be switched off nowhere but here.
    quiet = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None, PREFECT_LOGGING_LEVEL: "CRITICAL"}
    with prefect_test_harness(server_startup_timeout=600), temporary_settings(quiet):
        yield


@pytest.fixture
def headwater(prefect_db, monkeypatch, capsys):
    """Run a command in this process; returns its exit code, standard output and standard error."""
    from flows import cli

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["headwater", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory) -> Path:
    return worlds.save_gpt2(tmp_path_factory.mktemp("models") / "gpt2")


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> Path:
    return worlds.save_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    return worlds.write_jsonl(tmp_path_factory.mktemp("corpus") / "fables.jsonl", worlds.documents())


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not DATA.is_dir():
        pytest.skip(f"needs the real corpora and models in {DATA.name} beside the project, which are absent")
    return DATA
