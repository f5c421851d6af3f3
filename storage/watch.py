"""A watched folder: which corpus files in it are new and whole, without reading again what is known."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from storage.errors import InputError
from storage.inputs import SUFFIXES, CorpusFile, find_inputs
from storage.store import Store, explain_write, read_json, write_json

MEMORY = "watched.json"  # in the store: what was taken in, by path; losing it costs reading the files again


@dataclass(frozen=True)
class Watched:
    """One corpus file, or one saved datasets directory, as it was when the folder was looked at."""

    path: Path
    files: tuple[CorpusFile, ...]
    size: int  # bytes
    modified_ns: int  # since the epoch, of the file in it that was written last
    refusal: InputError | None = None  # why there are no files in it, though its name says so

    @property
    def version(self) -> str:
        """Something that changes when it is written again, told without reading it."""
        return f"{self.size}-{self.modified_ns}"

    def is_settled(self, settle: float) -> bool:
        """Whether nobody has written to it for `settle` seconds.

        A time in the future counts as long ago: the machine's clock was set back since, and who writes now stamps now.
        """
        return abs(time.time_ns() - self.modified_ns) >= settle * 1e9

    def digests(self) -> list[str]:
        """Digest of the content of each of its files."""
        return [file.digest() for file in self.files]


def look_into(folder: str) -> list[Watched]:
    """Everything in a folder and the folders in it that is a corpus file by its name, in the order of the names."""
    path = Path(folder).expanduser().resolve()
    with explain_write(path):
        if not path.is_dir():
            raise InputError(
                f"watched folder {folder}",
                expected="a directory",
                found="a file" if path.exists() else "nothing there",
                remedy="Make it, or correct the parameter `folder`.",
            )
        return [watched for found in _entries(path) if (watched := _look_at(found))]


def _entries(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue  # most programs that copy files give them such a name until they are whole
        if path.is_dir() and not _is_dataset(path):
            yield from _entries(path)
        elif path.is_dir() or path.suffix in SUFFIXES:
            yield path


def _is_dataset(path: Path) -> bool:
    return (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists()


def _look_at(path: Path) -> Watched | None:
    try:
        statuses = [p.stat() for p in (path, *path.rglob("*"))] if path.is_dir() else [path.stat()]
        size, modified_ns = sum(s.st_size for s in statuses), max(s.st_mtime_ns for s in statuses)
        return Watched(path, tuple(find_inputs([path])), size, modified_ns)
    except FileNotFoundError:  # moved away since it was listed
        return None
    except InputError as error:
        return Watched(path, (), size, modified_ns, error) if path.exists() else None


def unknown(store: Store, found: Iterable[Watched], corpus: set[str]) -> list[Watched]:
    """What of the found has not been taken in as it is now; `corpus` holds the digests of what the corpus is made of.

    Nothing is read of what stands unchanged since it was taken in and is still part of the corpus.
    """
    seen = _seen(store)

    def is_known(watched: Watched) -> bool:
        then = seen.get(str(watched.path), {"version": None, "digests": []})
        return then["version"] == watched.version and corpus.issuperset(then["digests"])

    return [watched for watched in found if not is_known(watched)]


def remember(store: Store, taken: Iterable[Watched]) -> None:
    """Note what has been taken in, as it was when the folder was looked at."""
    now = {str(w.path): {"version": w.version, "digests": w.digests()} for w in taken}
    write_json(store.root / MEMORY, _seen(store) | now)


def _seen(store: Store) -> dict[str, dict]:
    path = store.root / MEMORY
    return read_json(path) if path.exists() else {}
