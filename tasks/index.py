"""Index stage: a shard of postings per corpus part, built by DuckDB; a new part adds a shard and touches no other."""

from __future__ import annotations

from dataclasses import dataclass

from storage.database import part_view, session, stream
from storage.sequences import corpus_parts
from storage.store import Store
from storage.tables import has_part, writing
from tasks.fanout import Workers, fan_out
from tasks.stage import stage


@dataclass(frozen=True)
class ShardJob:
    """One corpus part whose postings are missing."""

    store: Store
    part: str


@stage("lexical index")
def build_index(store: Store, workers: Workers) -> int:
    """Build the shards that are missing; returns how many."""
    # `terms` is written after `postings`, so a part that has it is complete.
    missing = [ShardJob(store, p.name) for p in corpus_parts(store) if not has_part(store, "terms", p.name)]
    fan_out(workers.lexical, build_shard, missing, "lexical index")
    return len(missing)


def build_shard(job: ShardJob) -> None:
    """Write `postings` and `terms` of one part; DuckDB spills past its memory limit."""
    with session(job.store) as connection:
        part_view(connection, job.store, "part_sequences", "sequences", job.part)
        with writing(job.store, "postings", job.part) as postings:
            for batch in stream(connection, "index/postings"):
                postings.append_table(batch)
        part_view(connection, job.store, "part_postings", "postings", job.part)
        with writing(job.store, "terms", job.part) as terms:
            for batch in stream(connection, "index/terms"):
                terms.append_table(batch)
