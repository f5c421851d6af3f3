"""What a block of work took: seconds, bytes put into stores, and the most memory that a process had for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import psutil
import torch

from storage.store import bytes_written, count_written
from storage.text import size

SAMPLE_SECONDS = 0.02  # between looks at the process's memory; one takes some 10 µs


@dataclass
class Cost:
    """Seconds and bytes are sums; memory is the largest of one process, as several machines may have worked."""

    seconds: float = 0.0
    bytes: int = 0
    memory_bytes: int = 0  # resident
    gpu_memory_bytes: int = 0  # that the allocator handed out; 0 where no GPU was used

    def as_dict(self) -> dict[str, float]:
        """The figures for the run's row; GPU memory only where there is some."""
        figures: dict[str, float] = {
            "seconds": round(self.seconds, 3),
            "bytes": self.bytes,
            "memory_bytes": self.memory_bytes,
        }
        return figures | ({"gpu_memory_bytes": self.gpu_memory_bytes} if self.gpu_memory_bytes else {})

    def __str__(self) -> str:
        memory = f"{size(self.memory_bytes)} of memory at most"
        gpu = f", {size(self.gpu_memory_bytes)} of the GPU's" if self.gpu_memory_bytes else ""
        return f"{self.seconds:.1f} s, {size(self.bytes)} written, {memory}{gpu}"


_current: ContextVar[Cost | None] = ContextVar("current_cost", default=None)


@contextmanager
def measuring(cost: Cost) -> Iterator[None]:
    """Measure the block; `cost` is complete when it ends, with an error or without."""
    start, before = time.perf_counter(), bytes_written()
    token, stop = _current.set(cost), threading.Event()
    sampler = threading.Thread(target=_sample, args=(cost, stop), daemon=True)
    if torch.cuda.is_initialized():  # to ask a GPU that nobody uses would start it
        torch.cuda.reset_peak_memory_stats()
    sampler.start()
    try:
        yield
    finally:
        stop.set()
        sampler.join()
        _look(cost)
        if torch.cuda.is_initialized():
            cost.gpu_memory_bytes = max(cost.gpu_memory_bytes, torch.cuda.max_memory_allocated())
        cost.seconds, cost.bytes = time.perf_counter() - start, bytes_written() - before
        _current.reset(token)


def include(job: Cost) -> None:
    """Add what a job in another process took to the block that is being measured here."""
    count_written(job.bytes)
    cost = _current.get()
    if cost is not None:
        cost.memory_bytes = max(cost.memory_bytes, job.memory_bytes)
        cost.gpu_memory_bytes = max(cost.gpu_memory_bytes, job.gpu_memory_bytes)


def _sample(cost: Cost, stop: threading.Event) -> None:
    while not stop.wait(SAMPLE_SECONDS):
        _look(cost)


def _look(cost: Cost) -> None:
    cost.memory_bytes = max(cost.memory_bytes, psutil.Process().memory_info().rss)
