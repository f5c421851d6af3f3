"""Corpus parts and the sequences in them: manifests, ids, tokens."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.digests import digest_of
from storage.errors import StoreError
from storage.store import Store, read_json, write_json
from storage.tables import read_part


@dataclass(frozen=True)
class Part:
    """The manifest of one corpus part: what it was made of, and which sequence ids it holds."""

    name: str
    source: str
    content_digest: str
    tokenizer_fingerprint: str
    packing: str
    sequence_length: int
    n_documents: int
    n_skipped: int
    n_sequences: int
    n_tokens: int
    first_sequence_id: int
    status: str = "current"  # or replaced: its ids are never given to other sequences

    @property
    def end_sequence_id(self) -> int:
        return self.first_sequence_id + self.n_sequences


def write_manifest(store: Store, part: Part) -> None:
    """Write a part's manifest; the part counts as complete from here on."""
    write_json(store.root / "parts" / f"{part.name}.json", asdict(part))


def all_parts(store: Store) -> list[Part]:
    """Every part the store has had, in the order they came."""
    return [Part(**read_json(path)) for path in sorted((store.root / "parts").glob("*.json"))]


def current_parts(store: Store) -> list[Part]:
    """The parts that make up the corpus, or that the store is pinned to: of each source the last."""
    parts = all_parts(store)
    if store.pinned is not None:
        return [part for part in parts if part.name in store.pinned]
    last = {part.source: part.name for part in parts}
    return [part for part in parts if part.status == "current" and part.name == last[part.source]]


def outdated_parts(store: Store) -> list[Part]:
    """Parts in whose place others have come and whose rows are not cleared away yet."""
    last = {part.source: part.name for part in all_parts(store)}
    return [part for part in all_parts(store) if part.status == "current" and part.name != last[part.source]]


def pin_corpus(store: Store) -> Store:
    """The store as it is now: its corpus stays what it is, also in the jobs on workers."""
    return replace(store, pinned=tuple(part.name for part in corpus_parts(store)))


def require_pinned(store: Store) -> None:
    """Refuse to go on if another process has replaced a part of the pinned corpus."""
    gone = [part for part in current_parts(store) if part.status == "replaced"]
    if gone:
        raise StoreError(
            f"corpus part {gone[0].name} of store {store.root}",
            expected=f"the text of {gone[0].source} that this run was begun on",
            found="another, which was ingested meanwhile",
            remedy="Run the same command again.",
        )


def corpus_parts(store: Store) -> list[Part]:
    """The parts of the corpus; a store without any is an error."""
    parts = current_parts(store)
    if not parts:
        raise StoreError(
            f"store {store.root}",
            expected="a corpus",
            found="no sequences",
            remedy="Ingest one: headwater ingest FILES --store PATH --model MODEL",
        )
    return parts


def corpus_fingerprint(parts: list[Part]) -> str:
    """Digest of content, tokenizer and cut of all parts: what the factors and runs depend on."""
    return digest_of([[p.content_digest, p.tokenizer_fingerprint, p.packing, p.sequence_length] for p in parts])[:16]


def all_sequence_ids(parts: list[Part]) -> np.ndarray:
    """The ids of every sequence of the corpus, ascending."""
    return np.concatenate([np.arange(p.first_sequence_id, p.end_sequence_id) for p in parts])


def typical_length(parts: list[Part]) -> int:
    """Mean tokens of a sequence, at least one."""
    return max(1, round(sum(p.n_tokens for p in parts) / max(1, sum(p.n_sequences for p in parts))))


def read_tokens(store: Store, sequence_ids: np.ndarray) -> dict[int, list[int]]:
    """Token ids of the named sequences; reads only the parts that hold them."""
    wanted = np.unique(sequence_ids)
    found: dict[int, list[int]] = {}
    for part in current_parts(store):
        ids = wanted[(wanted >= part.first_sequence_id) & (wanted < part.end_sequence_id)]
        if not len(ids):
            continue
        table = read_part(
            store,
            "sequences",
            part.name,
            columns=["sequence_id", "token_ids"],
            where=pc.field("sequence_id").isin(pa.array(ids)),
        )
        found.update(zip(table["sequence_id"].to_pylist(), table["token_ids"].to_pylist(), strict=True))
    missing = set(wanted.tolist()) - set(found)
    if missing:
        raise StoreError(
            f"store {store.root}",
            expected=f"sequence {min(missing)}",
            found="no such sequence in the corpus",
            remedy="Run headwater trace again: the corpus has changed since.",
        )
    return found
