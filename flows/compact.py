"""Compact: many small files of a store become few, while its readers go on reading."""

from __future__ import annotations

from dataclasses import dataclass

from prefect import flow
from pydantic import BaseModel, ConfigDict, Field

from flows.outcome import EXPLAINED
from storage.locks import locked
from storage.store import open_store
from tasks.compaction import CompactionParameters, gather_rows, merge_runs, remove_files


class CompactStoreParameters(BaseModel):
    """A store whose small files are to be merged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str = Field(description="directory of the store, or s3://bucket/prefix")
    compaction: CompactionParameters = Field(default_factory=CompactionParameters)


@dataclass(frozen=True)
class Compacted:
    """What a compaction did."""

    runs: int
    gathered_files: int
    removed_files: int


@flow(name="compact-store", flow_run_name="compact {parameters.store}", validate_parameters=True, **EXPLAINED)
def compact_store(parameters: CompactStoreParameters) -> Compacted:
    """Merge runs, queries and self-influences; remove what has been read from elsewhere for the grace."""
    store = open_store(parameters.store)
    with locked(store, "compact"):
        runs = merge_runs(store, parameters.compaction)
        gathered = gather_rows(store, parameters.compaction)
        return Compacted(runs, gathered, remove_files(store, parameters.compaction))
