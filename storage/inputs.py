"""Corpus files as users have them: Parquet, JSON lines, plain text, a saved `datasets` directory.

Every reader yields batches of documents and keeps one batch in memory.
A document needs a text; it may bring document_id (or doc_id, id, or the column that is named) and source; what else it
has becomes metadata.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.digests import digest_of, digest_of_file
from storage.errors import InputError
from storage.store import explain_write, safe_name

BATCH = 1024  # documents
_ID_COLUMNS = ("document_id", "doc_id", "id")
SUFFIXES = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "text", ".md": "text"}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Document:
    """One document as it came; `metadata` is JSON text."""

    document_id: str
    text: str
    source: str
    metadata: str


@dataclass(frozen=True)
class BadDocument:
    """A document that cannot be used, and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class CorpusFile:
    """One input, which becomes one corpus part."""

    path: Path
    kind: str  # parquet | jsonl | text | dataset
    split: str | None = None
    id_column: str | None = None  # none: the first of document_id, doc_id and id that a document has

    @property
    def label(self) -> str:
        return f"{self.path}[{self.split}]" if self.split else str(self.path)

    def digest(self) -> str:
        """Digest of the content, whatever the file is called; of other ids than the usual ones it is another."""
        if self.path.is_dir():
            files = sorted(p for p in self.path.rglob("*") if p.is_file() and not p.name.startswith("cache-"))
            content = digest_of([self.split, {str(p.relative_to(self.path)): digest_of_file(p) for p in files}])
        else:
            content = digest_of_file(self.path)
        if self.id_column is None or self.id_column == _usual_id_column(self):
            return content
        return digest_of([content, self.id_column])


def find_inputs(paths: Iterable[str | Path], id_column: str | None = None) -> list[CorpusFile]:
    """The corpus files that the user's arguments name, in their order; a folder stands for what it holds.

    `id_column` names the column of the documents' ids.
    """
    found: list[CorpusFile] = []
    for given in paths:
        path = Path(given).expanduser().resolve()
        if not path.exists():
            raise InputError(
                f"corpus {given}", expected="a file or directory", found="nothing there", remedy="Check the path."
            )
        found.extend(_inputs_at(path))
    if not found:
        raise InputError(
            f"corpus {', '.join(map(str, paths))}",
            expected=f"files ending in {', '.join(SUFFIXES)} or a saved datasets directory",
            found="none",
            remedy="Name the files.",
        )
    return [replace(file, id_column=id_column) for file in found]


def _inputs_at(path: Path) -> list[CorpusFile]:
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise InputError(
                f"corpus file {path}",
                expected=f"a name ending in {', '.join(SUFFIXES)}",
                found=repr(path.suffix),
                remedy="Convert or rename it.",
            )
        return [CorpusFile(path, SUFFIXES[path.suffix])]
    if (path / "dataset_dict.json").exists():
        return [CorpusFile(path / safe_name(split), "dataset", split) for split in _splits(path / "dataset_dict.json")]
    if (path / "dataset_info.json").exists():
        return [CorpusFile(path, "dataset")]
    return [CorpusFile(p, SUFFIXES[p.suffix]) for p in sorted(path.iterdir()) if p.suffix in SUFFIXES]


def _splits(path: Path) -> list[str]:
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))["splits"]
        if not isinstance(splits, list) or not all(isinstance(split, str) for split in splits):
            raise TypeError(repr(splits)[:60])
        return splits
    except (ValueError, KeyError, TypeError) as error:  # among them text that is not UTF-8 or not JSON
        raise InputError(
            f"corpus {path}",
            expected='{"splits": [names]}, as save_to_disk of datasets writes it',
            found=str(error).splitlines()[0],
            remedy="Copy or write the directory again.",
        ) from error


def read_documents(file: CorpusFile) -> Iterator[list[Document | BadDocument]]:
    """Batches of documents in file order; unusable ones come as BadDocument, an unreadable file is an error."""
    reader = {"parquet": _read_parquet, "jsonl": _read_jsonl, "text": _read_text, "dataset": _read_dataset}[file.kind]
    row = 0
    for batch in reader(file):
        documents = [_document(file, row + i, record) for i, record in enumerate(batch)]
        row += len(batch)
        yield documents


def _document(file: CorpusFile, row: int, record: dict[str, Any] | BadDocument) -> Document | BadDocument:
    if isinstance(record, BadDocument):
        return record
    where = f"{file.label}, row {row}"
    text = record.get("text")
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            return BadDocument(where, f"not UTF-8 at byte {error.start}")
    if not isinstance(text, str) or not text.strip():
        return BadDocument(where, "empty text" if text is None or isinstance(text, str) else f"text is {type(text)}")
    columns = (file.id_column,) if file.id_column else _ID_COLUMNS
    name = next((key for key in columns if record.get(key) is not None), None)
    if file.id_column and not name:
        return BadDocument(where, f"no {file.id_column}")
    identity = str(record[name]) if name else f"{file.path.stem}:{row}"
    rest = {k: v for k, v in record.items() if k not in {"text", "source", name}}
    source = str(record.get("source") or file.path.stem)
    return Document(identity, text, source, json.dumps(rest, default=str, ensure_ascii=False, sort_keys=True))


