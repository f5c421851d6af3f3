"""Dataset scores stage: how well each method foretells what leaving a whole dataset out does, and fill `evaluations`.

pearson       over datasets, of the predicted worth with the rise of the queries' loss after retraining without them
spearman      the same of ranks
finds_first   share of groups of queries in which the method's first dataset is the one whose loss hurts most
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.database import rows, session
from storage.sequences import corpus_parts
from tasks.evaluation.mixtures import dataset_scores
from tasks.evaluation.ranking import Estimate
from tasks.figures import write_figures
from tasks.mixtures import FILE, Mixture, Unlearning, retraining_of
from tasks.stage import stage
from tasks.subsets import Study

UNTRAC, INVERSE, SIZE = "untrac", "untrac-inverse", "size"


@dataclass(frozen=True)
class SeedRun:
    """One trained model: of which seed, what it unlearned, and the run that traced it."""

    seed: int
    untrac: Unlearning
    inverse: Unlearning
    run_id: str


@dataclass(frozen=True, eq=False)
class Findings:
    """What a study of datasets found; arrays are [seed, dataset, group], worth in nats per token of the queries."""

    study: Study
    mixture: Mixture
    runs: tuple[SeedRun, ...]
    measured: np.ndarray
    predicted: dict[str, np.ndarray]
    figures: dict[str, dict[str, Estimate]]
    seconds: dict[str, float]  # of all retrainings of a seed, of all unlearnings of its datasets, and of its queries
    command: str = ""

    def by_score(self) -> list[str]:
        """The methods by falling Pearson."""
        return sorted(self.figures, key=lambda name: -self.figures[name]["pearson"].value)


@dataclass(frozen=True)
class _Seed:
    """The worth of datasets [d, g] as it was measured and as each method predicts it, and what that took."""

    measured: np.ndarray
    predicted: dict[str, np.ndarray]
    seconds: dict[str, float]


@stage("dataset scores")
def score_datasets(study: Study, mixture: Mixture, runs: Sequence[SeedRun], command: str = "") -> Findings:
    """Compare what retraining without each dataset did with what methods say of it; fills `evaluations`."""
    seeds = [_seed(study, mixture, run) for run in runs]
    measured = np.stack([seed.measured for seed in seeds])
    predicted = {name: np.stack([seed.predicted[name] for seed in seeds]) for name in seeds[0].predicted}
    figures = {name: dataset_scores(values, measured) for name, values in predicted.items()}
    write_figures(
        study.store,
        study.study_id,
        [(method, metric, e) for method, found in figures.items() for metric, e in found.items()],
    )
    seconds = {name: float(np.mean([seed.seconds[name] for seed in seeds])) for name in seeds[0].seconds}
    return Findings(study, mixture, tuple(runs), measured, predicted, figures, seconds, command)


def _seed(study: Study, mixture: Mixture, run: SeedRun) -> _Seed:
    dataset_of = {retraining_of(name): name for name in mixture.datasets}
    with session(study.store) as connection:
        found = rows(
            connection, "validation/without_datasets",
            study=study.study_id, seed=run.seed, retrainings=list(dataset_of),
        )  # fmt: skip
        unlearned = rows(connection, "validation/unlearned", study=run.untrac.study_id)
        inverse = rows(connection, "validation/unlearned", study=run.inverse.study_id)
        summed = rows(connection, "validation/dataset_influences", run=run.run_id, by=mixture.by)
    before = {row["name"]: row for row in unlearned}
    tokens = {name: row["n_tokens"] for name, row in before.items()}

    def per_token(rises: Iterable[tuple[str, str, float]]) -> np.ndarray:
        """From (dataset, query, nats) to nats per token of the group [d, g]."""
        sums = {(dataset, query): value for dataset, query, value in rises}
        return np.array(
            [
                [sum(sums[name, q] for q in group) / sum(tokens[q] for q in group) for group in mixture.groups.values()]
                for name in mixture.datasets
            ]
        )

    measured = per_token(
        (dataset_of[r["retraining"]], r["query_id"], r["loss"] - before[r["query_id"]]["loss_before"]) for r in found
    )
    predicted = {
        UNTRAC: per_token((r["unlearned"], r["name"], r["loss"] - r["loss_before"]) for r in unlearned),
        INVERSE: _inverse(mixture, inverse),
    }
    files = _files(study, mixture)
    for method in dict.fromkeys(row["method"] for row in summed):
        predicted[method] = per_token(
            (files[r["dataset"]] if files else r["dataset"], r["query_id"], r["influence"])
            for r in summed
            if r["method"] == method
        )
    sizes = np.array([[float(len(ids))] for ids in mixture.datasets.values()])
    predicted[SIZE] = np.broadcast_to(sizes, measured.shape)
    seconds = {
        "retraining": _seconds(found, "retraining"),
        UNTRAC: _seconds(unlearned, "unlearned"),
        INVERSE: _seconds(inverse, "unlearned"),
    }
    return _Seed(measured, predicted, seconds)


def _inverse(mixture: Mixture, unlearned: list[dict[str, Any]]) -> np.ndarray:
    """How much costlier a token of each dataset became when a group of queries was unlearned [d, g]."""
    rises = {(r["name"], r["unlearned"]): (r["loss"] - r["loss_before"]) / r["n_tokens"] for r in unlearned}
    return np.array([[rises[name, group] for group in mixture.groups] for name in mixture.datasets])


def _files(study: Study, mixture: Mixture) -> dict[str, str]:
    """By the part that a corpus file became, the dataset that the file is; nothing where datasets are no files."""
    if mixture.by != FILE:
        return {}
    first = {ids[0]: name for name, ids in mixture.datasets.items()}
    return {part.name: first[part.first_sequence_id] for part in corpus_parts(study.store)}


def _seconds(found: list[dict[str, Any]], unit: str) -> float:
    """What all units took, each once, whatever rows it has."""
    return sum({row[unit]: row["seconds"] for row in found}.values())
