"""How much this machine can hold: its memory, its device's memory, and the share that factor matrices may take."""

from __future__ import annotations

import threading

import psutil
import torch
from distributed.system import MEMORY_LIMIT

from storage.checkpoints import device
from storage.settings import settings

GIB = 2**30


def memory_bytes() -> int:
    """Bytes where gradients are computed: the GPU's, or the machine's within its container's limit."""
    where = device()
    return torch.cuda.get_device_properties(where).total_memory if where.type == "cuda" else MEMORY_LIMIT


def free_bytes() -> int:
    """Of these, what is free now."""
    where = device()
    if where.type == "cuda":
        return torch.cuda.mem_get_info(where)[0]
    used = psutil.virtual_memory()
    return min(used.available, MEMORY_LIMIT)


def matrix_budget() -> int:
    """Bytes of factor matrices that one worker may hold beside the model."""
    given = settings().matrix_memory_gib
    if given is not None:
        return int(given * GIB)
    return memory_bytes() // (2 if device().type == "cuda" else 8)


class PeakMemory:
    """How far memory rose inside a block: `grown` bytes, from the allocator of a GPU, sampled on a CPU."""

    def __init__(self, where: torch.device) -> None:
        self.grown = 0
        self._where, self._before, self._stop = where, 0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> PeakMemory:
        if self._where.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._where)
            self._before = torch.cuda.memory_allocated(self._where)
        else:
            self._before = psutil.Process().memory_info().rss
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._where.type == "cuda":
            self.grown = torch.cuda.max_memory_allocated(self._where) - self._before
        else:
            self._stop.set()
            self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(0.005):
            self.grown = max(self.grown, psutil.Process().memory_info().rss - self._before)
