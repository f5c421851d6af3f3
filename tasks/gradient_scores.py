"""Candidates against the queries of all gradient methods: what one pass of the model adds up, and its rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedModel

from storage.database import part_view, query, session
from storage.staging import has_staged, staged_tensors_path, staged_writer
from storage.tensors import read_tensors, tensor_bytes, tensor_names
from tasks.influence.batches import Batch
from tasks.influence.compression import Compressed, restore
from tasks.influence.modules import TrackedModule
from tasks.influence.scores import pairwise_scores
from tasks.influence.sweep import Calls
from tasks.scoring import Scoring
from tasks.selves import load_metrics, metric_sizes, squared_norms, unknown_sequences, write_self_influences

SIZE = 512  # candidate sequences of a block


@dataclass(frozen=True)
class Block:
    """Some candidate sequences of a run: the unit of resumption."""

    number: int
    sequence_ids: tuple[int, ...]


def candidate_blocks(scoring: Scoring) -> list[Block]:
    """All sequences that are a candidate of any query; none where no method compares gradients."""
    if not scoring.methods:
        return []
    with session(scoring.store) as connection:
        part_view(connection, scoring.store, "run_candidates", "candidates", scoring.run_id)
        ids = query(connection, "scores/candidate_sequences")["sequence_id"].to_numpy()
    found = enumerate(np.array_split(ids, range(SIZE, len(ids), SIZE)))
    return [Block(k, tuple(some.tolist())) for k, some in found if len(some)]


def unknown_selves(scoring: Scoring, block: Block) -> np.ndarray:
    """The block's sequences whose self-influence the run ranks by and the store does not have."""
    # Only the run's own method ranks by self-influence, and one without gradients has none.
    has_selves = scoring.method in scoring.methods
    return unknown_sequences(scoring.curvature, block.sequence_ids) if has_selves else np.array([], np.int64)


def is_scored(scoring: Scoring, block: Block) -> bool:
    """Whether the block needs no pass: self-influences may have been deleted since its scores were staged."""
    return has_staged(scoring.store, scoring.run_id, "scored", str(block.number)) and not len(
        unknown_selves(scoring, block)
    )


def held_bytes(scoring: Scoring, modules: list[TrackedModule], with_selves: bool) -> list[int]:
    """What each module's query gradients take, under all methods, and its metric where self-influences are asked."""
    sizes = tensor_bytes(staged_tensors_path(scoring.store, scoring.run_id, "query_gradients"))
    forms = [
        sum(size for name, size in sizes.items() if name.split(".")[1] == str(k)) for k in range(len(modules))
    ]  # fmt: skip
    # A pass over sequences whose self-influence is known needs no factors.
    factors = metric_sizes(scoring.curvature, modules) if with_selves else [0] * len(modules)
    return [a + b for a, b in zip(forms, factors, strict=True)]


@dataclass(frozen=True)
class Sums:
    """What a pass found, sequence by sequence in its own order."""

    sequence_ids: np.ndarray
    scores: np.ndarray  # [module, method × query, sequence]
    selves: np.ndarray  # self-influence and squared gradient length, zero where they were not asked: [2, sequence]


class GradientPass:
    """One pass of the model: every sequence it meets against all queries of all gradient methods."""

    def __init__(
        self,
        scoring: Scoring,
        network: PreTrainedModel,
        modules: list[TrackedModule],
        numbers: list[int],
        with_selves: bool,
    ) -> None:
        """Read what is compared: `modules` are those that the run knows by `numbers`."""
        self.modules = modules
        self._queries = _compressed_queries(scoring, numbers, network.device)
        self._metrics = load_metrics(scoring.curvature, modules, network.device) if with_selves else {}
        self._order: list[int] = []
        self._scores: list[torch.Tensor] = []
        self._selves: list[torch.Tensor] = []

    def add(self, batch: Batch, calls: Calls) -> None:
        """Compare one batch."""
        self._order.extend(batch.sequence_ids.tolist())
        uses = [(calls[module.name], module) for module in self.modules]
        of_modules = [
            torch.cat([pairwise_scores(c, m, form) for form in forms])
            for (c, m), forms in zip(uses, self._queries, strict=True)
        ]
        self._scores.append(torch.stack(of_modules).cpu())
        if self._metrics:
            self._selves.append(squared_norms(self._metrics, calls, self.modules))

    def sums(self) -> Sums:
        """What was found so far."""
        n = len(self._order)
        selves = torch.cat(self._selves, dim=1).numpy() if self._selves else np.zeros((2, n))
        return Sums(np.array(self._order), torch.cat(self._scores, dim=2).numpy(), selves)


def merge(groups: list[Sums]) -> Sums:
    """Passes over the same sequences, each with some of the modules, as one with all of them."""
    return Sums(
        groups[0].sequence_ids,
        np.concatenate([group.scores for group in groups]),
        np.sum([group.selves for group in groups], axis=0),
    )


def write_block(scoring: Scoring, block: Block, found: Sums) -> None:
    """Stage the block's (query, sequence) pairs that are candidates, and add self-influences that are unknown."""
    unknown = unknown_selves(scoring, block)
    if len(unknown):
        new = np.isin(found.sequence_ids, unknown)
        name = f"{scoring.run_id}-{block.number}"
        write_self_influences(scoring.curvature, name, found.sequence_ids[new], found.selves[:, new])
    if has_staged(scoring.store, scoring.run_id, "scored", str(block.number)):
        return
    with session(scoring.store) as connection:
        part_view(connection, scoring.store, "run_candidates", "candidates", scoring.run_id)
        first, last = min(block.sequence_ids), max(block.sequence_ids)
        wanted = query(connection, "scores/candidate_pairs", first=first, last=last)
    rows_of = {prompt.query_id: q for q, prompt in enumerate(scoring.prompts)}
    names = pa.array([prompt.query_id for prompt in scoring.prompts])
    q = np.array([rows_of[name] for name in wanted["query_id"].to_pylist()])
    order = np.argsort(found.sequence_ids)
    ids = wanted["sequence_id"].to_numpy()
    column = order[np.searchsorted(found.sequence_ids[order], ids)]
    n_modules, n = found.scores.shape[0], len(ids)
    with staged_writer(scoring.store, scoring.run_id, "scored", str(block.number)) as part:
        for m, method in enumerate(scoring.methods):
            kept = found.scores[:, m * len(scoring.prompts) + q, column]
            part.append_table(
                pa.table(
                    {
                        "query_id": names.take(pa.array(np.tile(q, n_modules))),
                        "method": pa.repeat(method, n_modules * n),
                        "sequence_id": np.tile(ids, n_modules),
                        "module": np.repeat(np.arange(n_modules, dtype=np.int16), n),
                        "influence": kept.ravel(),
                    }
                )
            )


def _compressed_queries(scoring: Scoring, numbers: list[int], device: torch.device) -> list[list[Compressed]]:
    """Per module, the queries under each method."""
    path = staged_tensors_path(scoring.store, scoring.run_id, "query_gradients")
    names = tensor_names(path)

    def form(method: str, k: int) -> Compressed:
        mine = [name for name in names if name.startswith(f"{method}.{k}.")]
        return restore({name.split(".")[2]: tensor.to(device) for name, tensor in read_tensors(path, mine).items()})

    return [[form(method, k) for method in scoring.methods] for k in numbers]