def _usual_id_column(file: CorpusFile) -> str | None:
    """The column that a Parquet file's ids are taken from where none is named; documents of other kinds may differ."""
    if file.kind != "parquet":
        return None
    with _readable(file):
        names = pq.read_schema(file.path).names
    return next((name for name in _ID_COLUMNS if name in names), None)


def _read_parquet(file: CorpusFile) -> Iterator[list[dict | BadDocument]]:
    with _readable(file):
        parquet = pq.ParquetFile(file.path)
        names, unreadable = parquet.schema_arrow.names, set[str]()
        _require_columns(file, names)
        for batch in parquet.iter_batches(batch_size=BATCH):
            columns = {n: _values(file, n, found, unreadable) for n, found in zip(names, batch.columns, strict=True)}
            yield [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _values(file: CorpusFile, name: str, column: pa.Array, unreadable: set[str]) -> list[Any]:
    """A column's values: texts as bytes, so that a bad one does not hide the others; metadata only where it is text."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if name == "text" and (pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type)):
        column = column.cast(pa.large_string()).cast(pa.large_binary())
    elif name == "text" and pa.types.is_string(column.type):
        column = column.cast(pa.binary())
    try:
        return column.to_pylist()
    except UnicodeDecodeError as error:
        if name == (file.id_column or _usual_id_column(file)):
            raise _unreadable(file, f"UTF-8 as {name}", error) from error
        if name not in unreadable:
            log.warning("corpus %s: column %s is not UTF-8 and left out of the metadata: %s", file.label, name, error)
            unreadable.add(name)
        return [None] * len(column)


def _read_jsonl(file: CorpusFile) -> Iterator[list[dict | BadDocument]]:
    batch: list[dict | BadDocument] = []
    with explain_write(file.path), open(file.path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{file.label}, line {number}"
            try:
                record = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                batch.append(BadDocument(where, f"not UTF-8 at byte {error.start}"))
            except json.JSONDecodeError as error:
                raise _unreadable(file, f"one JSON object per line (line {number})", error) from error
            else:
                if not isinstance(record, dict):
                    raise _unreadable(file, f"a JSON object at line {number}", TypeError(repr(record)[:60]))
                if not batch:
                    _require_columns(file, list(record))
                batch.append(record)
            if len(batch) == BATCH:
                yield batch
                batch = []
    if batch:
        yield batch


def _read_text(file: CorpusFile) -> Iterator[list[dict | BadDocument]]:
    with explain_write(file.path):
        yield [{"text": file.path.read_bytes()}]


def _read_dataset(file: CorpusFile) -> Iterator[list[dict | BadDocument]]:
    from datasets import load_from_disk

    try:
        dataset = load_from_disk(str(file.path))
    except (OSError, ValueError, pa.ArrowInvalid) as error:
        raise _unreadable(file, "a directory that datasets' save_to_disk wrote", error) from error
    _require_columns(file, dataset.column_names)
    for start in range(0, len(dataset), BATCH):
        columns = dataset[start : start + BATCH]
        yield [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _require_columns(file: CorpusFile, names: list[str]) -> None:
    if file.id_column and file.id_column not in names:
        raise InputError(
            f"corpus {file.label}",
            expected=f"a column {file.id_column!r} of ids",
            found=f"columns {', '.join(names) or 'none'}",
            remedy="Name the column that holds the ids.",
        )
    if "text" not in names:
        raise InputError(
            f"corpus {file.label}",
            expected="a column 'text'",
            found=f"columns {', '.join(names) or 'none'}",
            remedy="Rename the column that holds the text to 'text'.",
        )


@contextmanager
def _readable(file: CorpusFile) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(file, "a complete Parquet file", error) from error


def _unreadable(file: CorpusFile, expected: str, error: Exception) -> InputError:
    return InputError(
        f"corpus {file.label}",
        expected=expected,
        found=str(error).splitlines()[0],
        remedy="Fetch or write the file again; parts of other files are kept.",
    )


def write_documents(path: Path, records: list[dict[str, Any]]) -> None:
    """Write records with document_id, text and whatever else as a Parquet corpus file, in one step."""
    with explain_write(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        names = list(dict.fromkeys(name for record in records for name in record))
        temporary = path.with_suffix(".partial")
        pq.write_table(pa.table({name: [record.get(name) for record in records] for name in names}), temporary)
        temporary.replace(path)
