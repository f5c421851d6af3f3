"""Texts stage: the methods that read words and no model, over a run's candidates: BM25+ and the random target."""

from __future__ import annotations

import pyarrow as pa
from rank_bm25 import BM25Plus

from storage.database import part_view, query, session
from storage.errors import InputError
from storage.prompts import Prompt
from storage.sequences import corpus_parts
from storage.staging import has_staged, staged_writer
from tasks.sampling import uniform_scores
from tasks.scoring import Scoring
from tasks.stage import stage

LARGEST = 100_000  # sequences whose words rank_bm25 may hold in memory, some kilobytes each


@stage("texts")
def score_texts(scoring: Scoring) -> None:
    """Stage `texts`: each pair's score under the methods that compare words."""
    store, methods = scoring.store, set(scoring.listed)
    if has_staged(store, scoring.run_id, "texts"):
        return
    with session(store) as connection:
        part_view(connection, store, "run_candidates", "candidates", scoring.run_id)
        pairs = query(connection, "texts/candidates")
        known = query(connection, "texts/sequences", parts=[p.name for p in corpus_parts(store)])
    texts = dict(zip(known["sequence_id"].to_pylist(), known["text"].to_pylist(), strict=True))
    index = _Words(texts) if "bm25plus" in methods else None
    asked: dict[str, list[int]] = {}
    for query_id, sequence_id in zip(pairs["query_id"].to_pylist(), pairs["sequence_id"].to_pylist(), strict=True):
        asked.setdefault(query_id, []).append(sequence_id)
    with staged_writer(store, scoring.run_id, "texts") as part:
        for prompt in scoring.prompts:
            ids = asked.get(prompt.query_id, [])
            if index is not None:
                part.append_table(_rows(prompt, "bm25plus", ids, index.scores(prompt, ids)))
            if "random_target" in methods:
                part.append_table(_rows(prompt, "random_target", ids, random_target(prompt, ids, texts)))


class _Words:
    """BM25+ over the whole corpus, split at white space (k1 1.5, b .75, δ 1: Akyürek et al. 2022, arXiv 2205.11482)."""

    def __init__(self, texts: dict[int, str]) -> None:
        if len(texts) > LARGEST:
            raise InputError(
                "method bm25plus",
                expected=f"a corpus of at most {LARGEST:,} sequences, whose words rank_bm25 holds in memory",
                found=f"{len(texts):,}",
                remedy="Compare with bm25 instead, which reads the store's index: --filter bm25 --beside bm25",
            )
        self._place = {sequence_id: k for k, sequence_id in enumerate(texts)}
        self._index = BM25Plus([text.split() for text in texts.values()], k1=1.5, b=0.75, delta=1)

    def scores(self, prompt: Prompt, sequence_ids: list[int]) -> list[float]:
        """Of each of these sequences, against the words of prompt and completion together."""
        if not sequence_ids:
            return []
        words = (prompt.prompt + prompt.completion).split()
        return self._index.get_batch_scores(words, [self._place[i] for i in sequence_ids])


def random_target(prompt: Prompt, sequence_ids: list[int], texts: dict[int, str]) -> list[float]:
    """1 where the sequence says the completion, else 0, and a random fraction below 1 that puts equals in order."""
    said = prompt.completion.strip()
    fractions = uniform_scores(prompt.query_id, sequence_ids)
    return [(said in texts[i]) + fraction for i, fraction in zip(sequence_ids, fractions, strict=True)]


def _rows(prompt: Prompt, method: str, sequence_ids: list[int], scores: list[float]) -> pa.Table:
    n = len(sequence_ids)
    return pa.table(
        {
            "query_id": pa.array([prompt.query_id] * n, pa.string()),
            "method": pa.array([method] * n, pa.string()),
            "sequence_id": pa.array(sequence_ids, pa.int64()),
            "influence": pa.array(scores, pa.float64()),
        }
    )
