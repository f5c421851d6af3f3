"""Compaction stages: small files of runs, inbox and self-influences become few, and what nobody needs goes."""

from __future__ import annotations

import logging
import time
from datetime import timedelta

from pydantic import BaseModel, ConfigDict, Field

from storage.gathering import folders, gather, remove_gathered
from storage.merging import plan_merges, remove_superseded, settle, write_merged
from storage.pruning import plan_pruning, prune
from storage.store import Store
from tasks.progress import progress
from tasks.stage import stage

MIB = 2**20
log = logging.getLogger(__name__)


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


class RetentionParameters(BaseModel):
    """How long a store keeps what nobody needs any more, and runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    leftover_hours: float = Field(
        24, ge=1, le=87_600, description="without a write, in hours, after which factors of another corpus that no run "
        "used, embeddings of replaced parts and work of processes that have ended are removed"
    )  # fmt: skip
    run_days: float | None = Field(
        None,
        gt=0,
        le=36_500,
        description="age in days past which runs go, with factors that they alone used; none: never",
    )
    keep_runs: int = Field(
        20, ge=0, le=1_000_000, description="of the latest complete runs that stay, whatever their age"
    )


@stage("prune")
def prune_store(store: Store, parameters: RetentionParameters, grace: timedelta) -> int:
    """Remove leftovers and old runs; returns how many of both."""
    age = None if parameters.run_days is None else timedelta(days=parameters.run_days)
    keep = None if age is None else parameters.keep_runs
    plan = plan_pruning(store, age, keep, age, timedelta(hours=parameters.leftover_hours))
    for run in plan.runs:
        log.info("run %s of %s goes", run.run_id, run.at)
    for item in (*plan.unused, *plan.leftovers):
        log.info("%s %s, %d bytes, goes", item.kind, item.name, item.n_bytes)
    prune(store, plan, grace)
    return len(plan.runs) + len(plan.unused) + len(plan.leftovers)


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


@stage("gather inbox and self-influences")
def gather_rows(store: Store, parameters: CompactionParameters) -> int:
    """Merge small files of the inbox, and of self-influences under each factors; returns how many became fewer."""
    return sum(gather(store, folder, parameters.target_mib * MIB, parameters.least) for folder in folders(store))


@stage("remove superseded files")
def remove_files(store: Store, parameters: CompactionParameters) -> int:
    """Remove the files whose rows have been read from elsewhere for the grace; returns how many."""
    gathered = sum(remove_gathered(store, folder, parameters.grace) for folder in folders(store))
    return remove_superseded(store, parameters.grace) + gathered
