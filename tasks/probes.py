"""Probes stage: what is scored because a study names it, whatever a filter would have kept.

A probe is a text that is no part of the corpus, scored as if it were one more training sequence, or a sequence of the
corpus as it stands in the store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from storage.checkpoints import context_length, load_model, load_tokenizer, model_fingerprint, tokenizer_fingerprint
from storage.digests import code_revision, digest_of
from storage.errors import InputError
from storage.prompts import Prompt
from storage.sequences import read_tokens
from storage.store import Store
from storage.tables import has_part, writing
from tasks.compute import ComputeParameters
from tasks.fanout import Workers, run_where_the_model_is
from tasks.influence.batches import TokenSequence, batches
from tasks.influence.modules import TrackedModule, select_modules
from tasks.influence.objectives import true_token_gradient
from tasks.influence.queries import encode_query, log_probability, preconditioned_gradients
from tasks.influence.scores import token_scores
from tasks.influence.sweep import sweep
from tasks.metrics import Damping, GradientMethod, fit_of, load_metric
from tasks.progress import progress
from tasks.stage import stage

RELATION, SEQUENCES, QUERIES = "probe_influences", "probe_sequences", "probe_queries"


@dataclass(frozen=True)
class Probe:
    """What might have been trained on, or was, and what it is an example of: a text, or else a sequence's id."""

    group: str
    text: str | None = None
    sequence_id: int | None = None


@dataclass(frozen=True)
class ProbeSet:
    """Queries, each of which is scored against every probe."""

    name: str
    prompts: tuple[Prompt, ...]
    probes: tuple[Probe, ...]


@dataclass(frozen=True)
class Probing:
    """What one model is asked, under one metric."""

    store: Store
    model: Path
    modules: str
    fit_id: str | None
    method: GradientMethod
    damping: Damping
    compute: ComputeParameters
    sets: tuple[ProbeSet, ...]

    @property
    def probing_id(self) -> str:
        """Named by everything that decides its numbers."""
        asked = [
            [
                s.name,
                [[p.query_id, p.prompt, p.completion] for p in s.prompts],
                [[p.group, p.text if p.sequence_id is None else p.sequence_id] for p in s.probes],
            ]
            for s in self.sets
        ]
        made_from = [
            model_fingerprint(self.model), tokenizer_fingerprint(self.model), self.modules, self.fit_id or "",
            self.method, self.damping.model_dump(), asked, code_revision(),
        ]  # fmt: skip
        return f"probing-{digest_of(made_from)[:10]}"


@stage("probes")
def score_probes(probing: Probing, workers: Workers) -> str:
    """Fill `probe_influences`, and what says more of its queries and probes, unless it is there; returns the id."""
    if not has_part(probing.store, RELATION, probing.probing_id):
        run_where_the_model_is(workers, write_probe_influences, probing, "probes")
    return probing.probing_id


def write_probe_influences(probing: Probing) -> None:
    """One job: the model is loaded once, and each set's query gradients are held in turn, in full."""
    network, tokenizer = load_model(probing.model), load_tokenizer(probing.model)
    modules = select_modules(network, probing.modules)
    fit = fit_of(probing.store, probing.fit_id, probing.model)
    context = context_length(probing.model)
    metric_of = partial(_metric, probing, fit, network.device)
    tokens = read_tokens(probing.store, _named(probing.sets))
    with (
        writing(probing.store, RELATION, probing.probing_id) as part,  # appears last: it says that the others are there
        writing(probing.store, SEQUENCES, probing.probing_id) as named,
        writing(probing.store, QUERIES, probing.probing_id) as queries,
        progress("probes", len(probing.sets)) as advance,
    ):
        for asked in probing.sets:
            encoded = [encode_query(tokenizer, p.prompt, p.completion, context, p.query_id) for p in asked.prompts]
            sequences = [
                TokenSequence(k, _tokens(tokenizer, probe, tokens, context, f"probe {k} of {asked.name}"))
                for k, probe in enumerate(asked.probes)
            ]
            gradients = preconditioned_gradients(network, modules, encoded, metric_of)
            layers, scores = _scores(network, modules, gradients, sequences, probing.compute.batch_size)
            part.append(_rows(probing, asked, sequences, layers, scores))
            named.append(_sequence_rows(probing, asked))
            queries.append(_query_rows(probing, asked, encoded, [log_probability(network, one) for one in encoded]))
            advance(1)


