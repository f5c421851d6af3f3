"""Traces that readers of the explorer asked for: they queue, one is carried out at a time, all can be followed."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

import httpx

from flows.following import Seen
from flows.outcome import AGAIN
from flows.parameters import TraceParameters
from flows.trace_systems import TraceSystem, find_system
from storage.errors import InputError

MOST = 32  # traces that wait at one time
PAUSE = 1.0  # seconds between two looks at a flow run
KEPT = 100  # traces that are over, remembered
ASKING = "A Prefect server is asked for a flow run; with the first trace one may have to be started."
STOPPING = "It is being stopped."
REPEATED = "Once that is mended, the same words go on from what was finished."
RETRIED = "The Prefect server does not answer; it is asked again: "
log = logging.getLogger(__name__)

State = Literal["waiting", "starting", "running", "done", "failed", "stopped"]
OPEN: tuple[State, ...] = ("waiting", "starting", "running")


@dataclass
class AskedTrace:
    """One trace; changed under the lock of its AskedTraces."""

    parameters: TraceParameters
    name: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    state: State = "waiting"
    flow_run: UUID | None = None
    link: str | None = None
    seen: Seen | None = None
    note: str = ""
    error: str = ""
    is_stopped: bool = False  # somebody asked for its end

    def described(self) -> dict[str, Any]:
        """The trace as its readers are told, in values that JSON takes."""
        query, seen = self.parameters.queries[0], self.seen
        return {
            "name": self.name,
            "prompt": query.prompt,
            "completion": query.completion,
            "query_id": query.as_prompt().query_id,
            "state": self.state,
            "is_open": self.state in OPEN,
            "note": self.note,
            "error": self.error,
            "next": self._step(),
            "link": self.link,
            "run_id": seen.run_id if seen else None,
            "flow_state": seen.state if seen else None,
            "stages": [vars(stage) for stage in seen.stages] if seen else [],
        }

    def _step(self) -> str:
        """What to do next, where the error does not say it; the page has its own words for doing it again."""
        step = ((self.seen.step if self.seen else None) or "").removesuffix(AGAIN).strip()
        return "" if step in self.error else step


class AskedTraces:
    """The queue and the thread that works on it; the thread, and whatever carries traces out, begin with the first."""

    def __init__(self, system: Callable[[], TraceSystem] = find_system) -> None:
        self._find_system = system
        self._system: TraceSystem | None = None
        self._traces: list[AskedTrace] = []
        self._changed = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._work, name="asked traces", daemon=True)

    def add(self, parameters: TraceParameters) -> AskedTrace:
        """Queue a trace."""
        with self._changed:
            if sum(trace.state == "waiting" for trace in self._traces) >= MOST:
                raise InputError(
                    "trace",
                    expected=f"at most {MOST} that wait",
                    found="as many",
                    remedy="Wait for one of them, or stop it; headwater submit takes any number.",
                )
            trace = AskedTrace(parameters)
            self._traces.append(trace)
            over = [one for one in self._traces if one.state not in OPEN]
            for old in over[: max(0, len(over) - KEPT)]:
                self._traces.remove(old)
            if self._thread.ident is None:
                self._thread.start()
            self._changed.notify_all()
        return trace

    def described(self) -> list[dict[str, Any]]:
        """Every trace, in the order in which they were asked for."""
        with self._changed:
            return [trace.described() for trace in self._traces]

    def stop(self, name: str) -> bool:
        """Have a trace end; false where none of that name is waiting or under way."""
        with self._changed:
            found = [trace for trace in self._traces if trace.name == name and trace.state in OPEN]
            for trace in found:
                trace.is_stopped = True
                trace.note = STOPPING
                if trace.state == "waiting":
                    trace.state, trace.note = "stopped", "It had not begun."
            self._changed.notify_all()
        return bool(found)

    def close(self) -> list[str]:
        """End all that was started here; says, a line each, which traces were under way or waited."""
        with self._changed:
            self._is_closing = True
            left = [trace for trace in self._traces if trace.state in OPEN]
            self._changed.notify_all()
        if self._system is None:
            return []
        self._system.close()  # before the thread ends, which may be waiting for a server to start
        self._thread.join()
        return [_last_word(trace, self._system.goes_on) for trace in left]

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closing or self._next() is not None)
                trace = self._next()
                if self._is_closing or trace is None:
                    return
                trace.state, trace.note = "starting", ASKING
            try:
                self._carry_out(trace)
            except Exception as error:
                log.warning("a trace could not be begun or followed: %s", error, exc_info=True)
                self._set(trace, state="failed", note="", error=str(error) or repr(error))

    def _next(self) -> AskedTrace | None:
        return next((trace for trace in self._traces if trace.state == "waiting"), None)

    def _carry_out(self, trace: AskedTrace) -> None:
        if self._system is None:
            self._system = self._find_system()
        system = self._system
        flow_run = system.begin(trace.parameters)
        self._set(trace, flow_run=flow_run, link=system.link(flow_run), state="running", note="")
        is_told = False
        while not self._paused(trace, is_told):
            try:
                if trace.is_stopped and not is_told:
                    system.stop(flow_run)
                    is_told = True
                seen = system.look(flow_run)
            except httpx.HTTPError as error:  # it may be back in a moment, and the trace goes on without it
                self._set(trace, note=RETRIED + (str(error) or type(error).__name__))
                continue
            self._set(trace, seen=seen, note=STOPPING if trace.is_stopped else "")
            if seen.is_over:
                self._end(trace, seen)
                return

    def _paused(self, trace: AskedTrace, is_told: bool) -> bool:
        """Wait for the next look, less where something is to be done; whether the explorer ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closing or (trace.is_stopped and not is_told), PAUSE)
            return self._is_closing

    def _end(self, trace: AskedTrace, seen: Seen) -> None:
        if seen.is_done:
            self._set(trace, state="done", note="")
        elif trace.is_stopped or seen.state == "Cancelled":
            self._set(trace, state="stopped", note="What was finished is kept: the same words go on from there.")
        else:
            self._set(trace, state="failed", note=REPEATED, error=seen.message or seen.state)

    def _set(self, trace: AskedTrace, **values: Any) -> None:
        with self._changed:
            for name, value in values.items():
                setattr(trace, name, value)


def _last_word(trace: AskedTrace, goes_on: bool) -> str:
    query = trace.parameters.queries[0]
    said = f'"{query.prompt[-40:]}" → "{query.completion[:40]}"'
    if trace.flow_run is None:
        return f"the trace of {said} had not begun"
    if goes_on:
        return f"the trace of {said} goes on at the Prefect server: {trace.link}"
    return f"the trace of {said} was ended; what was finished is kept: the same words go on from there"
