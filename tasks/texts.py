"""Texts stage: the methods that read words and no model, over a run's candidates: BM25+ and the random target."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import pyarrow as pa
from rank_bm25 import BM25Plus

from storage.database import part_view, query, session, stream
from storage.errors import InputError
from storage.prompts import Prompt
from storage.sequences import Part, corpus_parts
from storage.staging import has_staged, staged_writer
from tasks.scoring import Scoring
from tasks.stage import stage

LARGEST = 100_000  # sequences whose words rank_bm25 may hold in memory, some kilobytes each


@stage("texts")
def score_texts(scoring: Scoring) -> None:
    """Stage `texts`: each pair's score under the methods that compare words."""
    store = scoring.store
    if has_staged(store, scoring.run_id, "texts"):
        return
    with staged_writer(store, scoring.run_id, "texts") as part, session(store) as connection:
        part_view(connection, store, "run_candidates", "candidates", scoring.run_id)
        if "bm25plus" in scoring.listed:
            for rows in _bm25plus(connection, corpus_parts(store), scoring.prompts):
                part.append_table(rows)
        if "random_target" in scoring.listed:
            for rows in stream(connection, "texts/random_target"):
                part.append_table(rows)


def require_few(parts: list[Part], remedy: str) -> None:
    """Refuse bm25plus over a corpus whose words take more memory than there may be."""
    n = sum(part.n_sequences for part in parts)
    if n > LARGEST:
        raise InputError(
            "method bm25plus",
            expected=f"a corpus of at most {LARGEST:,} sequences, whose words rank_bm25 holds in memory",
            found=f"{n:,}",
            remedy=remedy,
        )


def _bm25plus(
    connection: duckdb.DuckDBPyConnection, parts: list[Part], prompts: tuple[Prompt, ...]
) -> Iterator[pa.Table]:
    """BM25+ of the words of prompt and completion together, query by query.

    Over the whole corpus, split at white space (k1 1.5, b .75, δ 1: Akyürek et al. 2022, arXiv 2205.11482).
    """
    require_few(parts, "Compare with bm25 instead, which reads the store's index: --filter bm25 --beside bm25")
    known = query(connection, "texts/sequences", parts=[part.name for part in parts])
    index = BM25Plus([text.split() for text in known["text"].to_pylist()], k1=1.5, b=0.75, delta=1)
    place = {sequence_id: k for k, sequence_id in enumerate(known["sequence_id"].to_pylist())}
    asked = {row["query_id"]: row["sequence_ids"] for row in query(connection, "texts/candidates").to_pylist()}
    for prompt in prompts:
        ids = asked.get(prompt.query_id, [])
        words = (prompt.prompt + prompt.completion).split()
        scores = index.get_batch_scores(words, [place[i] for i in ids]) if ids else []
        yield pa.table(
            {
                "query_id": pa.array([prompt.query_id] * len(ids), pa.string()),
                "method": pa.array(["bm25plus"] * len(ids), pa.string()),
                "sequence_id": pa.array(ids, pa.int64()),
                "influence": pa.array(scores, pa.float64()),
            }
        )
