"""Embeddings stage: every sequence of the corpus that has no embedding of this model and layer yet, block by block."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from storage.checkpoints import load_model
from storage.embeddings import Block, describe_embeddings, missing_blocks, write_embeddings
from storage.locks import locked
from storage.sequences import corpus_parts, read_tokens
from storage.store import Store
from tasks.compute import ComputeParameters
from tasks.fanout import Workers, fan_out
from tasks.influence.batches import TokenSequence
from tasks.neighbours import embed, embedding_source, embeddings_name
from tasks.stage import stage


@dataclass(frozen=True)
class EmbedJob:
    """One block of a part's sequences that has no embeddings."""

    store: Store
    model: Path
    embeddings_id: str
    layer: int
    compute: ComputeParameters
    block: Block


@stage("embeddings")
def embed_corpus(store: Store, model: Path, layer: int, compute: ComputeParameters, workers: Workers) -> str:
    """Embed what is not embedded yet, in one forward pass; returns the embeddings' id.

    `layer` is 0 for the embedding layer's output, n for that of the last of n layers; -1 is the last one too.
    """
    source = embedding_source(model, layer, compute)
    embeddings_id = embeddings_name(source)
    parts = corpus_parts(store)
    if not missing_blocks(store, embeddings_id, parts):  # no worker is asked for
        return embeddings_id
    with locked(store, embeddings_id):
        describe_embeddings(store, embeddings_id, source)
        missing = missing_blocks(store, embeddings_id, parts)
        jobs = [EmbedJob(store, model, embeddings_id, source["layer"], compute, block) for block in missing]
        fan_out(workers.model, embed_block, jobs, "embeddings", workers.model_resources)
    return embeddings_id


def embed_block(job: EmbedJob) -> None:
    """Write the embeddings of one block."""
    ids = np.arange(job.block.first_sequence_id, job.block.end_sequence_id)
    tokens = read_tokens(job.store, ids)
    sequences = [TokenSequence(i, tokens[i]) for i in ids.tolist()]
    rows = embed(load_model(job.model), sequences, job.layer, job.compute)
    write_embeddings(job.store, job.embeddings_id, job.block, rows)
