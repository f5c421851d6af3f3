"""Candidates stage: the sequences that the gradients will see, per query: lexical top k and a uniform sample."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from storage.checkpoints import load_tokenizer
from storage.database import part_view, query, rows, session
from storage.prompts import Prompt
from storage.sequences import all_sequence_ids, corpus_parts
from storage.store import Store
from storage.tables import has_part, writing
from tasks.fanout import Workers, fan_out
from tasks.retrieval.search import Hits, merge, search, weighted_postings
from tasks.retrieval.weights import CorpusStatistics, bm25_weights, tfidf_weights
from tasks.sampling import uniform_sample
from tasks.stage import stage


Filter = Literal["bm25", "tfidf", "none"]


class CandidateParameters(BaseModel):
    """Which sequences are scored for a query."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    filters: tuple[Filter, ...] = Field(
        ("bm25",), min_length=1, description="each keeps its top k, and their union is scored; none: every sequence"
    )
    top_k: int = Field(10_000, ge=1, le=10_000_000, description="sequences that the filter keeps per query")
    unfiltered: int = Field(
        0, ge=0, le=100_000_000, description="sequences of a uniform sample of the corpus, beside the filter's"
    )
    seed: int = Field(0, ge=0, description="of the uniform sample")


@dataclass(frozen=True)
class SearchJob:
    """All queries against one shard."""

    store: Store
    part: str
    filter: str
    top_k: int
    query_terms: tuple[tuple[int, ...], ...]
    statistics: CorpusStatistics


@stage("candidates")
def find_candidates(
    store: Store, run_id: str, model: Path, prompts: list[Prompt], parameters: CandidateParameters, workers: Workers
) -> int:
    """Write the run's `candidates`; returns how many rows."""
    parts = corpus_parts(store)
    if not has_part(store, "candidates", run_id):
        with writing(store, "candidates", run_id) as part:
            for name in sorted(set(parameters.filters) - {"none"}):
                found = _search(store, model, prompts, name, parameters.top_k, workers)
                for prompt, hits in zip(prompts, found, strict=True):
                    part.append(_columns(run_id, prompt, name, hits))
            for name, size in _samples(parameters):
                chosen = uniform_sample(all_sequence_ids(parts), size, parameters.seed)
                for prompt in prompts:
                    part.append(_columns(run_id, prompt, name, Hits(chosen, np.full(len(chosen), np.nan))))
    with session(store) as connection:
        part_view(connection, store, "run_candidates", "candidates", run_id)
        return rows(connection, "candidates/count")[0]["n"]


def _samples(parameters: CandidateParameters) -> list[tuple[str, int]]:
    everything = [("none", np.iinfo(np.int64).max)] if "none" in parameters.filters else []
    return everything + ([("uniform", parameters.unfiltered)] if parameters.unfiltered else [])


def _search(
    store: Store, model: Path, prompts: list[Prompt], name: str, top_k: int, workers: Workers
) -> list[Hits]:
    with session(store) as connection:
        statistics = CorpusStatistics(**rows(connection, "candidates/statistics")[0])
    terms = tuple(query_terms(model, prompt) for prompt in prompts)
    jobs = [SearchJob(store, part.name, name, top_k, terms, statistics) for part in corpus_parts(store)]
    shards = fan_out(workers.lexical, search_shard, jobs, "candidates")
    return [merge(hits, top_k) for hits in zip(*shards, strict=True)]


def query_terms(model: Path, prompt: Prompt) -> tuple[int, ...]:
    """The model tokens of prompt and completion, special tokens left out; a repeated token counts repeatedly."""
    tokenizer = load_tokenizer(model)
    return tuple(tokenizer(prompt.prompt + prompt.completion, add_special_tokens=False)["input_ids"])


def search_shard(job: SearchJob) -> list[Hits]:
    """The shard's best sequences for each query; the postings are read once for all of them."""
    terms = sorted({term for query_terms in job.query_terms for term in query_terms})
    with session(job.store) as connection:
        part_view(connection, job.store, "part_postings", "postings", job.part)
        part_view(connection, job.store, "part_sequences", "sequences", job.part)
        found = query(connection, "candidates/shard_postings", terms=terms)
    columns = {name: found[name].to_numpy() for name in found.column_names}
    frequencies = columns["document_frequency"].astype(np.float64)
    if job.filter == "tfidf":
        weights = tfidf_weights(frequencies, job.statistics)
    else:
        weights = bm25_weights(columns["term_frequency"], columns["n_tokens"], frequencies, job.statistics)
    postings = weighted_postings(columns["term_id"], columns["sequence_id"], weights)
    return [search(postings, query_terms, job.top_k) for query_terms in job.query_terms]


def _columns(run_id: str, prompt: Prompt, name: str, hits: Hits) -> dict[str, list]:
    n = len(hits.sequence_ids)
    ranked = name not in {"none", "uniform"}
    return {
        "run_id": [run_id] * n,
        "query_id": [prompt.query_id] * n,
        "sequence_id": hits.sequence_ids,
        "filter": [name] * n,
        "filter_score": hits.scores if ranked else [None] * n,
        "filter_rank": np.arange(1, n + 1, dtype=np.int32) if ranked else [None] * n,
    }
