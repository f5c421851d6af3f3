"""Fact-tracing sets: documents that state facts, and queries that ask for them, in a folder of Parquet files.

abstracts.parquet(doc_id, text, facts)       a document is a proponent of a query when its facts hold the query's fact
queries.parquet(query_id, prompt, answer, fact)    and, if wanted, aliases: other names that are right, too
candidates.parquet(query_id, doc_id)         only where the set fixes its candidates
Further columns are kept in the files and not read here. Facts are compared as they stand, whatever they hold.
"""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.database import statement
from storage.digests import digest_of_file
from storage.errors import InputError
from storage.fact_files import (
    ABSTRACTS,
    ALIASES,
    CANDIDATES,
    COLUMNS,
    DOCUMENT_ID,
    NAMED,
    QUERIES,
    QUERY_ID,
    TEXT,
    has_aliases,
    read_columns,
    require_ids,
    require_prompts,
)
from storage.settings import settings
from storage.store import explain_write

COLLAPSE = b"headwater.collapse"  # in the schema of the documents: the column whose value versions of a text share
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FactQuery:
    """A fact that is asked for: the answer is what should follow the prompt, and `aliases` are right as well."""

    query_id: str
    prompt: str
    answer: str
    fact: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class FactSet:
    """A set that was read and found sound. `queries` have an answer and a proponent; the others are named apart."""

    directory: Path
    queries: tuple[FactQuery, ...]
    without_proponent: tuple[FactQuery, ...] = ()
    without_answer: tuple[FactQuery, ...] = ()

    @property
    def documents_path(self) -> Path:
        """The file of the documents, as `ingest` takes it; their ids stand in the column DOCUMENT_ID."""
        return self.directory / ABSTRACTS

    @property
    def documents_fingerprint(self) -> str:
        """Digest of the documents: what a model is taught, whatever is asked of it."""
        return digest_of_file(self.documents_path)[:16]


def read_fact_set(directory: str | Path) -> FactSet:
    """The set in a folder; queries that cannot be evaluated are left out, counted and named in the log."""
    folder = Path(directory).expanduser().resolve()
    require_ids(folder / ABSTRACTS, read_columns(folder, ABSTRACTS, [DOCUMENT_ID])[DOCUMENT_ID])
    table = read_columns(folder, QUERIES)
    require_ids(folder / QUERIES, table[QUERY_ID])
    require_prompts(folder / QUERIES, table)
    if (folder / CANDIDATES).exists():
        _require_known(folder)
    stated = _proponents(folder)
    queries = list(map(FactQuery, *(table[name].to_pylist() for name in COLUMNS[QUERIES]), _aliases(folder, table)))
    blank = tuple(q for q in queries if not (q.answer or "").strip())
    lost = tuple(q for q in queries if q.query_id not in stated)
    sound = tuple(q for q in queries if q.query_id in stated and (q.answer or "").strip())
    found = FactSet(folder, sound, lost, blank)
    for left_out, reason in ((lost, "whose fact no document holds"), (blank, "without an answer")):
        if left_out:
            log.warning("fact set %s: %d queries %s are left out: %s", folder, len(left_out), reason, _ids(left_out))
    if not found.queries:
        raise InputError(
            f"fact set {folder}",
            expected="a query whose fact a document holds",
            found=f"none among {len(queries)}",
            remedy="Write facts the same way in both files.",
        )
    return found


def proponents(fact_set: FactSet) -> dict[str, tuple[str, ...]]:
    """The documents that hold the fact of each query, by query; every query has one."""
    stated = _proponents(fact_set.directory)
    return {query.query_id: stated[query.query_id] for query in fact_set.queries}


def fixed_candidates(fact_set: FactSet) -> dict[str, tuple[str, ...]] | None:
    """The documents among which each query's proponents are to be found, where the set says so; the truth is added.

    A query that the set names no candidates of is not in the answer.
    """
    folder = fact_set.directory
    if not (folder / CANDIDATES).exists():
        return None
    with _connection(folder, QUERIES, ABSTRACTS, CANDIDATES) as connection:
        connection.register("proponents", connection.sql(statement("fact_sets/proponents")).to_arrow_table())
        rows = connection.execute(statement("fact_sets/candidates")).fetchall()
    short = [query_id for query_id, _, n_added in rows if n_added]
    if short:
        log.warning("fact set %s: candidates of %d queries lacked a proponent, which was added", folder, len(short))
    kept = {query.query_id for query in fact_set.queries}
    return {query_id: tuple(doc_ids) for query_id, doc_ids, _ in rows if query_id in kept}


