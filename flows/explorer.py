"""The explorer's server: the report's page over a store's SQL, any run of it, and a form that has a completion traced.

It stands in flows/, because what it hands in is a flow run; what it shows is made by tasks/served_page.py, from the
report's own template. It reads only: one read-only connection that is locked to the store's tables, a cursor of it for
each request, in a thread. Neither a model nor a path that comes with a request is opened to be run or read here.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import duckdb
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from flows.asked_traces import AskedTraces
from flows.console import explained
from flows.explorer_guard import Guard
from flows.parameters import ModelParameters
from flows.trace_words import TraceWords, compose, usual
from storage.catalog import open_reader
from storage.errors import HeadwaterError
from storage.pages import presentable, visible
from storage.store import Store
from tasks.chosen import find_run
from tasks.influence.errors import InfluenceError
from tasks.served_page import block_shown, list_runs, page_of, page_without_run

# What may act in the page stands in the page; this says that no other may show it in a frame.
PAGE_POLICY = {"Content-Security-Policy": "frame-ancestors 'none'"}
UNFORESEEN = "headwater did not foresee this; its terminal shows what happened. Please report it if it comes back."
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Explored:
    """What an explorer is about."""

    store: Store
    model: ModelParameters | None  # of new traces; None: that of the shown run
    top: int  # sequences of each ranking
    token: str  # what its pages prove themselves by
    names: tuple[str, ...] = ()  # under which browsers reach it, besides loopback's


def make_explorer(explored: Explored, traces: AskedTraces, say: Callable[[str], None] = log.info) -> Guard:
    """The application; at its end it ends the traces and says of each, in a line, what became of it."""
    reader = open_reader(explored.store)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for line in await run_in_threadpool(traces.close):
            say(line)
        reader.close()

    # No page of FastAPI's own: they load scripts from elsewhere.
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    _show_runs(app, explored, reader)
    _take_traces(app, explored, reader, traces)
    _explain_errors(app)
    return Guard(app, explored.token, explored.names)


def _show_runs(app: FastAPI, explored: Explored, reader: duckdb.DuckDBPyConnection) -> None:
    """The page of a run, the runs to choose among, and the block of a query."""

    @app.get("/")
    def page(run: str = "latest") -> HTMLResponse:
        with reader.cursor() as cursor:
            runs = list_runs(cursor)
            there = bool(runs) and (run == "latest" or any(row["run_id"] == run for row in runs))
            found = find_run(cursor, explored.store, run) if there else None
            about = {
                "runs": runs,
                "token": explored.token,
                "store": visible(str(explored.store.root)),
                "usual": presentable(usual(found, explored.model)),
            }
            if found is not None:
                return HTMLResponse(page_of(cursor, explored.store, found["run_id"], about), 200, PAGE_POLICY)
        missing = None if run == "latest" else run
        return HTMLResponse(page_without_run(about, missing), 200 if missing is None else 404, PAGE_POLICY)

    @app.get("/runs")
    def runs() -> dict[str, Any]:
        with reader.cursor() as cursor:
            return {"runs": list_runs(cursor)}

    @app.get("/blocks")
    def block(run: str, query: str) -> JSONResponse:
        with reader.cursor() as cursor:
            found = block_shown(cursor, run, query, explored.top)
        if found is None:
            return _refused(404, f"Run {run} has no query {query} any more. Load the page again.")
        return JSONResponse(found)


def _take_traces(app: FastAPI, explored: Explored, reader: duckdb.DuckDBPyConnection, traces: AskedTraces) -> None:
    """Traces: one more, all of them, an end to one."""

    @app.post("/traces", status_code=202)
    def trace(words: TraceWords) -> dict[str, Any]:
        with reader.cursor() as cursor:
            run = None if words.run is None else find_run(cursor, explored.store, words.run)
        return presentable(traces.add(compose(explored.store, words, run, explored.model)).described())

    @app.get("/traces")
    def all_traces() -> dict[str, Any]:
        return {"traces": presentable(traces.described())}

    @app.post("/traces/{name}/stop", status_code=202)
    def stop(name: str) -> Any:
        if not traces.stop(name):
            return _refused(409, "This trace is over.")
        return {"traces": presentable(traces.described())}


def _explain_errors(app: FastAPI) -> None:
    """Every error is a sentence that the page shows."""

    @app.exception_handler(HeadwaterError)
    @app.exception_handler(InfluenceError)
    def foreseen(_: Request, error: Exception) -> JSONResponse:
        return _refused(422, str(error))

    @app.exception_handler(ValidationError)
    @app.exception_handler(RequestValidationError)
    def not_valid(_: Request, error: ValidationError | RequestValidationError) -> JSONResponse:
        return _refused(422, explained(error.errors()))

    @app.exception_handler(Exception)
    def unforeseen(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s", request.method, request.url.path, exc_info=error)
        return _refused(500, UNFORESEEN)


def _refused(code: int, words: str) -> JSONResponse:
    return JSONResponse({"error": visible(words)}, code)
