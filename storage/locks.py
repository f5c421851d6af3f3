"""Locks of a store: one process at a time does what two must not do at once.

A lock is a file under <store>/work/locks/ that the system frees when its holder ends, however it ends. Its text says
who held it last. The names: corpus, index-<terms>, run-<id>, fit-<id>, training-<id>, compact, annotations, clock and
those of embeddings and self-influences. They are taken in this order and released in the opposite one, so that no two
processes wait for each other; `clock` is held for a moment and nothing is taken inside it.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from storage.digests import digest_of
from storage.errors import StoreError
from storage.scratch import scratch
from storage.store import Store, explain_write, safe_name

PATIENCE = 5.0  # seconds of waiting after which the log says for whom
POLL = 0.02  # seconds between two tries
log = logging.getLogger(__name__)


@contextmanager
def locked(store: Store, name: str, timeout: float | None = None) -> Iterator[None]:
    """Hold the store's lock `name` while the block runs; whoever comes second waits, and looks again what is missing.

    `timeout` is in seconds, None waits as long as it takes. A thread must not take a lock twice.
    A directory shared by several machines is locked for all of them where its filesystem passes locks on, as NFS does.
    A store in an object store is locked among the processes of this user on this machine only: let one machine at a
    time drive the flows of such a store.
    """
    path = lock_path(store, name)
    lock = FileLock(path, poll_interval=POLL, preserve_lock_file=True, on_acquired=_sign)
    limit = float("inf") if timeout is None else timeout
    began = time.monotonic()
    with explain_write(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=min(PATIENCE, limit))
        except Timeout:
            log.warning("waiting for lock %s of store %s, held by %s", name, store.root, holder(path))
            _wait_on(lock, store, name, limit - (time.monotonic() - began))
    try:
        yield
    finally:
        lock.release()


def is_held(store: Store, name: str) -> bool:
    """Whether a process holds the lock at this moment."""
    path = lock_path(store, name)
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0, preserve_lock_file=True):
            return False
    except Timeout:
        return True


def _wait_on(lock: FileLock, store: Store, name: str, seconds: float) -> None:
    try:
        lock.acquire(timeout=max(0.0, seconds))
    except Timeout as error:
        raise StoreError(
            f"lock {name} of store {store.root}",
            expected="that it is free in time",
            found=f"it held by {holder(Path(lock.lock_file))}",
            remedy="Run the same command again when that process has ended.",
        ) from error


def lock_path(store: Store, name: str) -> Path:
    """The local file of a lock."""
    if isinstance(store.root, Path):
        return store.root / "work" / "locks" / f"{safe_name(name)}.lock"
    return scratch("locks") / f"{digest_of(str(store.root))[:16]}-{safe_name(name)}.lock"


def holder(path: Path) -> str:
    """Who took a lock last, in words."""
    try:
        found = json.loads(path.read_text())
        return f"process {found['process']} on {found['machine']} since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # being written at this moment
        return "a process that has not signed it yet"


def _sign(descriptor: int) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    text = json.dumps({"process": os.getpid(), "machine": socket.gethostname(), "since": since})
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)
