"""Embeddings of sequences in the model's own hidden states, and the sequences nearest to a query among them.

An embedding is the mean of one layer's hidden states over a sequence's tokens, at unit length; the nearest sequences
are those of the largest cosine. As candidates for influence they stand in FastIF (Guo et al. 2021, arXiv 2012.15781);
here the search is exact: every row is multiplied with every query.

Letters: q queries, n sequences of a block, b of a batch, t positions, d width of the hidden states.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from storage.checkpoints import (
    context_length,
    empty_model,
    load_model,
    load_tokenizer,
    model_fingerprint,
    tokenizer_fingerprint,
)
from storage.digests import code_revision, digest_of
from storage.embeddings import part_blocks, read_embeddings
from storage.errors import InputError, MismatchError
from storage.prompts import Prompt
from storage.sequences import Part, corpus_parts
from storage.staging import discard, staged_tensors_path
from storage.store import Store
from storage.tensors import read_tensors, write_tensors
from tasks.compute import ComputeParameters, dtype_of
from tasks.fanout import Workers, fan_out, run_where_the_model_is
from tasks.influence.batches import Batch, TokenSequence, batches
from tasks.influence.errors import InfluenceError
from tasks.influence.queries import encode_query
from tasks.retrieval.search import Hits, merge

if TYPE_CHECKING:
    from jaxtyping import Float

# Part of every id, because the code revision knows tasks/influence only: change the words with the formula.
FORMULA = "mean over tokens in float32, unit length"
# Of a score. The last bits of a matrix product depend on its shape: without them equal rows tie in every part.
DECIMALS = 12

Allowed = Callable[[Store, str], np.ndarray]  # the sequences of a part, by its name, that may be found; ascending


@dataclass(frozen=True)
class SearchJob:
    """All queries against one corpus part."""

    store: Store
    embeddings_id: str
    part: Part
    staged: str  # the key under which the queries' embeddings wait
    top_k: int
    allowed: Allowed | None


def layer_number(model: Path, layer: int) -> int:
    """`layer` counted from the embedding layer's output, 0; a negative one counts from the last layer's, -1."""
    n = empty_model(model).config.get_text_config().num_hidden_layers
    if not -n - 1 <= layer <= n:
        raise InputError(
            f"embedding layer {layer}",
            expected=f"0 to {n}, or -1 to -{n + 1} from the end: the model has {n} layers, and 0 is their input",
            found="a number outside",
            remedy="Give a layer that the model has.",
        )
    return layer % (n + 1)


def embedding_source(model: Path, layer: int, compute: ComputeParameters) -> dict[str, Any]:
    """Everything that decides an embedding besides the sequence."""
    return {
        "model": model_fingerprint(model),
        "tokenizer": tokenizer_fingerprint(model),
        "layer": layer_number(model, layer),
        "precision": str(dtype_of(compute)),
        "formula": FORMULA,
        "code": code_revision(),
    }


def embeddings_name(source: dict[str, Any]) -> str:
    """The id of embeddings made from `source`."""
    return f"emb-{digest_of(source)[:8]}"


@torch.no_grad()
def embed(
    network: PreTrainedModel, sequences: Sequence[TokenSequence], layer: int, compute: ComputeParameters
) -> Float[Tensor, "n d"]:
    """The embedding of each sequence, by ascending sequence id, from `layer` as `layer_number` counts it.

    Every token of a sequence after its first must be scored, as in a training sequence.
    """
    precision = dtype_of(compute)
    autocast = torch.autocast(network.device.type, precision, enabled=precision != torch.float32)
    ids, rows = [], []
    for batch in batches(sequences, compute.batch_size, network.device):
        with autocast:
            # Without the head, and of the hidden states the asked one only.
            outputs = network.base_model(**batch.model_inputs, use_cache=False, output_hidden_states=[layer])
        mean = mean_over_tokens(outputs.hidden_states[layer], batch)
        _require_finite(mean, batch, layer)
        rows.append(functional.normalize(mean, dim=1).cpu())
        ids.append(batch.sequence_ids.cpu())
    return torch.cat(rows)[torch.cat(ids).argsort()]


def mean_over_tokens(states: Float[Tensor, "b t d"], batch: Batch) -> Float[Tensor, "b d"]:
    """The mean state of each sequence in float32; every token after its first must be scored, as in training."""
    tokens = 1 + batch.scored.sum(1, keepdim=True)  # each is scored but the first
    padding = torch.arange(states.shape[1], device=states.device) >= tokens
    return states.float().masked_fill(padding[:, :, None], 0.0).sum(1) / tokens


def _require_finite(mean: Float[Tensor, "b d"], batch: Batch, layer: int) -> None:
    bad = ~torch.isfinite(mean).all(1)
    if bad.any():
        raise InfluenceError(
            f"layer {layer}: expected finite hidden states, found NaN or infinity for sequence "
            f"{batch.sequence_ids[bad][0]} ({int(bad.sum())} of {len(bad)} in its batch). Use --precision float32."
        )


def nearest(
    store: Store,
    model: Path,
    prompts: Sequence[Prompt],
    embeddings_id: str,
    layer: int,
    top_k: int,
    compute: ComputeParameters,
    workers: Workers,
    allowed: Allowed | None = None,
) -> list[Hits]:
    """Each prompt's `top_k` sequences of largest cosine, best first; ties go to the smaller sequence_id.

    `allowed` restricts the search; it runs on the workers, so it is a function that they can import.
    """
    source = embedding_source(model, layer, compute)
    if embeddings_name(source) != embeddings_id:
        raise MismatchError(
            f"embeddings in {store.root}",
            expected=f"{embeddings_name(source)}, those of model {model} at layer {layer} in {source['precision']}",
            found=embeddings_id,
            remedy="Embed the corpus with this model, layer and precision first.",
        )
    asked = PromptJob(model, tuple(prompts), source["layer"], compute)
    queries = torch.from_numpy(run_where_the_model_is(workers, embed_prompts, asked, "query embeddings"))
    staged = f"neighbours-{uuid.uuid4().hex[:12]}"
    write_tensors(store, staged_tensors_path(store, staged, "queries"), {"queries": queries})
    try:
        jobs = [SearchJob(store, embeddings_id, part, staged, top_k, allowed) for part in corpus_parts(store)]
        parts = fan_out(workers.lexical, search_part, jobs, "neighbours", workers.lexical_resources)
    finally:
        discard(store, staged)
    return [merge(hits, top_k) for hits in zip(*parts, strict=True)]


@dataclass(frozen=True)
class PromptJob:
    """The queries that are to be embedded."""

    model: Path
    prompts: tuple[Prompt, ...]
    layer: int
    compute: ComputeParameters


def embed_prompts(job: PromptJob) -> np.ndarray:
    """The embeddings of queries in the order of the prompts, [q, d] in float32."""
    network, tokenizer, context = load_model(job.model), load_tokenizer(job.model), context_length(job.model)
    encoded = [encode_query(tokenizer, p.prompt, p.completion, context, p.query_id) for p in job.prompts]
    # One query per pass, so that each gets the same numbers whatever the others are.
    rows = [embed(network, [TokenSequence(0, query.token_ids)], job.layer, job.compute) for query in encoded]
    return torch.cat(rows).cpu().numpy()


def search_part(job: SearchJob) -> list[Hits]:
    """The part's best sequences for each query; one block of rows is held at a time and read once for all of them."""
    queries = read_tensors(staged_tensors_path(job.store, job.staged, "queries"))["queries"].double()
    everything = np.arange(job.part.first_sequence_id, job.part.end_sequence_id)
    wanted = everything if job.allowed is None else job.allowed(job.store, job.part.name)
    found = [Best(job.top_k) for _ in queries]
    for block in part_blocks(job.part):
        first, end = np.searchsorted(wanted, [block.first_sequence_id, block.end_sequence_id])
        if first == end:
            continue
        ids = wanted[first:end].astype(np.int64)
        rows = read_embeddings(job.store, job.embeddings_id, block)
        cosines = queries @ rows[torch.from_numpy(ids - block.first_sequence_id)].double().T
        for best, scores in zip(found, cosines.numpy().round(DECIMALS), strict=True):
            best.add(Hits(ids, scores))
    return [best.hits() for best in found]


class Best:
    """The k best of hits that come block by block, with larger ids in later blocks."""

    def __init__(self, k: int) -> None:
        self._k, self._least = k, -np.inf
        self._kept = [Hits(np.empty(0, np.int64), np.empty(0, np.float64))]

    def add(self, later: Hits) -> None:
        """Take what beats the k-th best known so far: an equal score with a larger id comes too late."""
        above = later.scores > self._least
        if not above.any():
            return
        self._kept.append(Hits(later.sequence_ids[above], later.scores[above]))
        if sum(len(hits.scores) for hits in self._kept) >= 2 * self._k:  # sorted once per k hits, not once per block
            self._kept = [self.hits()]
            self._least = self._kept[0].scores[-1]

    def hits(self) -> Hits:
        """The k best, best first."""
        return merge(self._kept, self._k)
