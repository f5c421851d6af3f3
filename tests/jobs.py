"""Jobs that Dask workers of a test can import by name."""

from __future__ import annotations

import logging
import os
import signal


def fill_and_tell(size: int) -> int:
    """Hold so many bytes and log from which process."""
    held = bytearray(size)
    logging.getLogger("tasks.somewhere").info("%d bytes held, in %d", len(held), os.getpid())
    return len(held)


def end_the_process(job: int) -> None:
    """What a worker does whose memory ran out."""
    os.kill(os.getpid(), signal.SIGKILL)