def _named(sets: Sequence[ProbeSet]) -> np.ndarray:
    return np.array([p.sequence_id for s in sets for p in s.probes if p.sequence_id is not None], np.int64)


def _tokens(tokenizer, probe: Probe, known: dict[int, list[int]], context: int, name: str) -> Sequence[int]:
    """A sequence as the store has it; a text with the special tokens that its tokenizer adds to a document."""
    if probe.sequence_id is not None:
        tokens, least, shown = known[probe.sequence_id], 1, f"sequence {probe.sequence_id}"
        remedy = "Leave the model out, or cut the corpus shorter (--sequence-length)."
    else:
        tokens, least, shown = tokenizer(probe.text, verbose=False)["input_ids"], 2, repr((probe.text or "")[:60])
        remedy = "Lengthen the text, or shorten it."
    if not least <= len(tokens) <= context:
        raise InputError(
            f"{name}, {shown}",
            expected=f"{least} to {context:,} tokens, so that one is predicted and the model's context holds all",
            found=f"{len(tokens):,}",
            remedy=remedy,
        )
    return tokens


def _scores(
    network, modules: list[TrackedModule], gradients: dict[str, torch.Tensor], sequences: list[TokenSequence], size: int
) -> tuple[list[int], np.ndarray]:
    """The layers, and [query, probe, layer]; float32 whatever the policy, for probes are few."""
    layers = sorted({module.layer for module in modules})
    n_queries = len(next(iter(gradients.values())))
    found = np.zeros((n_queries, len(sequences), len(layers)))
    for batch, calls in sweep(network, modules, batches(sequences, size, network.device), true_token_gradient):
        for row, number in enumerate(batch.sequence_ids.tolist()):
            for module in modules:
                shares = token_scores(calls[module.name], module, row, gradients[module.name])
                found[:, number, layers.index(module.layer)] += shares.double().sum(-1).cpu().numpy()
    return layers, found


def _rows(
    probing: Probing, asked: ProbeSet, sequences: Sequence[TokenSequence], layers: list[int], scores: np.ndarray
) -> dict[str, list]:
    def every() -> Iterator[tuple[int, int, int]]:
        yield from np.ndindex(scores.shape)

    return {
        "probing_id": [probing.probing_id for _ in every()],
        "model": [str(probing.model) for _ in every()],
        "probe_set": [asked.name for _ in every()],
        "query_id": [asked.prompts[q].query_id for q, _, _ in every()],
        "probe": [p for _, p, _ in every()],
        "probe_group": [asked.probes[p].group for _, p, _ in every()],
        "text": [asked.probes[p].text for _, p, _ in every()],
        "n_tokens": [len(sequences[p].token_ids) for _, p, _ in every()],
        "layer": [layers[n] for _, _, n in every()],
        "influence": scores.ravel().tolist(),
    }


def _sequence_rows(probing: Probing, asked: ProbeSet) -> dict[str, list]:
    found = [(k, probe.sequence_id) for k, probe in enumerate(asked.probes) if probe.sequence_id is not None]
    return {
        "probing_id": [probing.probing_id] * len(found),
        "probe_set": [asked.name] * len(found),
        "probe": [k for k, _ in found],
        "sequence_id": [sequence_id for _, sequence_id in found],
    }


def _query_rows(
    probing: Probing, asked: ProbeSet, encoded: Sequence[TokenSequence], log_probabilities: list[float]
) -> dict[str, list]:
    n = len(asked.prompts)
    return {
        "probing_id": [probing.probing_id] * n,
        "probe_set": [asked.name] * n,
        "query_id": [prompt.query_id for prompt in asked.prompts],
        "prompt": [prompt.prompt for prompt in asked.prompts],
        "completion": [prompt.completion for prompt in asked.prompts],
        "metadata": [prompt.metadata for prompt in asked.prompts],
        "n_completion_tokens": [len(query.token_ids) - query.first_scored for query in encoded],
        "log_probability": log_probabilities,
    }


def _metric(probing: Probing, fit, device: torch.device, module: TrackedModule):
    return load_metric(probing.store, fit, module, probing.method, probing.damping, device)
