"""Up: a Prefect server, a process pool, every deployment and a worker, until Ctrl-C ends all of them.

Nothing listens beyond this machine unless --host says so. The database is SQLite under PREFECT_HOME (.prefect here),
or what --database names: postgresql+asyncpg://user:password@host/name
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import httpx
import typer

ROOT = Path(__file__).resolve().parents[1]
PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]
POOL = "headwater"
START_SECONDS, STOP_SECONDS = 600, 30  # a server that dies is noticed at once; one on a busy machine is waited for
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def up(
    store: Annotated[str, typer.Option(help="directory of the store; made where nothing stands")],
    model: Annotated[str, typer.Option(help="model directory, or a repository of the hub")],
    folder: Annotated[str, typer.Option(help="directory whose new files become part of the corpus")],
    trace_cron: Annotated[str, typer.Option(help="when waiting queries are traced, in cron's words")] = "*/5 * * * *",
    gpus: Annotated[int, typer.Option(help="flows that may drive the model at one time", min=1)] = 1,
    runs: Annotated[int, typer.Option(help="flow runs of the worker at one time", min=1)] = 4,
    host: Annotated[str, typer.Option(help="address that the server listens on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="its port", min=1, max=65535)] = 4200,
    database: Annotated[str | None, typer.Option(help="postgresql+asyncpg://…; default: SQLite")] = None,
) -> None:
    """Start the server, deploy everything, start the worker."""
    _require_free(host, port)
    api = _api(host, port)
    os.environ.update(_environment(api, database))
    if not Path(folder).expanduser().is_dir():
        raise SystemExit(f"folder {folder}: expected a directory, found none. Make it, or correct --folder.")
    os.environ |= {
        "HEADWATER_HOME": str(ROOT),
        "HEADWATER_STORE": _absolute(store),
        "HEADWATER_MODEL": _absolute(model) if Path(model).expanduser().exists() else model,  # or a name of the hub
        "HEADWATER_FOLDER": _absolute(folder),
        "HEADWATER_TRACE_CRON": trace_cron,
    }
    _make_store(os.environ["HEADWATER_STORE"])
    if host not in LOOPBACK and not os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        print(f"Anybody who reaches {host}:{port} can start runs: set PREFECT_SERVER_API_AUTH_STRING.", file=sys.stderr)
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, _stop)
    try:
        with _running("server", "server", "start", "--host", host, "--port", str(port)) as server:
            _wait_for(api, server)
            _deploy(gpus)
            limit = ["--name", f"{POOL}-{os.getpid()}", "--limit", str(runs)]
            with _running("worker", "worker", "start", "--pool", POOL, "--type", "process", *limit) as worker:
                _prefect("deployment", "run", "refresh-corpus/refresh-corpus")  # the first look need not wait
                print(f"\nheadwater is up: {api.removesuffix('/api')} shows what runs. Ctrl-C ends it.")
                print(f"Hand in queries: headwater submit --store {store} --prompt … --completion …\n", flush=True)
                _watch(server=server, worker=worker)
    except KeyboardInterrupt:
        print("headwater is down. What was finished is kept.")


def _make_store(path: str) -> None:
    """Let queries be handed in before the first look at the folder is over."""
    from storage.errors import HeadwaterError  # here, because it takes seconds: bad words are refused before
    from storage.store import create_store

    try:
        create_store(path)
    except HeadwaterError as error:
        raise SystemExit(str(error)) from error


def _api(host: str, port: int) -> str:
    """Where clients on this machine find a server that listens on `host`."""
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{reached}]' if ':' in reached else reached}:{port}/api"


def _require_free(host: str, port: int) -> None:
    """Refuse a port that somebody listens on: that server would get our deployments in place of its own."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise SystemExit(
            f"address {host}, port {port}: expected one that is free, found: {error.strerror or error}. "
            "End what listens there, or name another: PORT=…, HOST=…"
        ) from error


def _environment(api: str, database: str | None) -> dict[str, str]:
    settings = {
        "PREFECT_HOME": os.environ.get("PREFECT_HOME", str(ROOT / ".prefect")),
        "PREFECT_API_URL": api,
        # Relative, so that pages find it at whatever port, and through a tunnel; they would ask port 4200 of loopback.
        "PREFECT_UI_API_URL": "/api",
        # Kept in memory, the slots of runs would be lost with the server and never be free again.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": os.environ.get("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30"),  # seconds
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    if password := os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        settings["PREFECT_API_AUTH_STRING"] = password
    return settings | ({"PREFECT_SERVER_DATABASE_CONNECTION_URL": database} if database else {})


def _absolute(text: str) -> str:
    """The place that the words name from here; the runs' own directory is another."""
    return text if "://" in text else str(Path(text).expanduser().resolve())


def _deploy(gpus: int) -> None:
    _prefect("work-pool", "create", POOL, "--type", "process", "--overwrite")
    from prefect.client.orchestration import get_client  # here, because it reads the environment set above

    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name("headwater-gpu", gpus)
        known = {automation["name"] for automation in client.request("POST", "/automations/filter", json={}).json()}
    _prefect("deploy", "--all", "--prefect-file", "deployments/prefect.yaml")
    if not any(name.startswith("headwater ") for name in known):  # they are the user's to change from then on
        _prefect("automation", "create", "--from-file", "deployments/automations.yaml")


def _prefect(*arguments: str) -> None:
    done = subprocess.run([*PREFECT, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout, done.stderr, file=sys.stderr)
        raise SystemExit(f"prefect {' '.join(arguments)} failed")


@contextmanager
def _running(name: str, *arguments: str) -> Iterator[subprocess.Popen]:
    """A child in a process group of its own, so that Ctrl-C reaches it in our order; the group ends with the block."""
    process = subprocess.Popen([*PREFECT, *arguments], cwd=ROOT, start_new_session=True)
    try:
        yield process
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            if not _signal_group(process, number):
                break
            print(f"{name}: {signal.Signals(number).name}", file=sys.stderr)


def _signal_group(process: subprocess.Popen, number: int) -> bool:
    """Send a signal and wait; whether anything of the group is still there."""
    deadline = time.monotonic() + STOP_SECONDS
    try:
        os.killpg(process.pid, number)
        while time.monotonic() < deadline:
            process.poll()  # a child that ended and was not waited for counts as there
            os.killpg(process.pid, 0)
            time.sleep(0.1)
    except ProcessLookupError:
        return False
    return True


def _wait_for(api: str, server: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SystemExit(f"the server ended with code {server.returncode}: is its port free, its database there?")
        try:
            if httpx.get(f"{api}/health", timeout=2).is_success and server.poll() is None:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.2)
    raise SystemExit(f"the server at {api} did not answer within {START_SECONDS} s")


def _watch(**processes: subprocess.Popen) -> None:
    while True:
        for name, process in processes.items():
            if process.poll() is not None:
                raise SystemExit(f"the {name} ended with code {process.returncode}")
        time.sleep(0.5)


def _stop(number: int, frame: object) -> None:
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)  # once is enough
    raise KeyboardInterrupt


if __name__ == "__main__":
    typer.run(up)
