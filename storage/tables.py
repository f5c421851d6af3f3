"""Parquet parts of a relation: written whole or not at all, read by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.errors import StoreError
from storage.homes import HOUSED, NOWHERE, OWN, home_of, merged_file
from storage.places import Place, location
from storage.schemas import SCHEMAS
from storage.seals import BLANK, KEY, seal
from storage.store import Store, creating, replacing

MADE_FROM = b"headwater_made_from"  # in a part's footer, where its rows depend on more than its name says
ROW_GROUP = 122_880  # DuckDB's own row group; STACK measurements found it the quickest to prune and read.


# Postings are sorted by term, and by sequence within a term: as differences a posting takes 1.5 bytes in place of 3.5,
# written in half and read in two thirds of the time (9 million postings of Zipf-distributed terms).
DIFFERENCES = "sequence_id"
SORTED = ("postings", "word_postings")


class PartWriter:
    """Appends row batches to one part of a relation, keeping one batch in memory."""

    def __init__(self, path, schema: pa.Schema, differences: str | None = None) -> None:
        by_difference = {
            "use_dictionary": [name for name in schema.names if name != differences],
            "column_encoding": {differences: "DELTA_BINARY_PACKED"},
        }
        self._path = path
        self._writer = pq.ParquetWriter(path, schema, compression="snappy", **by_difference if differences else {})
        self._schema = schema
        self.rows = 0

    def append(self, columns: dict[str, list]) -> None:
        """Write one batch, given as columns of Python or NumPy values."""
        self.append_table(pa.table(columns, schema=self._schema))

    def append_table(self, table: pa.Table) -> None:
        """Write one batch, given as an Arrow table with the relation's columns in any order."""
        self._writer.write_table(table.select(self._schema.names).cast(self._schema), row_group_size=ROW_GROUP)
        self.rows += table.num_rows

    def note(self, made_from: str) -> None:
        """Say in the footer what the rows were made from."""
        self._writer.add_key_value_metadata({MADE_FROM.decode(): made_from})

    def close(self) -> None:
        """Finish the file and seal it."""
        self._writer.add_key_value_metadata({KEY: BLANK})
        self._writer.close()
        seal(self._path, ".parquet")


@contextmanager
def writing(store: Store, relation: str, *names: str) -> Iterator[PartWriter]:
    """Open a part for appending; it appears under its name when the block ends without an error."""
    with replacing(store, store.file(relation, *names)) as path:
        writer = PartWriter(path, SCHEMAS[relation], DIFFERENCES if relation in SORTED else None)
        try:
            yield writer
        finally:
            writer.close()


def write_part(
    store: Store, relation: str, *names: str, columns: dict[str, list] | pa.Table, made_from: str | None = None
) -> None:
    """Write a whole part at once; `made_from` says in its footer what it depends on beside its name."""
    with writing(store, relation, *names) as part:
        if made_from is not None:
            part.note(made_from)
        part.append_table(columns) if isinstance(columns, pa.Table) else part.append(columns)


def create_part(store: Store, relation: str, *names: str, columns: dict[str, list]) -> bool:
    """Write a whole part under a name that no part has; false where one has it. Of several at once one is true."""
    try:
        with creating(store, store.file(relation, *names)) as path:
            writer = PartWriter(path, SCHEMAS[relation])
            writer.append(columns)
            writer.close()
    except FileExistsError:
        return False
    return True


def has_part(store: Store, relation: str, *names: str) -> bool:
    """Whether the part is there; a part is complete or absent. A merged run has all its parts, a deleted one none."""
    home = home_of(store, names[0]) if relation in HOUSED else OWN
    return store.file(relation, *names).exists() if home == OWN else home != NOWHERE


def part_names(store: Store, relation: str) -> list[str]:
    """Names of the parts that lie in the relation's own directory; compaction may merge them at any time."""
    return sorted(path.stem for path in store.relation(relation).glob("*.parquet") if path.stem != "schema")


def read_part(
    store: Store, relation: str, *names: str, columns: list[str] | None = None, where: pc.Expression | None = None
) -> pa.Table:
    """Read one part, or the rows of it that `where` selects; a damaged file is named."""
    path = store.file(relation, *names)
    home = home_of(store, names[0]) if relation in HOUSED else OWN
    if home > OWN:
        path, columns = merged_file(store, relation, home), columns or SCHEMAS[relation].names
        mine = pc.field("run_id") == names[0]
        where = mine if where is None else mine & where
    try:
        source, filesystem = location(path)
        return pq.read_table(source, columns=columns, filters=where, partitioning=None, filesystem=filesystem)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Place, error: Exception) -> StoreError:
    return StoreError(
        f"table part {path}",
        expected="a readable Parquet file",
        found=str(error).splitlines()[0],
        remedy="Delete the file and run the same command again: it is computed anew.",
    )


def made_from(store: Store, relation: str, *names: str) -> str | None:
    """What a part that is never merged says it was made from; None where it depends on nothing but its name."""
    path = store.file(relation, *names)
    try:
        source, filesystem = location(path)
        found = (pq.read_metadata(source, filesystem=filesystem).metadata or {}).get(MADE_FROM)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from error
    return None if found is None else found.decode()


def count_rows(store: Store, relation: str, name: str) -> int:
    """How many rows a part has, by its footer."""
    source, filesystem = location(store.file(relation, name))
    return pq.read_metadata(source, filesystem=filesystem).num_rows


def clear_part(store: Store, relation: str, *names: str) -> None:
    """Take a part's rows away, if it is there; an empty file stays, because a reader may have listed it already."""
    if has_part(store, relation, *names):
        write_part(store, relation, *names, columns=SCHEMAS[relation].empty_table())


def damaged(path: Place) -> StoreError:
    """What to say of a file that has not the bytes that it was sealed with."""
    return StoreError(
        f"table part {path}",
        expected="the bytes that it was sealed with",
        found="others: it was damaged since",
        remedy="headwater store verify says what to do about each damaged file.",
    )
