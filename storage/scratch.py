"""Scratch: a private local directory for what passes between this machine and an object store.

<scratch>/copies/     downloads, kept for the next reader, HEADWATER_SCRATCH_GIB at most
<scratch>/uploads/    files that are being written
<scratch>/sessions/   a DuckDB file of views and macros, which every session attaches
<scratch>/spill/      what DuckDB holds no room for in memory
<scratch>/locks/      locks of stores that have no directory for them
<scratch>/retraining/ what a training that keeps no checkpoint must have a place for
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from storage.digests import digest_of
from storage.errors import StoreError
from storage.places import Place, publish_new, version_of
from storage.settings import settings

COPIES, UPLOADS, SESSIONS, SPILL = "copies", "uploads", "sessions", "spill"
PARTIAL = ".partial"
ABANDONED = 86_400  # seconds without a write after which a download counts as broken off


def scratch(*names: str) -> Path:
    """A directory below the scratch directory, made where it is missing; only this user reads and writes it."""
    given = settings().scratch
    path = given or Path(tempfile.gettempdir()) / f"headwater-{os.getuid()}"
    if given is None:
        _own(path)
    for folder in (path, *(path.joinpath(*names[: k + 1]) for k in range(len(names)))):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StoreError(
                f"scratch directory {folder}",
                expected="that it can be made",
                found=error.strerror,
                remedy="Change what is in its way, or name another place: HEADWATER_SCRATCH.",
            ) from error
    return path.joinpath(*names)


def _own(path: Path) -> None:
    """Make the directory of the default name, or refuse one that somebody else may have prepared: all know its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        status = path.lstat()
        found = (
            "a link" if stat.S_ISLNK(status.st_mode)
            else "a file" if not stat.S_ISDIR(status.st_mode)
            else f"one of user {status.st_uid}" if status.st_uid != os.getuid()
            else "one that others may write to" if status.st_mode & 0o022
            else None
        )  # fmt: skip
        if found:
            raise StoreError(
                f"scratch directory {path}",
                expected="a directory of this user's that nobody else can write to",
                found=found,
                remedy="Remove it, or name another place: HEADWATER_SCRATCH.",
            ) from None
        if status.st_mode & 0o077:
            path.chmod(0o700)


@contextmanager
def temporary_directory(kind: str) -> Iterator[Path]:
    """An empty directory below the scratch directory, which goes with all that is in it when the block ends."""
    with tempfile.TemporaryDirectory(dir=scratch(kind)) as path:
        yield Path(path)


@contextmanager
def local_copy(place: Place) -> Iterator[Path]:
    """A local file with a place's content: itself, or a download that is kept for the next reader.

    Downloads take at most HEADWATER_SCRATCH_GIB; those that were used the longest ago go first, none while a block of
    any process holds it. What the block has opened it may go on reading after it.
    """
    if isinstance(place, Path):
        yield place
        return
    folder = scratch(COPIES)
    path = folder / f"{digest_of(version_of(place))[:32]}{place.suffix}"
    held = _hold(path)
    while held is None:
        _download(place, path)
        held = _hold(path)
        make_room(folder)
    try:
        yield path
    finally:
        os.close(held)


def _download(place: Place, path: Path) -> None:
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
    try:
        place.fs.get_file(place.path, str(temporary))  # type: ignore[union-attr]  # a local one is its own copy
        publish_new(temporary, path)
    except FileExistsError:
        pass  # another reader's copy, which it may hold: it is not replaced
    finally:
        temporary.unlink(missing_ok=True)


def _hold(path: Path) -> int | None:
    """A descriptor whose lock keeps the file where it is; None where there is none."""
    descriptor = _locked(path, fcntl.LOCK_SH)
    if descriptor is not None:
        os.utime(path)
    return descriptor


def _locked(path: Path, kind: int) -> int | None:
    """A descriptor of the file of that name, locked; None where there is none, or somebody has the lock."""
    with suppress(FileNotFoundError, BlockingIOError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, kind)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):  # else it went, or another came, in between
                return descriptor
            raise FileNotFoundError
        except BaseException:
            os.close(descriptor)
            raise
    return None


def make_room(folder: Path) -> None:
    """Remove the downloads that there is no room for, and what is left of those that were broken off."""
    kept: list[tuple[float, int, Path]] = []
    for path in folder.iterdir():
        try:
            status = path.stat()
        except FileNotFoundError:  # another process has made room too
            continue
        if path.suffix != PARTIAL:
            kept.append((status.st_mtime, status.st_size, path))
        elif time.time() - status.st_mtime > ABANDONED:
            path.unlink(missing_ok=True)
    room = settings().scratch_gib * 2**30
    for _, size, path in sorted(kept, reverse=True):
        room -= size
        if room < 0:
            _remove_unless_held(path)


def _remove_unless_held(path: Path) -> None:
    descriptor = _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if descriptor is not None:  # else somebody reads it, and it goes another time
        path.unlink()
        os.close(descriptor)
