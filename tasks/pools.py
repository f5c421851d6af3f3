"""Pools stage: the documents that are ranked for each query of a fact set, as sequences; the truth is among them.

Where a set fixes the candidates of a query it is taken at its word. Any other query is given, as in Akyürek et al.
2022 (arXiv 2205.11482): its true documents, the first by BM25, documents that state the same answer, and some at
random; of documents with the same text one stays. BM25 counts words here, of prompt and answer together.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import duckdb
import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from storage.database import query, rows, session
from storage.digests import digest_of
from storage.errors import InputError
from storage.fact_sets import FactQuery, FactSet, fixed_candidates, proponents
from storage.pools import document_pairs, without_sequence, write_pool
from storage.store import Store
from tasks.fanout import Workers
from tasks.lexical import open_index
from tasks.retrieval.words import word_id
from tasks.stage import stage

NAMED = 5  # queries that a warning names
log = logging.getLogger(__name__)


class PoolParameters(BaseModel):
    """What stands beside a query's true documents where the set does not say; the numbers are those of the paper."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lexical: int = Field(100, ge=0, le=100_000, description="first documents by BM25")
    same_target: int = Field(100, ge=0, le=100_000, description="other documents that state the answer, at most")
    uniform: int = Field(100, ge=0, le=100_000, description="documents drawn from all of them")
    seed: int = Field(0, ge=0, lt=2**32, description="of what is drawn")


@dataclass(frozen=True)
class Pool:
    """The candidates of a run, and what could not be among them for want of a training sequence.

    `unreachable` are the queries left out, none of whose true documents has one; `lost` are (query, document) pairs of
    the other queries: true documents, and `lost_others` further candidates.
    """

    pool_id: str
    n_documents: int  # (query, document) pairs
    n_sequences: int  # (query, sequence) pairs
    unreachable: tuple[str, ...]
    lost: tuple[tuple[str, str], ...] = ()
    lost_others: tuple[tuple[str, str], ...] = ()


@stage("candidate pool")
def build_pool(
    store: Store, fact_set: FactSet, asked: Sequence[FactQuery], parameters: PoolParameters, workers: Workers
) -> Pool:
    """Write the candidates of the queries to the store; the same queries and parameters give the same pool."""
    fixed, truths = fixed_candidates(fact_set) or {}, proponents(fact_set)
    with session(store) as connection:
        _register(connection, asked, truths)
        unreachable = tuple(row["query_id"] for row in rows(connection, "pools/unreachable"))
        left = [q for q in asked if q.query_id not in unreachable]
        _warn(store, unreachable, left)
        ranked = document_pairs({q.query_id: fixed[q.query_id] for q in left if q.query_id in fixed})
        if rest := [q for q in left if q.query_id not in fixed]:
            _register(connection, rest, truths)
            ranked = pa.concat_tables([ranked, _ranked(connection, store, parameters, workers)])
        connection.register("ranked", ranked)
        found = query(connection, "pools/sequences")
        true = {q.query_id: truths[q.query_id] for q in left}
        lost = without_sequence(connection, document_pairs(true))
        others = without_sequence(connection, ranked)
    others = [(name, document) for name, document in others if document not in true[name]]
    for pairs, what in ((lost, "true documents"), (others, "candidates")):
        if pairs:
            log.warning("%s without a training sequence: %d (%s)", what, len(pairs), _named(map(str, pairs)))
    return Pool(write_pool(store, found), len(ranked), len(found), unreachable, tuple(lost), tuple(others))


def _ranked(
    connection: duckdb.DuckDBPyConnection, store: Store, parameters: PoolParameters, workers: Workers
) -> pa.Table:
    """(query, document) pairs, as the paper draws them."""
    cut = rows(connection, "pools/largest_document")[0]
    words = {row["query_id"]: row["words"] for row in rows(connection, "pools/query_words")}
    # So many sequences belong to so many documents at least.
    depth = parameters.lexical * cut["most_sequences"]
    connection.register("lexical_hits", _lexical_hits(store, words, depth, workers))
    connection.register("uniform_draws", _draws(words, cut["n_documents"], parameters))
    return query(
        connection,
        "pools/documents",
        lexical=parameters.lexical,
        same_target=parameters.same_target,
        seed=str(parameters.seed),
    )


def _lexical_hits(store: Store, words: Mapping[str, Sequence[str]], depth: int, workers: Workers) -> pa.Table:
    asked = {name: tuple(map(word_id, found)) for name, found in words.items() if found} if depth else {}
    hits = open_index(store, "words").search("bm25plus", list(asked.values()), depth, None, workers) if asked else []
    lengths = [len(found.sequence_ids) for found in hits]
    return pa.table(
        {
            "query_id": pa.array(np.repeat(np.array(list(asked), dtype=object), lengths), pa.string()),
            "sequence_id": np.concatenate([np.empty(0, np.int64), *(found.sequence_ids for found in hits)]),
            "place": np.concatenate([np.empty(0, np.int64), *(np.arange(n) for n in lengths)]),
        }
    )


def _draws(names: Iterable[str], n_documents: int, parameters: PoolParameters) -> pa.Table:
    """Numbers of documents, without replacement; those of a query depend on its name and the seed alone."""
    n = min(parameters.uniform, n_documents)
    drawn = {
        name: np.random.default_rng([parameters.seed, int(digest_of(name)[:16], 16)]).choice(n_documents, n, False)
        for name in names
    }
    return pa.table(
        {
            "query_id": pa.array(np.repeat(np.array(list(drawn), dtype=object), n), pa.string()),
            "document_number": np.concatenate([np.empty(0, np.int64), *drawn.values()]),
        }
    )


def _register(
    connection: duckdb.DuckDBPyConnection, queries: Sequence[FactQuery], truths: Mapping[str, Sequence[str]]
) -> None:
    """Let SQL name the queries `asked`, and their true documents `truths`."""
    connection.register("asked", _asked(queries))
    connection.register("truths", document_pairs({q.query_id: truths[q.query_id] for q in queries}))


def _asked(queries: Sequence[FactQuery]) -> pa.Table:
    return pa.table(
        {
            "query_id": pa.array([q.query_id for q in queries], pa.string()),
            "answer": pa.array([q.answer for q in queries], pa.string()),
            "completed": pa.array([f"{q.prompt} {q.answer}" for q in queries], pa.string()),
        }
    )


def _warn(store: Store, unreachable: tuple[str, ...], left: Sequence[FactQuery]) -> None:
    named = _named(map(repr, unreachable))
    if not left:
        raise InputError(
            f"fact set in store {store.root}",
            expected="a query whose true documents are in the corpus",
            found=f"none: the documents of {named} have no training sequence",
            remedy="Ingest the set's documents into this store, or name another store.",
        )
    if unreachable:
        log.warning("queries left out, whose true documents have no sequence: %d (%s)", len(unreachable), named)


def _named(names: Iterable[str]) -> str:
    found = list(islice(names, NAMED + 1))
    return ", ".join(found[:NAMED]) + (", …" if len(found) > NAMED else "")
