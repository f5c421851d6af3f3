"""Children of the explorer, a Prefect server and a trace, each in a process that ends when the explorer does.

    python -m flows.tethered server PORT
    python -m flows.tethered trace FLOW_RUN_ID

Standard input is a pipe that the explorer holds and never writes to: it closes when the explorer lets go of the child
and when the explorer itself is killed, by whatever signal. So no server and no trace is ever left behind.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable

GRACE = 20.0  # seconds in which a child ends by itself, before it is ended


def serve(port: int) -> None:
    """A Prefect server as those that a command starts for its duration: no page, no schedules, loopback."""
    import uvicorn
    from prefect.server.api.server import create_app

    config = uvicorn.Config(
        create_app(ephemeral=True, final=True), host="127.0.0.1", port=port, log_level="critical", lifespan="on",
        timeout_graceful_shutdown=2,
    )  # fmt: skip
    server = uvicorn.Server(config)

    def end() -> None:
        server.should_exit = True

    _watch(end)
    server.run()


def trace(flow_run_id: str) -> None:
    """Carry out the flow run of that id, which the explorer has made at the server of PREFECT_API_URL."""
    _watch(lambda: os.kill(os.getpid(), signal.SIGINT))  # as Ctrl-C in a terminal: what is finished is kept
    from uuid import UUID

    from prefect.client.orchestration import get_client
    from prefect.flow_engine import run_flow

    from flows.trace import trace as trace_flow

    with get_client(sync_client=True) as client:
        run = client.read_flow_run(UUID(flow_run_id))
    run_flow(trace_flow, flow_run=run, return_type="state")


def _watch(end: Callable[[], None]) -> None:
    threading.Thread(target=_wait, args=(end,), daemon=True).start()


def _wait(end: Callable[[], None]) -> None:
    os.read(0, 1)  # returns when nobody can write to the pipe any more; no lock of sys.stdin's is held at the end
    end()
    threading.Event().wait(GRACE)
    os.killpg(os.getpgid(0), signal.SIGKILL)  # with its own children; the explorer gave it a group of its own


if __name__ == "__main__":
    kind, argument = sys.argv[1:]
    try:
        serve(int(argument)) if kind == "server" else trace(argument)
    except KeyboardInterrupt:  # its reader stopped it, or the explorer ends: no news for the terminal
        sys.exit(130)
