"""Loaded by Dask workers: a worker kills itself with SIGKILL in the middle of a job, once per stage of a whole run."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

MARKS = "RECOVERY_MARKS"  # environment variable: directory in which the deaths are noted
PLACES = {
    "corpus": "/work/cut-",
    "index": "/tables/postings/",
    "covariances": "/covariance-",
    "eigenvalues": "/eigenvalues-",
    "scores": "/scored/",
    "token scores": "/exact_tokens/",
}


def dask_setup(worker) -> None:
    """Watch the renames of this worker; the first of each stage, by any worker, is never made."""
    marks = Path(os.environ[MARKS])

    def hook(event: str, arguments: tuple) -> None:
        if event != "os.rename":
            return
        target = str(arguments[1])
        for stage, place in PLACES.items():
            if place in target:
                try:
                    (marks / stage).touch(exist_ok=False)
                except FileExistsError:
                    return
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
