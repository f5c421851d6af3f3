"""Places: where a store may stand, a local directory or a prefix in an object store; only this file knows which.

A local file appears under its name by a rename, an object when its upload is complete: neither is seen half-written.
Object stores are reached through fsspec, under any address that it knows: s3://bucket/prefix needs s3fs. Keys, region
and endpoint are those of its environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …), never part of a store.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from fsspec import AbstractFileSystem
from upath import UPath

from storage.errors import InputError

Place: TypeAlias = Path | UPath
TRIES, PAUSE = 8, 0.1  # of a conditional request that met another one, and seconds before the second try


def find_place(text: str | Place) -> Place:
    """The place that a user's words name: a path, or the address of a prefix."""
    if isinstance(text, UPath):
        return text
    protocol, found, _ = str(text).partition("://")
    if not found:
        return Path(text).expanduser().resolve()
    if protocol == "file":
        return Path(str(text).removeprefix("file://")).resolve()
    try:
        # Listings are not remembered: other processes write and remove what this one reads.
        return UPath(str(text).rstrip("/"), use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise InputError(
            f"place {text}",
            expected="a directory, or an address that fsspec knows, such as s3://bucket/prefix",
            found=str(error),
            remedy='Correct it, or install what reads it: pip install "headwater[s3]".',
        ) from error


def is_local(place: Place) -> bool:
    """Whether a place is on this machine's disk."""
    return isinstance(place, Path)


def publish(temporary: Path, final: Place) -> None:
    """Let a complete local file appear under its last name in one step."""
    if isinstance(final, Path):
        os.replace(temporary, final)
    else:
        final.fs.put_file(str(temporary), final.path)


def publish_new(temporary: Path, final: Place) -> None:
    """Let a complete local file appear under a name that nothing has yet; FileExistsError where something has it.

    Of several processes at once one succeeds: by a hard link on a disk, by a conditional request in an object store.
    """
    if not isinstance(final, Path):
        _create_object(temporary, final)
        return
    try:
        os.link(temporary, final)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        # A filesystem without hard links, as those of memory cards: here two at the same instant both succeed.
        if final.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final)) from error
        os.replace(temporary, final)


def _create_object(temporary: Path, final: UPath) -> None:
    # S3 answers 409 where another request for the name is under way, and does not say how that one will end.
    for attempt in range(TRIES):
        try:
            final.fs.put_file(str(temporary), final.path, mode="create")
            return
        except OSError as error:
            code = _code(error)
            if code == "PreconditionFailed":  # s3fs knows it by a word that only Amazon's servers add
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final)) from error
            if code != "ConditionalRequestConflict" or attempt == TRIES - 1:
                raise
        time.sleep(PAUSE * 2**attempt)


def _code(error: OSError) -> str | None:
    """What a server called the error that s3fs made this one from."""
    return getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")


def write_text(place: Place, text: str) -> None:
    """Write a small file in one step."""
    if not isinstance(place, Path):
        place.write_text(text)
        return
    temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_text(text)
        os.replace(temporary, place)
    finally:
        temporary.unlink(missing_ok=True)


def make_directory(place: Place) -> None:
    """Make a directory with its parents; a prefix needs none."""
    if isinstance(place, Path):
        place.mkdir(parents=True, exist_ok=True)


def remove_tree(place: Place) -> None:
    """Remove everything below a place, if there is anything."""
    if isinstance(place, Path):
        shutil.rmtree(place, ignore_errors=True)
    elif place.exists():
        place.fs.rm(place.path, recursive=True)


@dataclass(frozen=True)
class Entry:
    """A file of a directory."""

    place: Place
    n_bytes: int
    modified: float  # seconds since 1970


def entries(folder: Place, suffix: str) -> dict[str, Entry]:
    """The files of a directory that end in `suffix`, by name without it; of a prefix in one request."""
    found = {}
    if isinstance(folder, Path):
        for path in sorted(folder.glob(f"*{suffix}")):
            try:
                status = path.stat()
            except FileNotFoundError:  # removed since it was listed
                continue
            found[path.name.removesuffix(suffix)] = Entry(path, status.st_size, status.st_mtime)
    elif folder.exists():
        for facts in folder.fs.ls(folder.path, detail=True):
            name = facts["name"].rsplit("/", 1)[-1]
            if facts["type"] == "file" and name.endswith(suffix):
                modified = _modified(folder.fs, facts)
                found[name.removesuffix(suffix)] = Entry(folder / name, facts["size"], modified)
    return found


def remove_file(place: Place) -> bool:
    """Remove a file; whether it was there."""
    try:
        place.unlink()
    except FileNotFoundError:
        return False
    return True


def tree_bytes(place: Place) -> tuple[int, float]:
    """Bytes of all files below a place, and when the last of them was written; zeros where nothing is."""
    size, modified = 0, 0.0
    if isinstance(place, Path):
        for path in (place, *place.rglob("*")):
            with suppress(FileNotFoundError):  # removed since it was listed
                status = path.stat()
                size += status.st_size if path.is_file() else 0
                modified = max(modified, status.st_mtime)
    elif place.exists():
        for facts in place.fs.find(place.path, detail=True).values():  # type: ignore[union-attr]  # a dict with detail
            size, modified = size + facts["size"], max(modified, _modified(place.fs, facts))
    return size, modified


def _modified(filesystem: AbstractFileSystem, facts: dict) -> float:
    # S3 tells in its listing; others are asked once more.
    return (facts.get("LastModified") or filesystem.modified(facts["name"])).timestamp()


def location(place: Place) -> tuple[str, AbstractFileSystem | None]:
    """What Arrow takes as a source and its filesystem."""
    return (str(place), None) if isinstance(place, Path) else (place.path, place.fs)


def version_of(place: Place) -> tuple[str, str, str]:
    """Something that changes when a file is replaced by another."""
    if isinstance(place, Path):
        status = place.stat()
        return str(place), str(status.st_size), str(status.st_mtime_ns)
    facts = place.fs.info(place.path)
    return str(place), str(facts["size"]), str(facts.get("ETag") or facts.get("LastModified") or facts.get("updated"))
