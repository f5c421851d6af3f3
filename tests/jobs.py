"""Jobs that Dask workers of a test can import by name."""

from __future__ import annotations

import logging
import os
import signal

from storage.errors import InputError


def fill_and_tell(size: int) -> int:
    """Hold so many bytes and log from which process."""
    held = bytearray(size)
    logging.getLogger("tasks.somewhere").info("%d bytes held, in %d", len(held), os.getpid())
    return len(held)


def tell_and_fail(name: str) -> None:
    """Log something, and then fail with a foreseen error or with another."""
    logging.getLogger("tasks.somewhere").info("before %s", name)
    if name == "foreseen":
        raise InputError("x", expected="a", found="b", remedy="c")
    raise ZeroDivisionError(name)


def end_the_process(job: int) -> None:
    """What a worker does whose memory ran out."""
    os.kill(os.getpid(), signal.SIGKILL)
