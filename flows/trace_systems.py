"""Who carries out a trace that the explorer was asked for: a deployment's worker, or a child process.

Either way it is a flow run at a Prefect server, and never the web server's own process that drives the model. Where
PREFECT_API_URL names a server with the deployment trace/on-demand (`make up`), its worker is handed the trace. Else a
child carries it out, at that server, or at one that is started with the first trace and ends with the explorer: one for
all of them, because starting it takes longer than many a trace, and so that its progress is read in one way.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Protocol
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Cancelling, Crashed, Pending
from prefect.utilities.urls import url_for

from flows.following import Seen, look
from flows.parameters import TraceParameters
from flows.runs import server_url
from storage.errors import StoreError

DEPLOYMENT = "trace/on-demand"
END_SECONDS = 30.0  # tethered.GRACE and what a busy machine adds


class TraceSystem(Protocol):
    """Where traces go, one at a time; used by one thread, but for `close`."""

    goes_on: bool  # whether a trace outlives the explorer

    def begin(self, parameters: TraceParameters) -> UUID:
        """Have a trace carried out; the id of its flow run."""
        ...

    def look(self, flow_run: UUID) -> Seen:
        """What is known of it now."""
        ...

    def link(self, flow_run: UUID) -> str | None:
        """Its page in the Prefect UI, where there is one."""
        ...

    def stop(self, flow_run: UUID) -> None:
        """End it; what is finished is kept."""
        ...

    def close(self) -> None:
        """End everything that was started here, and nothing else."""
        ...


def find_system() -> TraceSystem:
    """The server that the environment names with its worker, or children of this process."""
    if server_url() is None:
        return OwnSystem()
    with get_client(sync_client=True) as client:
        try:
            return DeployedSystem(client.read_deployment_by_name(DEPLOYMENT).id)
        except ObjectNotFound:
            return OwnSystem()


def _link(flow_run: UUID) -> str | None:
    return url_for("flow-run", flow_run) if server_url() else None


class DeployedSystem:
    """Flow runs of the deployment; whoever serves it goes on when the explorer ends."""

    goes_on = True

    def __init__(self, deployment: UUID) -> None:
        self._deployment = deployment
        self._client = get_client(sync_client=True)

    def begin(self, parameters: TraceParameters) -> UUID:
        words = {"parameters": parameters.model_dump(mode="json")}
        return self._client.create_flow_run_from_deployment(self._deployment, parameters=words).id

    def look(self, flow_run: UUID) -> Seen:
        return look(self._client, flow_run)

    def link(self, flow_run: UUID) -> str | None:
        return _link(flow_run)

    def stop(self, flow_run: UUID) -> None:
        state = self._client.read_flow_run(flow_run).state
        unbegun = state is not None and (state.is_scheduled() or state.is_paused())
        self._client.set_flow_run_state(flow_run, Cancelled() if unbegun else Cancelling())

    def close(self) -> None:
        """Nothing was started here."""


class OwnSystem:
    """A child process for each trace, and a server for all of them where the environment names none."""

    goes_on = False

    def __init__(self) -> None:
        self._starting = threading.Lock()
        self._is_closed = False
        self._api = server_url()
        self._server: subprocess.Popen | None = None
        self._child: subprocess.Popen | None = None
        self._client: SyncPrefectClient | None = None

    def begin(self, parameters: TraceParameters) -> UUID:
        from flows.trace import trace

        client = self._connected()
        words = {"parameters": parameters.model_dump(mode="json")}
        run = client.create_flow_run(trace, parameters=words, state=Pending())
        self._child = self._tethered("trace", str(run.id), {"PREFECT_API_URL": str(self._api)})
        return run.id

    def look(self, flow_run: UUID) -> Seen:
        client = self._connected()
        code = self._child.poll() if self._child else None  # asked before the server, which is told the end first
        seen = look(client, flow_run)
        if code is None or seen.is_over:
            return seen
        how = signal.Signals(-code).name if code < 0 else f"code {code}"
        client.set_flow_run_state(flow_run, Crashed(message=f"Its process ended with {how}."), force=True)
        return look(client, flow_run)

    def link(self, flow_run: UUID) -> str | None:
        return None if self._server else _link(flow_run)

    def stop(self, flow_run: UUID) -> None:
        _end(self._child)
        client = self._connected()
        if not look(client, flow_run).is_done:
            client.set_flow_run_state(flow_run, Cancelled(message="Stopped by its reader."), force=True)

    def close(self) -> None:
        with self._starting:
            self._is_closed = True
        _end(self._child)
        _end(self._server)

    def _tethered(self, kind: str, argument: str, environment: dict[str, str]) -> subprocess.Popen:
        """A child that ends when its standard input does: see flows/tethered.py."""
        with self._starting:
            if self._is_closed:
                raise InterruptedError("the explorer is ending")
            return subprocess.Popen(
                [sys.executable, "-m", "flows.tethered", kind, argument], stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL, env=os.environ | environment, start_new_session=True,
            )  # fmt: skip

    def _connected(self) -> SyncPrefectClient:
        if self._server is not None and self._server.poll() is not None:
            raise _ended(self._server)
        if self._client is None:
            self._client = get_client(sync_client=True) if self._api else self._start_server()
        return self._client

    def _start_server(self) -> SyncPrefectClient:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = self._server = self._tethered("server", str(port), {})
        api = f"http://127.0.0.1:{port}/api"
        deadline = time.monotonic() + get_current_settings().server.ephemeral.startup_timeout_seconds
        while time.monotonic() < deadline:
            if server.poll() is not None:
                raise _ended(server)
            with suppress(httpx.TransportError):  # not listening yet
                if httpx.get(f"{api}/health", timeout=5).is_success:
                    self._api = api
                    return SyncPrefectClient(api)
            time.sleep(0.2)
        raise StoreError(
            "the explorer's Prefect server",
            expected="that it answers within PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS",
            found="silence",
            remedy="Start the explorer again when the machine is less busy, or raise that number.",
        )


def _ended(server: subprocess.Popen) -> StoreError:
    return StoreError(
        "the explorer's Prefect server",
        expected="one that runs as long as the explorer",
        found=f"that it ended with code {server.returncode}",
        remedy="Start the explorer again; headwater --debug explore shows what the server says.",
    )


def _end(child: subprocess.Popen | None) -> None:
    """Let go of a child, wait for it, and end it with its own children if it does not end by itself."""
    if child is None or child.stdin is None:
        return
    with suppress(BrokenPipeError):
        child.stdin.close()
    try:
        child.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
