"""A system as `make up` starts it: server, pool, deployments, worker, and how tests ask it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import worlds

ROOT = Path(__file__).parents[2]
LONG_AGO = time.time() - 3600
Found = TypeVar("Found")


@dataclass
class System:
    """What the script started, and how to ask it."""

    root: Path
    model: Path
    port: int
    process: subprocess.Popen | None = None
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.root / "up.log"
        self.store, self.folder = self.root / "store", self.root / "incoming"

    @property
    def site(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """That of a shell of its own: nothing of the tests' own Prefect, which runs elsewhere."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "HEADWATER_"))}
        return clean | {"PREFECT_HOME": str(self.root / "prefect")}

    def start(self) -> None:
        """Run deployments/up.py as `make up` does, and wait until it says that headwater is up."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "deployments" / "up.py"), "--store", str(self.store), "--model",
                 str(self.model), "--folder", str(self.folder), "--port", str(self.port), "--trace-cron", "* * * * *"],
                env=self.environment, stdout=log, stderr=subprocess.STDOUT, cwd=self.root,
            )  # fmt: skip
        started = self.log.stat().st_size
        wait_for(lambda: "headwater is up" in self.log.read_text()[started:] or self.process.poll(), 240, "a start")
        assert self.process.poll() is None, self.log.read_text()[-3000:]

    def end(self, number: int = signal.SIGINT) -> int:
        """Send the script a signal and wait; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=100)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.site}/api{path}", json=body, timeout=30)

    def runs(self, flow: str) -> list[dict]:
        """Flow runs of a flow, those expected first standing first."""
        names = {"name": {"any_": [flow]}}
        return self.post("/flow_runs/filter", flows=names, sort="EXPECTED_START_TIME_ASC").json()

    def run(self, run_id: str) -> dict:
        return httpx.get(f"{self.site}/api/flow_runs/{run_id}", timeout=30).json()

    def deployment(self, name: str) -> dict:
        return httpx.get(f"{self.site}/api/deployments/name/{name}", timeout=30).json()

    def take_slot(self, limit: str) -> None:
        """Hold a slot of a concurrency limit, as another flow would."""
        body = {"names": [limit], "slots": 1, "mode": "concurrency"}
        wait_for(lambda: self.post("/v2/concurrency_limits/increment", **body).status_code == 200, 120, "free slot")

    def leave_slot(self, limit: str) -> None:
        self.post("/v2/concurrency_limits/decrement", names=[limit], slots=1).raise_for_status()

    def headwater(self, *arguments: str) -> str:
        """What a command of the command line prints, asked at this server."""
        done = subprocess.run(
            [str(Path(sys.executable).parent / "headwater"), *arguments], check=False, capture_output=True, text=True,
            env=self.environment | {"PREFECT_API_URL": f"{self.site}/api"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, name: str, *ids: str) -> None:
        """Hand in queries, through a file of JSON lines."""
        lines = [{"query_id": i, "prompt": "The otter went to the", "completion": f" harbour. {i}"} for i in ids]
        path = worlds.write_jsonl(self.root / f"{name}.jsonl", lines)
        self.headwater("submit", "--store", str(self.store), "--queries", str(path))

    def status(self) -> dict:
        return json.loads(self.headwater("status", "--store", str(self.store), "--format", "json"))


def wait_for(look: Callable[[], Found], seconds: float, what: str) -> Found:
    """What `look` sees once it sees anything; an error after so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.3)
    pytest.fail(f"no {what} within {seconds:.0f} s")


def make_system(root: Path, model: Path) -> System:
    """A system that is not started yet, with one corpus file in its folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        system = System(root, model, free.getsockname()[1])
    path = worlds.write_jsonl(system.folder / "fables.jsonl", worlds.documents())
    os.utime(path, (LONG_AGO, LONG_AGO))
    return system


@contextmanager
def running_system(root: Path, model: Path) -> Iterator[System]:
    """A system whose watched folder has been taken in; it ends with the block."""
    system = make_system(root, model)
    try:
        system.start()
        wait_for(lambda: [r for r in system.runs("refresh-corpus") if r["state_name"] == "Completed"], 120, "corpus")
        yield system
    finally:
        if system.process and system.process.poll() is None:
            system.end()


def text_of(dom: str) -> str:
    """The words of a page, without its markup."""
    without = re.sub(r"<(script|style)[^>]*>.*?</\1>", " ", dom, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", without))
