"""Candidates stage: the sequences that the gradients will see, per query: filters' top k and a uniform sample."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from storage.checkpoints import tokenizer_fingerprint
from storage.database import part_view, rows, session
from storage.errors import MismatchError
from storage.pools import read_pool
from storage.prefilter import matching_ids, parse_where
from storage.prompts import Prompt
from storage.schemas import Terms
from storage.sequences import Part, all_sequence_ids, corpus_parts, require_pinned
from storage.store import Store
from storage.tables import has_part, writing
from tasks.compute import ComputeParameters
from tasks.fanout import Workers, fan_out
from tasks.lexical import open_index, query_terms, query_words
from tasks.neighbours import embedding_source, embeddings_name, nearest
from tasks.retrieval.search import Hits
from tasks.retrieval.weights import Scorer
from tasks.sampling import uniform_sample
from tasks.stage import stage

LEXICAL: tuple[Scorer, ...] = get_args(Scorer)
EVERYTHING = np.iinfo(np.int64).max


class CandidateParameters(BaseModel):
    """Which sequences are scored for a query."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    filters: tuple[Literal[Scorer, "embedding", "pool", "none"], ...] = Field(
        ("bm25",),
        min_length=1,
        description="each keeps its top k, and their union is scored; none: every sequence; pool: those of `pool`",
    )
    pool: str | None = Field(None, description="pool of the store that names each query's sequences")
    terms: Terms = Field("tokens", description="what lexical filters count: model tokens, or words in lower case")
    top_k: int = Field(10_000, ge=1, le=10_000_000, description="sequences that a filter keeps per query")
    unfiltered: int = Field(
        0, ge=0, le=100_000_000, description="sequences of a uniform sample of the corpus, beside the filters'"
    )
    seed: int = Field(0, ge=0, description="of the uniform sample")
    where: str | None = Field(
        None, description="SQL expression over documents and sequences that every candidate must fulfil"
    )
    embedding_layer: int = Field(
        -1, description="hidden states that the embedding filter compares: 0 … n layers, or from the end"
    )
    skip_broken: bool = Field(False, description="leave out index shards that cannot be read, instead of failing")

    @field_validator("where")
    @classmethod
    def _is_an_expression(cls, where: str | None) -> str | None:
        return None if where is None else parse_where(where)

    @model_validator(mode="after")
    def _has_pool(self) -> CandidateParameters:
        if ("pool" in self.filters) != (self.pool is not None):
            raise ValueError("candidates: the filter `pool` and the name of a pool go together. Give both or neither.")
        return self

    @property
    def lexical(self) -> list[Scorer]:
        """The filters that search the lexical index."""
        return [name for name in LEXICAL if name in self.filters]


@stage("candidates")
def find_candidates(
    store: Store,
    run_id: str,
    model: Path,
    prompts: list[Prompt],
    parameters: CandidateParameters,
    workers: Workers,
    compute: ComputeParameters = ComputeParameters(),  # noqa: B008  # frozen
) -> int:
    """Write the run's `candidates`; returns how many rows."""
    if not has_part(store, "candidates", run_id):
        _require_same_tokenizer(corpus_parts(store), model)
        with writing(store, "candidates", run_id) as part:
            hits_of = _lexical_hits(store, model, prompts, parameters, workers)
            if "embedding" in parameters.filters:
                hits_of.append(("embedding", _nearest(store, model, prompts, parameters, workers, compute)))
            for name, hits in hits_of:
                for prompt, found in zip(prompts, hits, strict=True):
                    part.append(_columns(run_id, prompt, name, found))
            if parameters.pool is not None:
                for prompt, found in zip(prompts, _pooled(store, prompts, parameters.pool), strict=True):
                    part.append(_columns(run_id, prompt, "pool", found))
            for name, chosen in _samples(store, parameters, workers):
                for prompt in prompts:
                    part.append(_columns(run_id, prompt, name, Hits(chosen, np.full(len(chosen), np.nan))))
            require_pinned(store)  # else the rows of a part that was replaced meanwhile would silently be missing
    with session(store) as connection:
        part_view(connection, store, "run_candidates", "candidates", run_id)
        return rows(connection, "candidates/count")[0]["n"]


