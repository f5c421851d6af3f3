"""Jobs that Dask workers of a test can import by name."""

from __future__ import annotations

import logging
import os


def fill_and_tell(size: int) -> int:
    """Hold so many bytes and log from which process."""
    held = bytearray(size)
    logging.getLogger("tasks.somewhere").info("%d bytes held, in %d", len(held), os.getpid())
    return len(held)
