"""Files of a fact set: their columns as text, whatever Arrow type they were written in, and what is wrong with them."""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.errors import InputError

ABSTRACTS, QUERIES, CANDIDATES = "abstracts.parquet", "queries.parquet", "candidates.parquet"
DOCUMENT_ID, QUERY_ID, ALIASES = "doc_id", "query_id", "aliases"
NAMED = 3  # ids in a message
TEXT = pa.string()
COLUMNS: dict[str, dict[str, pa.DataType]] = {
    ABSTRACTS: {DOCUMENT_ID: TEXT, "text": TEXT, "facts": pa.list_(TEXT)},
    QUERIES: dict.fromkeys((QUERY_ID, "prompt", "answer", "fact"), TEXT),
    CANDIDATES: {QUERY_ID: TEXT, DOCUMENT_ID: TEXT},
}
log = logging.getLogger(__name__)


def read_columns(
    folder: Path, name: str, columns: list[str] | None = None, kinds: dict[str, pa.DataType] | None = None
) -> pa.Table:
    """Columns of one file, as strings and lists of strings; no other column is read."""
    path, kinds = folder / name, kinds or COLUMNS[name]
    columns = list(kinds) if columns is None else columns
    if not path.is_file():
        listing = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) if folder.is_dir() else "no such folder"
        raise InputError(
            f"fact set {folder}", expected=f"a file {name}", found=listing or "an empty folder",
            remedy="Name a folder with abstracts.parquet and queries.parquet.",
        )  # fmt: skip
    try:
        file = pq.ParquetFile(path)
        _require_columns(path, file.schema_arrow, kinds)
        table = file.read(columns=columns).select(columns).cast(pa.schema([(c, kinds[c]) for c in columns]))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        kind = ", ".join(f"{column} {kinds[column]}" for column in columns)
        expected = f"a complete Parquet file with {kind}"
        raise _unreadable(path, expected, error, "Write it again with these types.") from error
    for column in columns:
        _require_utf8(path, column, table[column])
    return table


def has_aliases(folder: Path) -> bool:
    """Whether the queries have other names of their answers; a column of that name which holds no lists is another."""
    schema = pq.read_schema(folder / QUERIES)
    if ALIASES not in schema.names:
        return False
    kind = schema.field(ALIASES).type
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if listed and (_is_text(kind.value_type) or pa.types.is_null(kind.value_type)):
        return True
    if not pa.types.is_null(kind):
        log.warning(
            "fact set %s: column %s is %s, not lists of text, and is taken for something else", folder, ALIASES, kind
        )
    return False


def require_ids(path: Path, ids: pa.ChunkedArray) -> None:
    """Refuse rows whose id is missing, blank or another row's."""
    counts = pc.value_counts(ids.combine_chunks())
    doubled = counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist()
    n_blank = pc.sum(pc.equal(pc.utf8_trim_whitespace(pc.fill_null(ids, "")), "")).as_py() or 0
    if n_blank or doubled:
        found = f"{len(doubled)} that occur again: {', '.join(map(repr, doubled[:NAMED]))}"
        raise InputError(
            f"fact set file {path}",
            expected="an id in every row that no other row has",
            found=f"{n_blank} rows without one" if n_blank else found,
            remedy="Give every row an id of its own.",
        )


def require_prompts(path: Path, table: pa.Table) -> None:
    """Refuse queries without a prompt; an empty one is a prompt."""
    without = table.filter(pc.is_null(table["prompt"]))[QUERY_ID].to_pylist()
    if without:
        raise InputError(
            f"fact set file {path}",
            expected="a prompt in every row",
            found=f"none in {len(without)}: {', '.join(map(repr, without[:NAMED]))}",
            remedy="Write what comes before the answer; it may be an empty string.",
        )


def _require_columns(path: Path, schema: pa.Schema, kinds: dict[str, pa.DataType]) -> None:
    for wrong, how in (
        ([column for column in kinds if column not in schema.names], "no {}"),
        ([column for column in kinds if schema.names.count(column) > 1], "twice {}"),
    ):
        if wrong:
            raise InputError(
                f"fact set file {path}",
                expected=f"columns {', '.join(kinds)}",
                found=f"{how.format(', '.join(wrong))} among {', '.join(schema.names)}",
                remedy="Rename the columns, so that each of these names stands for one.",
            )
    for column in {DOCUMENT_ID, QUERY_ID} & kinds.keys():
        # Who reads the corpus would make other text of other types than is made here: of 1.0 Python 1.0 and Arrow 1.
        kind = schema.field(column).type
        if not (_is_text(kind) or pa.types.is_integer(kind)):
            raise InputError(
                f"fact set file {path}",
                expected=f"text or integers as {column}",
                found=str(kind),
                remedy="Write the ids as text, alike in all files of the set.",
            )


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _require_utf8(path: Path, column: str, values: pa.ChunkedArray) -> None:
    try:
        values.validate(full=True)
    except pa.ArrowInvalid as error:
        raise _unreadable(path, f"UTF-8 as {column}", error, "Write the column again in UTF-8.") from error


def _unreadable(path: Path, expected: str, error: Exception, remedy: str) -> InputError:
    return InputError(f"fact set file {path}", expected=expected, found=str(error).splitlines()[0], remedy=remedy)
