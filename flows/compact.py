"""Compact: many small files of a store become few, while its readers go on reading."""

from __future__ import annotations

from dataclasses import dataclass

from prefect import flow
from pydantic import BaseModel, ConfigDict, Field

from flows.outcome import EXPLAINED
from storage.locks import locked
from storage.store import open_store
from tasks.compaction import (
    CompactionParameters,
    RetentionParameters,
    gather_rows,
    merge_runs,
    prune_store,
    remove_files,
)


class CompactStoreParameters(BaseModel):
    """A store whose small files are to be merged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str = Field(description="directory of the store, or s3://bucket/prefix")
    compaction: CompactionParameters = Field(default_factory=CompactionParameters)
    retention: RetentionParameters | None = Field(None, description="what is removed beside; none: nothing")


@dataclass(frozen=True)
class Compacted:
    """What a compaction did."""

    runs: int
    gathered_files: int
    removed_files: int
    pruned: int = 0  # runs, factors and leftovers


@flow(name="compact-store", flow_run_name="compact {parameters.store}", validate_parameters=True, **EXPLAINED)
def compact_store(parameters: CompactStoreParameters) -> Compacted:
    """Merge runs, inbox and self-influences; remove what has been read from elsewhere for the grace, or is old."""
    store = open_store(parameters.store)
    pruned = 0
    if parameters.retention is not None:  # before the lock, because runs are locked before the store
        pruned = prune_store(store, parameters.retention, parameters.compaction.grace)
    with locked(store, "compact"):
        runs = merge_runs(store, parameters.compaction)
        gathered = gather_rows(store, parameters.compaction)
        return Compacted(runs, gathered, remove_files(store, parameters.compaction), pruned)
