"""Compaction stages: small files of runs, queries and self-influences become few, and what nobody reads goes."""

from __future__ import annotations

import time
from datetime import timedelta

from pydantic import BaseModel, ConfigDict, Field

from storage.gathering import folders, gather, remove_gathered
from storage.merging import plan_merges, remove_superseded, settle, write_merged
from storage.store import Store
from tasks.progress import progress
from tasks.stage import stage

MIB = 2**20


class CompactionParameters(BaseModel):
    """When files are small, and how long readers may need them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target_mib: int = Field(
        256,
        ge=1,
        le=65_536,
        description="size of full merged files, all relations together, in MiB; what is larger stays",
    )
    least: int = Field(2, ge=2, le=1_000_000, description="small runs, or files, that are worth merging")
    grace_seconds: float = Field(
        3600, ge=0, le=31_536_000, description="time that the longest query of a reader may take, in seconds: merged "
        "and deleted files stay so long"
    )  # fmt: skip
    settle_seconds: float = Field(
        2, ge=0, le=3600, description="time between writing merged files and naming them, in seconds: object stores "
        "whose listings lag need some"
    )  # fmt: skip

    @property
    def grace(self) -> timedelta:
        """How long a file stays that readers may have listed."""
        return timedelta(seconds=self.grace_seconds)


@stage("merge runs")
def merge_runs(store: Store, parameters: CompactionParameters) -> int:
    """Move the rows of small runs into merged files; returns how many runs."""
    batches = plan_merges(store, parameters.target_mib * MIB, parameters.least)
    with progress("merge runs", sum(len(batch.n_bytes) for batch in batches)) as advance:
        for batch in batches:
            write_merged(store, batch)
            time.sleep(parameters.settle_seconds)
            settle(store, {run: (batch.home, size) for run, size in batch.n_bytes.items()})
            advance(len(batch.n_bytes))
    return sum(len(batch.n_bytes) for batch in batches)


@stage("gather queries and self-influences")
def gather_rows(store: Store, parameters: CompactionParameters) -> int:
    """Merge small files of queries, and of self-influences under each factors; returns how many files became fewer."""
    return sum(gather(store, folder, parameters.target_mib * MIB, parameters.least) for folder in folders(store))


@stage("remove superseded files")
def remove_files(store: Store, parameters: CompactionParameters) -> int:
    """Remove the files whose rows have been read from elsewhere for the grace; returns how many."""
    gathered = sum(remove_gathered(store, folder, parameters.grace) for folder in folders(store))
    return remove_superseded(store, parameters.grace) + gathered
