"""Corpus files as users have them: Parquet, JSON lines, plain text, a saved `datasets` directory.

Every reader yields batches of documents and keeps one batch in memory.
A document needs a text; it may bring document_id (or doc_id, id) and source; what else it has becomes metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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

    @property
    def label(self) -> str:
        return f"{self.path}[{self.split}]" if self.split else str(self.path)

    def digest(self) -> str:
        """Digest of the content, whatever the file is called."""
        if self.path.is_dir():
            files = sorted(p for p in self.path.rglob("*") if p.is_file() and not p.name.startswith("cache-"))
            return digest_of([self.split, {str(p.relative_to(self.path)): digest_of_file(p) for p in files}])
        return digest_of_file(self.path)


def find_inputs(paths: Iterable[str | Path]) -> list[CorpusFile]:
    """The corpus files that the user's arguments name, in their order; a folder stands for what it holds."""
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
    return found


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
    name = next((key for key in _ID_COLUMNS if record.get(key) is not None), None)
    identity = str(record[name]) if name else f"{file.path.stem}:{row}"
    rest = {k: v for k, v in record.items() if k not in {"text", "source", name}}
    source = str(record.get("source") or file.path.stem)
    return Document(identity, text, source, json.dumps(rest, default=str, ensure_ascii=False, sort_keys=True))


def _read_parquet(file: CorpusFile) -> Iterator[list[dict | BadDocument]]:
    try:
        parquet = pq.ParquetFile(file.path)
        _require_text_column(file, parquet.schema_arrow.names)
        schema = pa.schema(
            # Text columns are read as bytes, so that one bad document does not hide the others.
            [f.with_type(pa.binary()) if f.name == "text" and pa.types.is_string(f.type) else f
             for f in parquet.schema_arrow]
        )  # fmt: skip
        for batch in parquet.iter_batches(batch_size=BATCH):
            yield pa.Table.from_batches([batch]).cast(schema).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(file, "a complete Parquet file", error) from error


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
                    _require_text_column(file, list(record))
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
    _require_text_column(file, dataset.column_names)
    for start in range(0, len(dataset), BATCH):
        columns = dataset[start : start + BATCH]
        yield [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _require_text_column(file: CorpusFile, names: list[str]) -> None:
    if "text" not in names:
        raise InputError(
            f"corpus {file.label}",
            expected="a column 'text'",
            found=f"columns {', '.join(names) or 'none'}",
            remedy="Rename the column that holds the text to 'text'.",
        )


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
