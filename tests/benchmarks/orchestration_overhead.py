"""What orchestration costs: the same trace as plain functions and as a flow, side by side in one process.

    python tests/benchmarks/orchestration_overhead.py [--sequences 3000] [--width 192] [--queries 8] [--rounds 3]

Both sides walk from the same corpus file to a complete run in a store of its own. The plain side calls the functions
under the flow and its tasks; the flow side talks to a Prefect server that this script starts on this machine. Sides
take turns, in the order plain, flow, flow, plain, …, after one small trace of each to load what is loaded once.
Printed: seconds on the clock and of processor time in this process, per round and side, and the server's.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
        found: dict[str, list[tuple[float, float, float]]] = {side: [] for side in sides}
        print("| round | side | seconds | processor, s | server's processor, s |\n|---|---|---|---|---|")
        for k in range(asked.rounds):
            for side in sorted(sides, reverse=k % 2 == 0):
                took = _measure(lambda s=side, k=k: sides[s](f"{s}-{k}", asked.queries), other)
                found[side].append(took)
                print(f"| {k + 1} | {side} | " + " | ".join(f"{value:.1f}" for value in took) + " |", flush=True)
    for n, name in enumerate(("seconds", "processor seconds")):
        pairs = [(flow[n], plain[n]) for flow, plain in zip(found["flow"], found["plain"], strict=True)]
        differences = [flow - plain for flow, plain in pairs]
        share = statistics.median(flow / plain - 1 for flow, plain in pairs)
        print(f"\n{name}, flow less plain: {', '.join(f'{d:+.1f}' for d in differences)}; median {share:+.1%}")


def _measure(work: Callable[[], None], other: psutil.Process) -> tuple[float, float, float]:
    def spent() -> tuple[float, float, float]:
        mine = time.process_time()
        theirs = sum(sum(p.cpu_times()[:2]) for p in [other, *other.children(recursive=True)])
        return time.perf_counter(), mine, theirs

    before = spent()
    work()
    return tuple(after - start for after, start in zip(spent(), before, strict=True))


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
    import storage  # noqa: F401  # sets the environment before Prefect and torch are imported

    main()
