"""Digests: what an artefact was made from, so that it is reused only where it still fits."""

from __future__ import annotations

import hashlib
import json
from functools import cache, lru_cache
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "transformers", "prefect", "dask", "duckdb", "pyarrow", "numpy")


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON-able value; equal values give equal digests in every process."""
    text = json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes; remembered while size and modification time stay the same."""
    status = path.stat()
    return _digest_of_file(str(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _digest_of_file(path: str, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def code_revision() -> str:
    """Digest of the numerics' source: a changed formula makes old factors and scores unfit for reuse."""
    folder = resources.files("tasks").joinpath("influence")
    sources = {entry.name: entry.read_text() for entry in folder.iterdir() if entry.name.endswith(".py")}
    return digest_of(sources)[:16]


def numerics() -> dict[str, str]:
    """What two processes must share to give the same numbers; builds of one torch for several devices count as one."""
    versions = {name: version(name).partition("+")[0] for name in ("torch", "transformers")}
    return {"code revision": code_revision(), **versions}


@cache
def library_versions() -> dict[str, str]:
    """Versions of the libraries whose numbers or rows end up in the store."""
    return {name: version(name) for name in LIBRARIES}
