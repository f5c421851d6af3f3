"""A store: one directory, or one prefix of an object store, of Parquet and safetensors, and what lies where in it.

store.json                      the schema version
headwater.duckdb                views and macros only; rebuilt and swapped in
tables/<relation>/**.parquet    the relations of schemas.py; schema.parquet holds the columns and no row
parts/<part>.json               the manifest of a corpus part; it exists when the part is complete
factors/<factors_id>/           one EK-FAC fit
studies/<study_id>/             networks and solutions of a study of small networks
work/                           what is being written; nothing here is ever read as data
"""

from __future__ import annotations

import errno
import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import InputError, StoreError
from storage.places import Place, find_place, is_local, make_directory, publish, publish_new, write_text
from storage.schemas import RUN_RELATIONS, SCHEMA_VERSION, SCHEMAS, merged_schema
from storage.scratch import UPLOADS, scratch

FULL = (errno.ENOSPC, errno.EDQUOT)
REMOTE = ("botocore", "aiohttp")  # whose errors are not the operating system's
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}")


@dataclass(frozen=True)
class Store:
    """A place that exists and whose schema this code reads.

    `pinned` names the corpus parts that it is seen with, those that are current where it is None: a run keeps to the
    corpus that it was begun on, whatever another process adds meanwhile.
    """

    root: Place
    pinned: tuple[str, ...] | None = None

    @property
    def catalog(self) -> Place:
        """The DuckDB file of views and macros."""
        return self.root / "headwater.duckdb"

    def relation(self, name: str) -> Place:
        """Directory of a relation's Parquet files."""
        return self.root / "tables" / name

    def file(self, relation: str, *names: str) -> Place:
        """The Parquet file of one part of a relation; names are ours, never a user's text."""
        return self.relation(relation).joinpath(*map(safe_name, names[:-1]), f"{safe_name(names[-1])}.parquet")


def safe_name(name: str) -> str:
    """`name`, if it can be one component of a path; a name from outside never forms a path."""
    if not _NAME.fullmatch(name):  # match would let a line end pass
        raise InputError(
            f"name {name!r}",
            expected="letters, digits, '.', '_' and '-', not starting with '.'",
            found="something else",
            remedy="Rename it.",
        )
    return name


def create_store(path: str | Place) -> Store:
    """Open the store at `path`, making it first where nothing stands."""
    root = find_place(path)
    marker = root / "store.json"
    with explain_write(root):
        if marker.exists():
            return open_store(root)
        # What a process leaves that was killed on the way to the marker, or is on its way there now, is ours.
        taken = root.exists() and (not root.is_dir() or any(marker.name not in p.name for p in root.iterdir()))
    if taken:
        raise StoreError(
            f"store {root}",
            expected="a headwater store or an empty place",
            found="other files and no store.json",
            remedy="Name another directory.",
        )
    store = Store(root)
    with explain_write(root):
        make_directory(root)
    write_json(marker, {"headwater_store": SCHEMA_VERSION})  # first: whoever opens the store makes what is missing
    _write_empty_relations(store)
    return store


def open_store(path: str | Place) -> Store:
    """Open an existing store; refuses a newer schema."""
    root = find_place(path)
    marker = root / "store.json"
    with explain_write(root):
        missing = not marker.exists()
    if missing:
        raise StoreError(
            f"store {root}",
            expected="a directory with store.json",
            found="none",
            remedy="Make one: headwater ingest FILES --store PATH --model MODEL",
        )
    try:
        version = int(json.loads(marker.read_text())["headwater_store"])
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"store {root}",
            expected='store.json with {"headwater_store": <version>}',
            found=f"{marker.read_text()[:60]!r}",
            remedy="Restore store.json from a backup.",
        ) from error
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"store {root}",
            expected=f"schema version {SCHEMA_VERSION} or older",
            found=f"version {version}, written by a newer headwater",
            remedy="Upgrade headwater, or name another store.",
        )
    store = Store(root)
    _write_empty_relations(store)
    return store


def _write_empty_relations(store: Store) -> None:
    for final, schema in empty_relations(store).items():
        if not final.exists():
            with replacing(store, final) as path:
                pq.write_table(schema.empty_table(), path)


def empty_relations(store: Store) -> dict[Place, pa.Schema]:
    """The columns of the file without rows that every relation has: a DuckDB view over a glob needs one file."""
    folders = {store.relation(relation): schema for relation, schema in SCHEMAS.items()}
    folders |= {store.relation(relation) / "merged": merged_schema(relation) for relation in (*RUN_RELATIONS, "runs")}
    return {folder / "schema.parquet": schema for folder, schema in folders.items()}


@contextmanager
def replacing(store: Store, final: Place) -> Iterator[Path]:
    """Yield a local name outside every glob; on success it becomes `final` in one step, on failure nothing stays.

    DuckDB readers fail on a Parquet file that is being written, so nothing is written under its last name.
    """
    with _aside(store, final) as temporary:
        yield temporary
        count_written(temporary.stat().st_size)
        publish(temporary, final)


@contextmanager
def creating(store: Store, final: Place) -> Iterator[Path]:
    """As `replacing`, but whoever has the name first keeps it: the others get FileExistsError and change nothing."""
    with _aside(store, final) as temporary:
        yield temporary
        publish_new(temporary, final)
        count_written(temporary.stat().st_size)


@contextmanager
def _aside(store: Store, final: Place) -> Iterator[Path]:
    folder = store.root / "work" if isinstance(store.root, Path) else scratch(UPLOADS)
    temporary = folder / f"{final.name}.{uuid.uuid4().hex[:12]}"
    with explain_write(final):
        make_directory(folder)
        make_directory(final.parent)
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


_written = [0]


def bytes_written() -> int:
    """Bytes that this process, and the jobs it has counted in, put into stores so far."""
    return _written[0]


def count_written(size: int) -> None:
    """Count bytes that were written here or by a job elsewhere."""
    _written[0] += size


@contextmanager
def explain_write(path: Place) -> Iterator[None]:
    """Turn the refusal of the operating system, or of an object store, into an error that says what to do."""
    try:
        yield
    except Exception as error:
        explained = _explained(path, error)
        if explained is None:
            raise
        raise explained from error


def _explained(path: Place, error: Exception) -> StoreError | None:
    code = error.errno if isinstance(error, OSError) else None
    # safetensors and DuckDB have errors of their own for what the operating system refused.
    if code in FULL or any(os.strerror(full) in str(error) for full in FULL):
        return StoreError(
            f"writing {path}",
            expected="room on the disk",
            found="none left",
            remedy="Free some space and run the same command again: finished parts are kept.",
        )
    if isinstance(error, FileExistsError):
        return None  # an answer, not a refusal: somebody else was first
    if not is_local(path) and (isinstance(error, OSError) or type(error).__module__.partition(".")[0] in REMOTE):
        return StoreError(
            f"access to {path}",
            expected="an object store that answers and permits it",
            found=str(error).splitlines()[0] if str(error) else type(error).__name__,
            remedy="Check bucket, network, credentials and endpoint (of s3: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …).",
        )
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreError(
            f"access to {path}",
            expected="permission to read and write",
            found=getattr(error, "strerror", None) or "refused",
            remedy="Change the permissions, or name another --store.",
        )
    return None


def write_json(path: Place, value: dict) -> None:
    """Write a small JSON file in one step."""
    with explain_write(path):
        make_directory(path.parent)
        write_text(path, json.dumps(value, indent=1, sort_keys=True))


def read_json(path: Place) -> dict:
    """Read a JSON file of ours."""
    return json.loads(path.read_text())
