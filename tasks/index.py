"""Index stage: a shard of postings per corpus part; a new part adds a shard and touches no other.

DuckDB streams a part's sequences within its memory limit, and every 8 million tokens are inverted and written, so
that a part of any size takes the same memory and nothing is left to spill.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from storage.database import open_connection, part_view, session, stream
from storage.errors import InputError, StoreError
from storage.locks import locked
from storage.schemas import INDEXES, Terms
from storage.sequences import Part, corpus_parts
from storage.store import Store
from storage.tables import has_part, write_part, writing
from tasks.fanout import Workers, fan_out
from tasks.retrieval.inversion import Postings, invert
from tasks.retrieval.words import word_id
from tasks.stage import stage

SEGMENT = 2**23  # tokens that are inverted together: 150 MB of arrays while they are
BATCH = 4096  # sequences that DuckDB hands over together


@dataclass(frozen=True)
class ShardJob:
    """One corpus part whose postings are missing."""

    store: Store
    part: str
    first_sequence_id: int
    terms: Terms


@stage("lexical index")
def build_index(store: Store, workers: Workers, terms: Terms = "tokens") -> int:
    """Build the shards that are missing; returns how many."""
    parts = corpus_parts(store)
    _require_texts(parts, terms)
    if not _missing(store, parts, terms):
        return 0
    with locked(store, f"index-{terms}"):
        jobs = _missing(store, parts, terms)
        fan_out(workers.lexical, build_shard, jobs, "lexical index", workers.lexical_resources)
    return len(jobs)


def _missing(store: Store, parts: list[Part], terms: Terms) -> list[ShardJob]:
    complete = INDEXES[terms][0]  # written last
    return [
        ShardJob(store, part.name, part.first_sequence_id, terms)
        for part in parts
        if not has_part(store, complete, part.name)
    ]


def build_shard(job: ShardJob) -> None:
    """Write the postings of one part, and last its terms with their document frequencies."""
    # Tokens ask for no other relation or macro, and to install all of them takes longer than to index a small part.
    with (open_connection if job.terms == "tokens" else session)(job.store) as connection:
        part_view(connection, job.store, "part_sequences", "sequences", job.part)
        if job.terms == "tokens":
            _write_token_shard(job, stream(connection, "index/tokens", batch_rows=BATCH))
        else:
            part_view(connection, job.store, "part_documents", "documents", job.part)
            _write_word_shard(job, stream(connection, "index/words", batch_rows=BATCH))


@dataclass(frozen=True)
class Segment:
    """Sequences of a shard, one behind the other, that are inverted together."""

    first_row: int
    tokens: np.ndarray
    lengths: np.ndarray

    @property
    def postings(self) -> Postings:
        """Their postings, rows counted from the segment's first."""
        return invert(self.tokens, self.lengths, int(self.tokens.max(initial=-1)) + 1)


def _write_token_shard(job: ShardJob, batches: Iterable[pa.Table]) -> None:
    frequencies = Counts()
    with writing(job.store, "postings", job.part) as part:
        for segment in _segments(_checked(job, batches, "token_ids")):
            postings = segment.postings
            part.append_table(_rows(postings.terms, postings, job, segment))
            frequencies.add(postings.terms)
    held = np.flatnonzero(frequencies.counts)
    columns = {"term_id": held, "document_frequency": frequencies.counts[held]}
    write_part(job.store, "terms", job.part, columns=columns)


def _write_word_shard(job: ShardJob, batches: Iterable[pa.Table]) -> None:
    vocabulary, frequencies, lengths = Vocabulary(), Counts(), []
    with writing(job.store, "word_postings", job.part) as part:
        for segment in _segments(vocabulary.numbered(_checked(job, batches, "words"))):
            ids = vocabulary.ids
            order = np.argsort(ids)  # postings are sorted by id, words are numbered as they come
            rank = np.empty_like(order)
            rank[order] = np.arange(len(order))
            postings = Segment(0, rank[segment.tokens].astype(np.int32), segment.lengths).postings
            part.append_table(_rows(ids[order][postings.terms], postings, job, segment))
            frequencies.add(order[postings.terms])
            lengths.append(segment.lengths)
    n_words = np.concatenate([np.empty(0, np.int64), *lengths])
    ids = np.arange(len(n_words)) + job.first_sequence_id
    write_part(job.store, "word_lengths", job.part, columns={"sequence_id": ids, "n_words": n_words.astype(np.int32)})
    columns = {"term_id": vocabulary.ids, "word": list(vocabulary.numbers), "document_frequency": frequencies.counts}
    write_part(job.store, "words", job.part, columns=columns)


