"""Search of the lexical index: what its shards say of the corpus together, then one job per shard and a merge."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
from numba import get_num_threads

from storage.checkpoints import load_tokenizer
from storage.database import parts_view, query, rows, session
from storage.postings import broken_files, read_lists
from storage.prefilter import matching_ids
from storage.prompts import Prompt
from storage.schemas import INDEXES, Terms
from storage.sequences import Part, corpus_parts
from storage.store import Store
from storage.tables import read_part
from tasks.fanout import Workers, fan_out
from tasks.retrieval.search import Hits, PostingLists, WeightedQuery, merge_all, search, weigh
from tasks.retrieval.weights import (
    CorpusStatistics,
    Scorer,
    base_score,
    mean_okapi_idf,
    normalisations,
    term_weights,
)
from tasks.retrieval.words import word_id

FIRST, GROWTH = 4, 4  # shards that are searched before there is a bound; and each time as many times as many
HITS = 2**25  # of all queries and shards that wait to be merged: half a gibibyte
NOTHING = Hits(np.empty(0, np.int64), np.empty(0))
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LexicalIndex:
    """The readable shards of a corpus, the document frequency of every term over them, and what weights need more."""

    store: Store
    terms: Terms
    parts: tuple[Part, ...]
    term_ids: np.ndarray  # ascending
    document_frequencies: np.ndarray
    statistics: CorpusStatistics

    def weigh(self, scorer: Scorer, queries: Sequence[tuple[int, ...]]) -> tuple[WeightedQuery, ...]:
        """Queries given as terms, repeated ones repeatedly, with what each term is worth."""
        asked = np.unique(np.array([term for terms in queries for term in terms], np.int64))
        df_of = dict(zip(asked.tolist(), self._frequencies(asked).tolist(), strict=True))
        weights = term_weights(scorer, np.array(list(df_of.values())), self.statistics)
        weight_of = dict(zip(df_of, weights.tolist(), strict=True))
        bases = (base_score(scorer, np.array([df_of[term] for term in terms]), self.statistics) for terms in queries)
        return tuple(weigh(terms, weight_of, base) for terms, base in zip(queries, bases, strict=True))

    def _frequencies(self, asked: np.ndarray) -> np.ndarray:
        if not len(self.term_ids):
            return np.zeros(len(asked), np.int64)
        at = np.searchsorted(self.term_ids, asked).clip(max=len(self.term_ids) - 1)
        return np.where(self.term_ids[at] == asked, self.document_frequencies[at], 0)

    def search(
        self, scorer: Scorer, queries: Sequence[tuple[int, ...]], k: int, where: str | None, workers: Workers
    ) -> list[Hits]:
        """The k best sequences of each query, of those that `where` selects."""
        weighted = self.weigh(scorer, queries)
        found, bounds, waiting = [NOTHING] * len(queries), None, list(self.parts)
        cores = get_num_threads()
        threads = cores if workers.lexical is None else 1  # a worker of a cluster has one
        # The k-th best of the shards so far bounds what the next need to keep and to send; fewer rows give no bound.
        most = max(FIRST, HITS // max(1, k * len(queries)))
        some = FIRST if k < sum(part.n_sequences for part in self.parts[:FIRST]) else most
        while waiting:
            jobs = [
                SearchJob(self.store, part, self.terms, scorer, weighted, k, self.statistics, where, bounds, threads)
                for part in waiting[:some]
            ]
            shards = fan_out(workers.lexical, search_shard, jobs, f"candidates by {scorer}", workers.lexical_resources)
            found = merge_all([found, *shards], k, cores)
            bounds = tuple(hits.scores[-1] if len(hits.scores) == k else -np.inf for hits in found)
            waiting, some = waiting[some:], min(GROWTH * some, most)
        return found


def open_index(store: Store, terms: Terms, skip_broken: bool = False) -> LexicalIndex:
    """The index of a store; a shard that cannot be read is an error, or is left out and named in the log."""
    parts = []
    for part in corpus_parts(store):
        broken = broken_files(store, INDEXES[terms], part.name)
        if broken and not skip_broken:
            raise broken[0]
        if broken:
            log.warning("%s: searching without its %s sequences", broken[0], f"{part.n_sequences:,}")
        else:
            parts.append(part)
    if not parts:
        raise broken_files(store, INDEXES[terms], corpus_parts(store)[0].name)[0]
    with _terms_session(store, terms, parts) as connection:
        found = query(connection, "candidates/document_frequencies")
        n_words = rows(connection, "candidates/word_count")[0]["n_words"] if terms == "words" else 0
    n_sequences = sum(part.n_sequences for part in parts)
    length = n_words if terms == "words" else sum(part.n_tokens for part in parts)
    term_ids, df = (found[name].to_numpy() for name in ("term_id", "document_frequency"))
    statistics = CorpusStatistics(n_sequences, length / n_sequences, mean_okapi_idf(df, n_sequences))
    return LexicalIndex(store, terms, tuple(parts), term_ids.astype(np.int64), df, statistics)


@contextmanager
def _terms_session(store: Store, terms: Terms, parts: Sequence[Part]) -> Iterator[duckdb.DuckDBPyConnection]:
    """A session in which `shard_terms`, and of words `shard_lengths`, are those of the shards given."""
    names = [part.name for part in parts]
    relations, views = INDEXES[terms], {0: "shard_terms", 2: "shard_lengths"}
    with session(store) as connection:
        for position, view in views.items():
            if position < len(relations):
                parts_view(connection, store, view, relations[position], names)
        yield connection


@dataclass(frozen=True)
class SearchJob:
    """All queries against one shard."""

    store: Store
    part: Part
    terms: Terms
    scorer: Scorer
    queries: tuple[WeightedQuery, ...]
    k: int
    statistics: CorpusStatistics
    where: str | None
    bounds: tuple[float, ...] | None  # scores of which k better ones are known, by query
    threads: int


def search_shard(job: SearchJob) -> list[Hits]:
    """The shard's best sequences for each query; its postings are gone through once for all of them."""
    store, part = job.store, job.part
    _, relation, *lengths_of_words = INDEXES[job.terms]
    postings = read_postings(store, relation, part, job.queries)
    if lengths_of_words:
        lengths = read_part(store, "word_lengths", part.name, columns=["n_words"])["n_words"]
    else:
        lengths = read_part(store, "sequences", part.name, columns=["n_tokens"])["n_tokens"]
    norms = normalisations(job.scorer, lengths.to_numpy(), job.statistics)
    allowed = None
    if job.where is not None:
        allowed = np.zeros(part.n_sequences, np.bool_)
        allowed[matching_ids(store, part.name, job.where) - part.first_sequence_id] = True
    return search(postings, norms, job.queries, job.k, part.first_sequence_id, allowed, job.bounds, job.threads)


def read_postings(store: Store, relation: str, part: Part, queries: Sequence[WeightedQuery]) -> PostingLists:
    """The shard's postings of every term that any query asks for."""
    terms = np.unique(np.concatenate([query.terms for query in queries]))
    lists = read_lists(store, relation, part.name, terms, part.first_sequence_id)
    return PostingLists(lists.terms, lists.starts, lists.rows, lists.frequencies)


def query_terms(model: Path, prompt: Prompt) -> tuple[int, ...]:
    """The model tokens of prompt and completion, special tokens left out; a repeated token counts repeatedly."""
    return tuple(load_tokenizer(model)(prompt.prompt + prompt.completion, add_special_tokens=False)["input_ids"])


def query_words(store: Store, prompt: Prompt) -> tuple[int, ...]:
    """The words of prompt and completion, split as the index splits texts; a repeated word counts repeatedly."""
    with session(store) as connection:
        words = rows(connection, "candidates/words_of_text", text=prompt.prompt + prompt.completion)[0]["words"]
    return tuple(map(word_id, words))
