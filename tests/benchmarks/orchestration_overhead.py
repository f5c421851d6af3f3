"""What orchestration costs: the same trace as plain functions and as a flow, side by side in one process.

    python tests/benchmarks/orchestration_overhead.py [--sequences 3000] [--width 192] [--queries 8] [--rounds 3]

Both sides walk from the same corpus file to a complete run in a store of its own. The plain side calls the functions
under the flow and its tasks; the flow side talks to a Prefect server that this script starts on this machine. Sides
take turns, in the order plain, flow, flow, plain, …, after one small trace of each to load what is loaded once.
Printed: seconds on the clock and of processor time in this process, per round and side, and the server's.

On a machine whose speed wanders, the difference of two runs of a minute is lost in it. So what orchestration itself
takes is timed within each run as well: seconds outside of the stages' own work (the machinery of flow and tasks),
inside them those that progress reports wait for the server, and processor seconds of the threads that send logs and
events. Their sum, flow less plain, is the overhead that does not depend on how fast the work went.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import psutil


@contextmanager
def server(home: Path) -> Iterator[psutil.Process]:
    """A Prefect server of our own, and the environment that leads to it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "PREFECT_HOME": str(home), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    }  # fmt: skip
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=1)
                break
            except OSError:
                time.sleep(0.3)
        yield psutil.Process(process.pid)
    finally:
        time.sleep(3)  # the last of the runs' logs is on its way
        process.terminate()
        process.wait(30)


def write_world(root: Path, sequences: int, width: int, layers: int) -> None:
    """A model of random weights, and documents of about 100 tokens."""
    import worlds

    worlds.save_gpt2(root / "model", width=width, layers=layers, context=128)
    rng, texts = random.Random(0), [d["text"] for d in worlds.documents()]
    worlds.write_jsonl(
        root / "corpus.jsonl",
        [
            {"document_id": f"d{k}", "text": " ".join(rng.choice(texts) for _ in range(4)) + f" Number {k}."}
            for k in range(sequences)
        ],
    )


def make_sides(root: Path, queries: int) -> dict[str, Callable[[str, int], None]]:
    """Name → a trace into a fresh store."""
    from prefect import Task

    from flows import trace as module
    from flows.parameters import TraceParameters

    tasks = {name: value for name, value in vars(module).items() if isinstance(value, Task)}

    def parameters(name: str, n: int) -> TraceParameters:
        return TraceParameters.model_validate(
            {
                "store": str(root / name),
                "model": {"name": str(root / "model")},
                "corpus": {"inputs": [str(root / "corpus.jsonl")]},
                "queries": [{"prompt": "The otter went to the", "completion": f" harbour. {k}"} for k in range(n)],
                "method": {"rescore": 20},
                "cluster": "none",
            }
        )

    def plain(name: str, n: int) -> None:
        vars(module).update({key: task.fn for key, task in tasks.items()})
        try:
            module.trace.fn(parameters(name, n))
        finally:
            vars(module).update(tasks)

    return {"plain": plain, "flow": lambda name, n: module.trace(parameters(name, n))}


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("sequences", 3000), ("width", 192), ("layers", 4), ("queries", 8), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, server(Path(folder) / "prefect") as other:
        root = Path(folder)
        write_world(root / "small", 100, asked.width, asked.layers)
        write_world(root / "large", asked.sequences, asked.width, asked.layers)
        for side, trace in make_sides(root / "small", 1).items():
            trace(f"warm-{side}", 1)
        sides = make_sides(root / "large", asked.queries)
        found: dict[str, list[Spent]] = {side: [] for side in sides}
        waits = time_the_reports()
        titles = [field.name for field in fields(Spent)]
        print(f"| round | side | {' | '.join(titles)} |\n|{'---|' * (2 + len(titles))}")
        for k in range(asked.rounds):
            for side in sorted(sides, reverse=k % 2 == 0):
                store = root / "large" / f"{side}-{k}"
                took = measure(lambda s=side, name=store.name: sides[s](name, asked.queries), other, store, waits)
                found[side].append(took)
                print(f"| {k + 1} | {side} | " + " | ".join(f"{v:.2f}" for v in astuple(took)) + " |", flush=True)
    pairs = list(zip(found["flow"], found["plain"], strict=True))
    for name in ("clock", "processor"):
        differences = [getattr(flow, name) - getattr(plain, name) for flow, plain in pairs]
        share = statistics.median(getattr(flow, name) / getattr(plain, name) - 1 for flow, plain in pairs)
        print(f"\n{name}, flow less plain: {', '.join(f'{d:+.1f}' for d in differences)} s; median {share:+.1%}")
    own = [flow.own - plain.own for flow, plain in pairs]
    share = statistics.median(mine / plain.clock for mine, (_, plain) in zip(own, pairs, strict=True))
    print(f"\norchestration's own time: {', '.join(f'{d:+.2f}' for d in own)} s; median {share:+.1%} of the plain run")


@dataclass(frozen=True)
class Spent:
    """Seconds of one trace: on the clock and of this process, and those that are not the work itself."""

    clock: float
    processor: float
    server: float  # processor seconds of the server
    outside: float  # on the clock, outside of all stages
    reports: float  # on the clock, inside stages: waiting for the server to take a progress report
    threads: float  # processor seconds of other Python threads: logs and events on their way

    @property
    def own(self) -> float:
        """What would not be spent if nothing had to be done."""
        return self.outside + self.reports + self.threads


def time_the_reports() -> list[float]:
    """Let every progress report add its seconds to the list that is returned."""
    from tasks import progress

    waits: list[float] = []

    def timed(request: Callable) -> Callable:
        def call(*args, **kwargs):
            began = time.perf_counter()
            try:
                return request(*args, **kwargs)
            finally:
                waits.append(time.perf_counter() - began)

        return call

    for name in ("create_progress_artifact", "update_progress_artifact"):
        setattr(progress, name, timed(getattr(progress, name)))
    return waits


def measure(work: Callable[[], None], other: psutil.Process, store: Path, waits: list[float]) -> Spent:
    """Do the work, which leaves one run in the store."""
    from storage.database import session
    from storage.store import open_store

    def spent() -> tuple[float, float, float, float]:
        mine = psutil.Process()
        known = {thread.native_id for thread in threading.enumerate() if thread is not threading.main_thread()}
        threads = sum(t.user_time + t.system_time for t in mine.threads() if t.id in known)
        theirs = sum(sum(p.cpu_times()[:2]) for p in [other, *other.children(recursive=True)])
        return time.perf_counter(), time.process_time(), theirs, threads

    waits.clear()
    before = spent()
    work()
    clock, processor, server, threads = (after - start for after, start in zip(spent(), before, strict=True))
    with session(open_store(str(store))) as connection:
        [(stages,)] = connection.sql("select stages from runs").fetchall()
    inside = sum(cost["seconds"] for cost in json.loads(stages).values())
    return Spent(clock, processor, server, clock - inside, sum(waits), threads)


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
    import storage  # noqa: F401  # sets the environment before Prefect and torch are imported

    main()