def _rows(terms: np.ndarray, postings: Postings, job: ShardJob, segment: Segment) -> pa.Table:
    first = job.first_sequence_id + segment.first_row
    columns = {
        "term_id": terms,
        "sequence_id": postings.rows + np.int64(first),
        "term_frequency": postings.frequencies,
    }
    return pa.table(columns)


@dataclass
class Counts:
    """How many postings each term number has had so far."""

    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, terms: np.ndarray) -> None:
        """Count one posting for each entry."""
        new = np.bincount(terms, minlength=len(self.counts))
        new[: len(self.counts)] += self.counts
        self.counts = new


@dataclass
class Vocabulary:
    """The words of one shard, numbered as they come, and their ids."""

    numbers: dict[str, int] = field(default_factory=dict)
    _ids: list[int] = field(default_factory=list)

    @property
    def ids(self) -> np.ndarray:
        """word_id of every word so far."""
        return np.array(self._ids, np.int64)

    def numbered(self, lists: Iterable[pa.ListArray]) -> Iterator[pa.ListArray]:
        """The same lists with each word's number in its place."""
        for words in lists:
            encoded = words.flatten().dictionary_encode()
            numbers = np.array([self._number(word) for word in encoded.dictionary.to_pylist()], np.int32)
            flat = numbers[encoded.indices.to_numpy()] if len(numbers) else np.empty(0, np.int32)
            offsets = np.concatenate([[0], np.cumsum(_lengths(words))]).astype(np.int32)
            yield pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))

    def _number(self, word: str) -> int:
        number = self.numbers.setdefault(word, len(self.numbers))
        if number == len(self._ids):
            self._ids.append(word_id(word))
        return number


def _segments(lists: Iterable[pa.ListArray]) -> Iterator[Segment]:
    """Lists gathered until they hold SEGMENT tokens."""
    first, tokens, lengths, held = 0, [], [], 0
    for some in lists:
        tokens.append(some.flatten().to_numpy())
        lengths.append(_lengths(some))
        held += len(tokens[-1])
        if held >= SEGMENT:
            yield Segment(first, np.concatenate(tokens), np.concatenate(lengths))
            first, tokens, lengths, held = first + sum(map(len, lengths)), [], [], 0
    if lengths:
        yield Segment(first, np.concatenate(tokens), np.concatenate(lengths))


def _lengths(lists: pa.ListArray) -> np.ndarray:
    return lists.value_lengths().to_numpy().astype(np.int64)


def _checked(job: ShardJob, batches: Iterable[pa.Table], column: str) -> Iterator[pa.ListArray]:
    """The lists of one column, their sequences numbered without a gap from the part's first."""
    expected = job.first_sequence_id
    for batch in batches:
        ids = batch["sequence_id"].to_numpy()
        if not np.array_equal(ids, np.arange(expected, expected + len(ids))):
            raise StoreError(
                f"sequences of part {job.part}",
                expected=f"ids that go on from {expected} without a gap",
                found=f"{ids[:3].tolist()} …",
                remedy="Restore the part's Parquet file, or ingest its corpus file into a new store.",
            )
        expected += len(ids)
        yield batch[column].combine_chunks()


def _require_texts(parts: list[Part], terms: Terms) -> None:
    joined = [part for part in parts if part.packing == "concatenate"]
    if terms == "words" and joined:
        raise InputError(
            f"words of corpus part {joined[0].name}",
            expected="sequences of one document each",
            found="packing concatenate: a sequence's text is spread over documents",
            remedy="Use --terms tokens, or ingest with --packing document.",
        )
