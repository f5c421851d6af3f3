"""Whether single files are what they should be: their bytes, their columns, their numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from storage.errors import StoreError
from storage.homes import HOUSED
from storage.places import Place
from storage.schemas import INDEXES, SCHEMAS, merged_schema
from storage.scratch import local_copy
from storage.seals import seal_is_whole
from storage.store import Store
from storage.tensors import read_tensors, tensor_names


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, where, and what to do."""

    what: str
    found: str
    next_step: str


@dataclass
class Counts:
    """What was read."""

    files: int = 0
    sealed: int = 0  # of the files, those that carry a digest of their bytes
    rows: int = 0
    runs: int = 0


def check_tables(store: Store, counts: Counts) -> Iterator[Finding]:
    """Every Parquet file: its bytes as it was sealed, the columns of its relation, all of its pages readable."""
    for relation in SCHEMAS:
        folder = store.relation(relation)
        for path in sorted(folder.glob("**/*.parquet")):
            is_merged = relation in HOUSED and path.parent.name == "merged"
            schema = merged_schema(relation) if is_merged else SCHEMAS[relation]
            found = _wrong_with_table(path, schema, counts)
            if found:
                yield Finding(name_of(store, path), found, _remedy(store, relation, path, is_merged))


def check_tensors(store: Store, counts: Counts) -> Iterator[Finding]:
    """Every safetensors file of factors, embeddings and studies: its bytes as they were sealed, its numbers finite."""
    for folder, again in (("factors", "fits them"), ("embeddings", "embeds them"), ("studies", "makes it")):
        for path in sorted((store.root / folder).glob("**/*.safetensors")):
            found = _wrong_with_tensors(path, counts)
            if found:
                goes = f"{folder}/{path.parent.name}" if folder == "factors" else name_of(store, path)
                yield Finding(name_of(store, path), found, f"delete {goes}: the next run that needs it {again} anew")


def name_of(store: Store, path: Place) -> str:
    """A file's path within its store."""
    return str(path).removeprefix(str(store.root)).lstrip("/")


def _wrong_with_table(path: Place, schema: pa.Schema, counts: Counts) -> str | None:
    has_rows = path.stem != "schema"  # that one keeps the columns of a relation known, and holds no row
    counts.files += has_rows
    try:
        whole = seal_is_whole(path)
        counts.sealed += has_rows and whole is not None
        if whole is False:
            return "other bytes than it was written with"
        with local_copy(path) as copy, pq.ParquetFile(copy) as file:
            if not file.schema_arrow.equals(schema):
                return f"columns {', '.join(file.schema_arrow.names)} in place of {', '.join(schema.names)}"
            for group in range(file.num_row_groups):
                counts.rows += len(file.read_row_group(group))
    except FileNotFoundError:
        return None  # merged, or deleted, since it was listed
    except (pa.ArrowException, OSError, ValueError) as error:
        return f"no readable Parquet file: {_first_line(error)}"
    return None


def _wrong_with_tensors(path: Place, counts: Counts) -> str | None:
    counts.files += 1
    try:
        whole = seal_is_whole(path)
        counts.sealed += whole is not None
        if whole is False:
            return "other bytes than it was written with"
        for name in tensor_names(path):
            tensor = read_tensors(path, [name])[name]
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                return f"numbers in {name} that are not finite"
            if path.suffix == ".safetensors" and name == "embeddings":
                first, _, end = path.stem.partition("-")
                if len(tensor) != int(end) - int(first):
                    return f"{len(tensor)} rows in place of {int(end) - int(first)}"
    except FileNotFoundError:
        return None
    except StoreError as error:
        return f"no readable safetensors file: {error.found}"
    return None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _remedy(store: Store, relation: str, path: Place, is_merged: bool) -> str:
    indexes = [name for names in INDEXES.values() for name in names]
    if path.stem == "schema":
        return "delete it: it is written anew when the store is opened"
    if is_merged:
        return f"restore it from a backup, or delete and trace again its runs: merges says which have home {path.stem}"
    if relation in HOUSED:
        return f"headwater runs delete {path.stem} --store {store.root}, and trace its queries again"
    if relation in indexes:
        return f"delete {relation}/{path.name} of {', '.join(indexes)} and run headwater index --store {store.root}"
    return {
        "queries": "restore it from a backup, or delete it and submit its queries again",
        "self_influences": "delete it: the next run that needs its rows measures them",
        "answer_influences": "delete it: the search for swapped answers measures it again",
        "answer_trajectories": "delete it: the search for swapped answers measures it again",
        "answer_opponents": "delete it with the file of its name in answer_influences: the search measures both again",
        "evaluations": "delete it: the nightly evaluation writes it again",
        "query_outcomes": "delete it: the evaluation of its fact set measures it again",
        "tail_patches": "delete it: the evaluation of its fact set measures it again",
        "annotation_items": "delete it, and export the same sheet again",
        "annotations": "delete it, and import the sheets with the answers again",
        "retrainings": "delete it: the evaluation that it is part of retrains the model again",
        "loss_changes": "delete it: the evaluation of its study writes it again",
        "unlearnings": "delete it: the evaluation that it is part of unlearns again",
        "removals": "delete it with the files of its study in retrainings: the evaluation retrains the models again",
    }.get(relation, "restore it from a backup")
