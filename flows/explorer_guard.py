"""What the explorer's server refuses before anything is read: requests that no page of its own sent.

It listens on loopback, but so does every page that a browser of this machine has open. Names that resolve to loopback
(DNS rebinding) are stopped by the Host header, forms and scripts of other sites by Origin, Sec-Fetch-Site and a token
that only this process's pages know.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL = ("localhost", "127.0.0.1", "::1")
LARGEST = 1_000_000  # bytes of a request's body
TOKEN = "x-headwater-token"
ALWAYS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Guard:
    """An ASGI application in front of another; `names` are those that a browser may reach it by, besides loopback's."""

    def __init__(self, app: ASGIApp, token: str, names: Iterable[str] = ()) -> None:
        self._app, self._token = app, token
        self._names = {name.lower() for name in (*LOCAL, *names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no page of ours opens a socket
            await send({"type": "websocket.close", "code": 1008})
            return
        refusal = self._refusal(scope["method"], Headers(scope=scope))

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in ALWAYS.items():
                    headers[name] = value
                headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
            await send(message)

        if refusal is None:
            await self._app(scope, receive, guarded)
        else:
            code, words = refusal
            await JSONResponse({"error": words}, code)(scope, receive, guarded)

    def _refusal(self, method: str, headers: Headers) -> tuple[int, str] | None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or host_name(hosts[0]) not in self._names:
            return 421, "This explorer is not known by the name in the address. See headwater explore --allow-host."
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not _is_followed_link(headers):
            return 403, "Another site's page asked for this."
        if method in ("GET", "HEAD"):
            return None
        if method != "POST":
            return 405, "The explorer answers GET and POST."
        origin = urlsplit(headers.get("origin", ""))
        if origin.scheme not in ("http", "https") or origin.netloc.lower() != hosts[0].lower():
            return 403, "Another site's page, or none, sent this."
        if not secrets.compare_digest(headers.get(TOKEN, "").encode(), self._token.encode()):
            return 403, "The explorer was started again since this page was opened. Load the page again."
        if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return 415, "The explorer takes JSON."
        length = headers.get("content-length", "")
        if not length.isascii() or not length.isdecimal() or int(length) > LARGEST or "transfer-encoding" in headers:
            return 413, f"The explorer takes {LARGEST:,} bytes at most."
        return None


def host_name(host: str) -> str | None:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _is_followed_link(headers: Headers) -> bool:
    """A person came from elsewhere by a link: what is shown stays unreadable to the page that has it."""
    return headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
