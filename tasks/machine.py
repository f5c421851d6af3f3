"""How much this machine can hold: its memory, its device's memory, and the share that factor matrices may take."""

from __future__ import annotations

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
