"""headwater explore on the command line: the explorer on loopback, until Ctrl-C ends it and what it started."""

from __future__ import annotations

import ipaddress
import secrets
import socket
from contextlib import suppress
from typing import Annotated

import typer

from flows.console import StoreOption, make_console
from flows.options import RevisionOption, model_words
from storage.errors import InputError
from storage.text import printable

GRACE = 3  # seconds for requests that are being answered when it ends


def explore(
    store: StoreOption,
    model: Annotated[str | None, typer.Option(help="model of new traces; default: that of the shown run")] = None,
    revision: RevisionOption = None,
    host: Annotated[str, typer.Option(help="address that it listens on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="its port; 0: one that is free", min=0, max=65535)] = 4300,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="name under which other machines' browsers reach it; needed beside a --host of theirs"),
    ] = None,
    top: Annotated[int, typer.Option(help="sequences of each ranking", min=1)] = 100,
) -> None:
    """Every run of a store as pages on this machine, with a form that has a new completion traced."""
    names = tuple(allow_host or ())
    _require_local(host, names)
    listening = _listen(host, port)  # before seconds of imports: a port in use is told at once

    import uvicorn

    from flows.asked_traces import AskedTraces
    from flows.explorer import Explored, make_explorer
    from flows.parameters import ModelParameters
    from storage.store import open_store

    place, words = open_store(store), model_words(model, revision)
    named = None if words is None else ModelParameters.model_validate(words)
    explored = Explored(place, named, top, secrets.token_urlsafe(24), (*names, host))
    console = make_console()

    def say(text: str) -> None:
        console.print(printable(text), markup=False, soft_wrap=True)

    app = make_explorer(explored, AskedTraces(), say)
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE, lifespan="on")
    say(f"http://{_shown(host)}:{listening.getsockname()[1]} shows {place.root}. Ctrl-C ends it.")
    with suppress(KeyboardInterrupt):  # uvicorn hands it on once everything is ended
        uvicorn.Server(config).run(sockets=[listening])
    say("the explorer is ended")


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _require_local(host: str, names: tuple[str, ...]) -> None:
    """Refuse an address that other machines reach, unless names say that this is meant."""
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError as error:
        raise InputError(
            f"address {host}",
            expected="one of this machine",
            found=str(error.strerror or error),
            remedy="Correct --host.",
        ) from error
    if names or all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in found):
        return
    raise InputError(
        f"address {host}",
        expected="a loopback address",
        found="one that other machines reach, and whoever opens the page can start traces on this one",
        remedy="Leave --host out and use a tunnel (ssh -L), or name the page's host too: --allow-host NAME",
    )


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise InputError(
            f"address {host}, port {port}",
            expected="one that is free",
            found=error.strerror or str(error),
            remedy="End what listens there, or name another: --port 0 takes one that is free.",
        ) from error
    return listening