def _require_same_tokenizer(parts: list[Part], model: Path) -> None:
    asked = tokenizer_fingerprint(model)
    other = next((part for part in parts if part.tokenizer_fingerprint != asked), None)
    if other:
        raise MismatchError(
            f"corpus part {other.name}",
            expected=f"tokenizer {asked}, that of the model",
            found=f"tokenizer {other.tokenizer_fingerprint}, with which it was cut and indexed",
            remedy="Trace with the model whose tokenizer cut the corpus, or ingest the corpus into another store.",
        )


def _lexical_hits(
    store: Store, model: Path, prompts: list[Prompt], parameters: CandidateParameters, workers: Workers
) -> list[tuple[str, list[Hits]]]:
    """What each lexical filter finds, query by query."""
    if not parameters.lexical:
        return []
    index = open_index(store, parameters.terms, parameters.skip_broken)
    if parameters.terms == "tokens":
        queries = [query_terms(model, prompt) for prompt in prompts]
    else:
        queries = [query_words(store, prompt) for prompt in prompts]
    return [
        (name, index.search(name, queries, parameters.top_k, parameters.where, workers)) for name in parameters.lexical
    ]


def _nearest(
    store: Store,
    model: Path,
    prompts: list[Prompt],
    parameters: CandidateParameters,
    workers: Workers,
    compute: ComputeParameters,
) -> list[Hits]:
    made = embeddings_name(embedding_source(model, parameters.embedding_layer, compute))
    allowed = None if parameters.where is None else partial(matching_ids, where=parameters.where)
    return nearest(store, model, prompts, made, parameters.embedding_layer, parameters.top_k, compute, workers, allowed)


def _pooled(store: Store, prompts: list[Prompt], pool_id: str) -> list[Hits]:
    """The sequences that a pool names for each query."""
    pool = read_pool(store, pool_id)
    named, ids = pool["query_id"].to_numpy(zero_copy_only=False), pool["sequence_id"].to_numpy()
    unknown = np.setdiff1d(ids, all_sequence_ids(corpus_parts(store)))
    if len(unknown):
        raise MismatchError(
            f"pool {pool_id}",
            expected="sequences of the corpus as it is now",
            found=f"{len(unknown)} others, the first {unknown[0]}",
            remedy="Make the pool again: the corpus has changed since.",
        )
    chosen = [ids[named == prompt.query_id] for prompt in prompts]
    return [Hits(found, np.full(len(found), np.nan)) for found in chosen]


def _samples(store: Store, parameters: CandidateParameters, workers: Workers) -> list[tuple[str, np.ndarray]]:
    """The sequences that are scored whatever the query, by the name of what chose them."""
    sizes = {"none": EVERYTHING if "none" in parameters.filters else 0, "uniform": parameters.unfiltered}
    if not any(sizes.values()):
        return []
    ids = allowed_ids(store, parameters.where, workers)
    return [(name, uniform_sample(ids, size, parameters.seed)) for name, size in sizes.items() if size]


@dataclass(frozen=True)
class AllowedJob:
    """One part whose sequences an expression selects from."""

    store: Store
    part: str
    where: str


def allowed_ids(store: Store, where: str | None, workers: Workers) -> np.ndarray:
    """The sequences of the corpus that an expression selects, all without one; ascending."""
    parts = corpus_parts(store)
    if where is None:
        return all_sequence_ids(parts)
    jobs = [AllowedJob(store, part.name, where) for part in parts]
    return np.concatenate(
        fan_out(workers.lexical, _matching, jobs, "candidates by expression", workers.lexical_resources)
    )


def _matching(job: AllowedJob) -> np.ndarray:
    return matching_ids(job.store, job.part, job.where)


def _columns(run_id: str, prompt: Prompt, name: str, hits: Hits) -> dict[str, list]:
    n = len(hits.sequence_ids)
    ranked = name not in {"none", "uniform", "pool"}
    return {
        "run_id": [run_id] * n,
        "query_id": [prompt.query_id] * n,
        "sequence_id": hits.sequence_ids,
        "filter": [name] * n,
        "filter_score": hits.scores if ranked else [None] * n,
        "filter_rank": np.arange(1, n + 1, dtype=np.int32) if ranked else [None] * n,
    }