def collapse_keys(fact_set: FactSet) -> dict[str, str]:
    """What each document is a version of: maskings of one sentence share a key, any other document is its own."""
    path = fact_set.documents_path
    column = (pq.read_schema(path).metadata or {}).get(COLLAPSE, DOCUMENT_ID.encode()).decode()
    table = read_columns(fact_set.directory, ABSTRACTS, kinds={DOCUMENT_ID: TEXT, column: TEXT})
    keys = pc.coalesce(table[column], table[DOCUMENT_ID])
    return dict(zip(table[DOCUMENT_ID].to_pylist(), keys.to_pylist(), strict=True))


def write_fact_set(
    directory: str | Path,
    documents: pa.Table | Iterable[pa.Table],
    queries: pa.Table,
    candidates: pa.Table | None = None,
    collapse: str | None = None,
) -> Path:
    """Write a set in one step; a folder that holds the very same set stays as it is, any other is refused.

    Documents may come in several tables of one schema. `collapse` names their column whose value the versions of one
    text share.
    """
    final = Path(directory).expanduser().resolve()
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}")
    with explain_write(final):
        temporary.mkdir(parents=True)
        try:
            _write_documents(temporary / ABSTRACTS, documents, collapse)
            for name, table in ((QUERIES, queries), (CANDIDATES, candidates)):
                if table is not None:
                    pq.write_table(table, temporary / name)
            if final.is_dir() and any(final.iterdir()):
                _require_same(final, temporary)
            else:
                temporary.replace(final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return final


def _write_documents(path: Path, documents: pa.Table | Iterable[pa.Table], collapse: str | None) -> None:
    writer: pq.ParquetWriter | None = None
    try:
        for table in [documents] if isinstance(documents, pa.Table) else documents:
            if writer is None:
                kept = table.schema.metadata or {}
                schema = table.schema.with_metadata(kept | ({COLLAPSE: collapse.encode()} if collapse else {}))
                writer = pq.ParquetWriter(path, schema)
            writer.write_table(table.cast(schema))
    finally:
        if writer is not None:
            writer.close()


def _aliases(folder: Path, table: pa.Table) -> list[tuple[str, ...]]:
    """Other right answers of each query; the column need not be there."""
    if not has_aliases(folder):
        return [()] * len(table)
    others = read_columns(folder, QUERIES, kinds={ALIASES: pa.list_(TEXT)})[ALIASES].to_pylist()
    answers = table["answer"].to_pylist()
    return [
        tuple(dict.fromkeys(name for name in names or () if name and name.strip() and name != answer))
        for names, answer in zip(others, answers, strict=True)
    ]


def _require_same(final: Path, new: Path) -> None:
    there, here = ({p.name: digest_of_file(p) for p in folder.glob("*.parquet")} for folder in (final, new))
    if there != here:
        raise InputError(
            f"fact set {final}",
            expected="an empty place",
            found=f"other files: {', '.join(sorted(p.name for p in final.iterdir())[:NAMED])}",
            remedy="Name another directory, or remove this one.",
        )


def _proponents(folder: Path) -> dict[str, tuple[str, ...]]:
    with _connection(folder, QUERIES, ABSTRACTS) as connection:
        rows = connection.execute(statement("fact_sets/proponents")).fetchall()
    return {query_id: tuple(doc_ids) for query_id, doc_ids in rows}


@contextmanager
def _connection(folder: Path, *names: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB in which each file, without the texts, is a relation of its name."""
    with duckdb.connect() as connection:
        connection.execute("set enable_progress_bar = false")
        connection.execute(f"set memory_limit = '{settings().memory_limit_gib:.2f}GiB'")
        for name in names:
            columns = [column for column in COLUMNS[name] if column not in ("text", "prompt", "answer")]
            connection.register(Path(name).stem, read_columns(folder, name, columns))
        yield connection


def _require_known(folder: Path) -> None:
    with _connection(folder, QUERIES, ABSTRACTS, CANDIDATES) as connection:
        rows: list[tuple[Any, ...]] = connection.execute(statement("fact_sets/unknown_candidates")).fetchall()
    if rows:
        named = [f"document {doc_id!r}" if known else f"query {query_id!r}" for query_id, doc_id, known in rows]
        raise InputError(
            f"fact set file {folder / CANDIDATES}",
            expected="queries and documents of the set",
            found=f"others: {', '.join(dict.fromkeys(named))}",
            remedy="Correct or remove these rows.",
        )


def _ids(queries: tuple[FactQuery, ...]) -> str:
    return ", ".join(q.query_id for q in queries[:NAMED]) + (", …" if len(queries) > NAMED else "")
