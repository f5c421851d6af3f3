"""Inspection stage: how soon documents with swapped answers are found by self-influence, by loss, and by chance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from storage.checkpoints import load_model
from storage.database import query, session
from storage.sequences import read_tokens
from storage.store import Store
from tasks.evaluation.correlation import SEEDS, over_seeds
from tasks.evaluation.inspection import found_curve, inspection_places
from tasks.evaluation.ranking import Estimate, bootstrap_mean, tie_breakers
from tasks.figures import write_figures
from tasks.influence.batches import TokenSequence
from tasks.losses import sequence_losses
from tasks.stage import stage

FIRST = 0.2  # of the documents: the share after which one asks how much is found
METRIC = f"found@{FIRST:.0%}"
METHODS = {
    "ekfac": "self-influence, EK-FAC",
    "identity": "self-influence, gradient dot",
    "loss": "loss",
    "loss per token": "loss per token",
    "ekfac of the answer": "answer alone: self-influence, EK-FAC",
    "identity of the answer": "answer alone: self-influence, gradient dot",
    "loss of the answer": "answer alone: loss",
    "confidence": "answer alone: its mean probability over the training’s checkpoints",
    "tracin of the answer": "answer alone: self-influence, TracIn over the checkpoints",
    "contradiction": "answer alone: contradicted by the others, EK-FAC",
    "random": "random",
}


@dataclass(frozen=True, eq=False)
class Inspection:
    """Of one corpus: by method, the share of documents looked at until each wrong one is found."""

    store: str
    factors_id: str
    n_documents: int
    places: dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class InspectionStudy:
    """Several corpora with swapped answers, a model of each."""

    name: str
    inspections: tuple[Inspection, ...]
    command: str = ""

    def estimates(self) -> dict[str, Estimate]:
        """By method, the share of the wrong documents that the first documents of an inspection hold.

        The mean over corpora with its t-interval: the documents of one corpus stand in one ranking, of one model.
        Of fewer than three corpora the interval is a bootstrap over their documents, which leaves training out.
        """
        found = {method: [i.places[method] <= FIRST + 1e-9 for i in self.inspections] for method in METHODS}
        if len(self.inspections) < SEEDS:
            return {method: bootstrap_mean(np.concatenate(of)) for method, of in found.items()}
        return {method: over_seeds([float(one.mean()) for one in of], 0.0, 1.0) for method, of in found.items()}

    def curve(self, method: str, inspected: np.ndarray) -> np.ndarray:
        """The share found against the share inspected, mean over the corpora."""
        return np.mean([found_curve(found.places[method], inspected) for found in self.inspections], axis=0)


@stage("inspection")
def inspect_corpus(store: Store, model: Path, factors_id: str) -> Inspection:
    """Rank the documents of a store by each method; fills `evaluations` under the factors' id."""
    with session(store) as connection:
        found = query(connection, "validation/self_influences", factors=factors_id)
    columns = {name: found[name].to_numpy(zero_copy_only=False) for name in found.column_names}
    ids = columns["sequence_id"]
    losses, lengths = _losses(store, model, ids)
    of_sequences = {
        "ekfac": columns["self_influence"],
        "identity": columns["gradient_norm"] ** 2,
        "loss": losses,
        "loss per token": losses / np.maximum(lengths, 1),
        "ekfac of the answer": columns["answer_self_influence"],
        "identity of the answer": columns["answer_gradient_norm"] ** 2,
        "loss of the answer": columns["answer_loss"],
        "confidence": -columns["confidence"],
        "tracin of the answer": columns["answer_tracin"],
        "contradiction": columns["contradiction"],
    }
    documents, place = np.unique(columns["document_id"], return_inverse=True)
    wrong = np.zeros(len(documents), np.bool_)
    np.logical_or.at(wrong, place, columns["swapped"].astype(np.bool_))
    names = [str(name) for name in documents]
    places = {}
    for method, scores in of_sequences.items():
        worst = np.full(len(documents), -np.inf)
        np.maximum.at(worst, place, scores)
        places[method] = inspection_places(worst, wrong, names)
    places["random"] = inspection_places(tie_breakers(names).astype(np.float64), wrong, names)
    result = Inspection(str(store.root), factors_id, len(documents), places)
    _keep(store, result)
    return result


def _losses(store: Store, model: Path, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """−log p of each sequence in nats, and how many of its tokens are predicted."""
    tokens = read_tokens(store, ids)
    sequences = [TokenSequence(i, tokens[i]) for i in ids.tolist()]
    lengths = np.array([len(sequence.token_ids) - 1 for sequence in sequences])
    return sequence_losses(load_model(model), sequences), lengths


def _keep(store: Store, found: Inspection) -> None:
    figures = [(method, METRIC, bootstrap_mean(places <= FIRST + 1e-9)) for method, places in found.places.items()]
    write_figures(store, found.factors_id, figures)
