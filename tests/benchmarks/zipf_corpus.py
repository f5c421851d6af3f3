"""A store of synthetic sequences: terms by Zipf's law, lengths about a hundred, the same on every machine.

The k-th of V terms is drawn with a probability in proportion to k^−1.07; a sequence has 1 + Poisson(99) of them.
Each part has a seed of its own, so that a part is the same whatever stands beside it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from storage.sequences import Part, write_manifest
from storage.store import Store, create_store
from storage.tables import write_part, writing

EXPONENT, TERMS, LENGTH = 1.07, 100_000, 100
BATCH = 50_000


def zipf_sequences(rng: np.random.Generator, n: int, terms: int = TERMS) -> tuple[np.ndarray, np.ndarray]:
    """Terms of n sequences, one behind the other, and their lengths."""
    shares = np.arange(1, terms + 1) ** -EXPONENT
    lengths = 1 + rng.poisson(LENGTH - 1, n)
    drawn = np.searchsorted(shares.cumsum() / shares.sum(), rng.random(lengths.sum()))
    return drawn.clip(max=terms - 1).astype(np.int32), lengths


def write_zipf_store(path: Path, n_sequences: int, n_parts: int) -> Store:
    """A store of `n_sequences` in equal parts, each a document of its own without text, and no index."""
    store, size = create_store(path), n_sequences // n_parts
    for number in range(n_parts):
        name, first, n_tokens = f"p{number:05d}", number * size, 0
        rng = np.random.default_rng([0, number])
        with writing(store, "sequences", name) as part:
            for start in range(first, first + size, BATCH):
                n = min(BATCH, first + size - start)
                tokens, lengths = zipf_sequences(rng, n)
                n_tokens += len(tokens)
                part.append_table(_sequences(name, start, tokens, lengths))
        ids = [f"d{k}" for k in range(first, first + size)]
        write_part(
            store, "documents", name,
            columns={"document_id": ids, "text": [""] * size, "source": [""] * size, "metadata": ["{}"] * size},
        )  # fmt: skip
        write_manifest(store, Part(name, name, name, "synthetic", "document", 512, size, 0, size, n_tokens, first))
    return store


def _sequences(part: str, first: int, tokens: np.ndarray, lengths: np.ndarray) -> pa.Table:
    n, offsets = len(lengths), np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
    ids = np.arange(first, first + n)
    columns = {
        "sequence_id": ids,
        "document_id": [f"d{k}" for k in ids.tolist()],
        "part": [part] * n,
        "start_char": np.zeros(n, np.int64),
        "end_char": np.zeros(n, np.int64),
        "token_ids": pa.ListArray.from_arrays(pa.array(offsets), pa.array(tokens)),
        "n_tokens": lengths.astype(np.int32),
    }
    return pa.table(columns)
