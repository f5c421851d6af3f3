"""Retraining scores stage: how well a run's methods predict what its retrained models say, and fill `evaluations`.

lds                  the linear datamodelling score, of all queries; lds_over_<method>: its lead over that method's
query_loss_rise      nats that a query costs more once the model is retrained without a method's first sequences for it
query_loss_rise_per_token
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from storage.database import rows, session
from storage.errors import StoreError
from storage.store import Store
from tasks.evaluation.datamodels import datamodelling_scores
from tasks.evaluation.ranking import Estimate, bootstrap_means
from tasks.figures import add_figures
from tasks.stage import stage
from tasks.subsets import Retraining, Study

BASELINE = "ekfac"
RISES = {"rise": "query_loss_rise", "rise_per_token": "query_loss_rise_per_token"}

Figures = dict[str, dict[str, Estimate]]  # by method and metric


@dataclass(frozen=True)
class Spread:
    """How far a query's loss varies, in nats: median over queries of standard deviations; None of one retraining."""

    over_subsets: float | None
    over_seeds: float | None
    difference: float  # largest, of the retrained full model to the traced one: 0 where trainings are reproducible


@dataclass(frozen=True)
class Remainder:
    """How far a solver left the queries' systems unsolved after its last iteration, relative to the gradients."""

    iterations: int
    median: float
    largest: float


@dataclass(frozen=True, eq=False)
class RetrainingStudy:
    """What a study found."""

    store: str
    study_id: str
    run_id: str
    model: str
    n_sequences: int
    n_left_out: int
    n_first: int  # sequences of each method that a query's model is retrained without
    n_queries: int
    n_subsets: int
    n_retrainings: int
    seconds: float  # of one retraining, median
    order: str
    spread: Spread
    figures: Figures
    sweep: Mapping[float, dict[str, Estimate]] = field(default_factory=dict)  # LDS by relative damping and method
    remainders: Mapping[str, Remainder] = field(default_factory=dict)  # by solver
    command: str = ""

    def by_score(self) -> list[str]:
        """The methods by falling LDS."""
        return sorted(self.figures, key=lambda name: -self.figures[name]["lds"].value)


def solver_remainders(study: Study, run_id: str) -> dict[str, Remainder]:
    """Of every solver of a run, where it ended."""
    with session(study.store) as connection:
        found = rows(connection, "validation/residuals", run=run_id)
    return {row["method"]: Remainder(row["iterations"], row["median"], row["largest"]) for row in found}


@stage("datamodelling scores")
def score_subsets(study: Study, run_id: str, planned: Sequence[Retraining]) -> Figures:
    """LDS of every method of a run over the random subsets; fills `evaluations`."""
    names = [r.name for r in planned if r.kind == "subset"]
    with session(study.store) as connection:
        found = rows(connection, "validation/predictions", study=study.study_id, run=run_id, retrainings=names)
    methods = list(dict.fromkeys(row["method"] for row in found))
    places = {name: k for k, name in enumerate(names)}
    asked = {prompt.query_id: k for k, prompt in enumerate(study.prompts)}
    predicted = np.zeros((len(methods), len(asked), len(names)))
    measured = np.full((len(asked), len(names)), np.nan)
    of = {name: k for k, name in enumerate(methods)}
    for row in found:
        q, s = asked[row["query_id"]], places[row["retraining"]]
        predicted[of[row["method"]], q, s], measured[q, s] = row["predicted"], row["measured"]
    unmeasured = [name for name, k in places.items() if np.isnan(measured[:, k]).any()]
    if unmeasured:
        raise StoreError(
            f"study {study.study_id}",
            expected="a loss of every query, and influences of what was left out, for every retraining",
            found=f"none for {len(unmeasured):,} of them, {unmeasured[0]} first",
            remedy="headwater store verify --store PATH names what is damaged; a new store begins anew.",
        )
    baseline = BASELINE if BASELINE in of else methods[0]
    scores = datamodelling_scores(predicted, measured, of[baseline])
    figures: Figures = {name: {"lds": mean} for name, mean in zip(methods, scores.means, strict=True)}
    for name, lead in zip(methods, scores.leads, strict=True):
        if name != baseline:
            figures[name][f"lds_over_{baseline}"] = lead
    keep_figures(study.store, run_id, figures)
    return figures


@stage("first sequences")
def plan_removals(study: Study, run_id: str, asked: Sequence[str], share: float) -> dict[tuple[str, str], Retraining]:
    """By (method, query), the model on everything but the sequences that the method ranks first for the query."""
    with session(study.store) as connection:
        found = rows(connection, "validation/top_sequences", run=run_id, queries=list(asked), share=share)
    return {
        (row["method"], row["query_id"]): Retraining(
            f"{run_id} {row['method']} {share:g} {row['query_id']}",
            "top",
            study.training.seed,
            tuple(row["sequence_ids"]),
        )
        for row in found
    }


@stage("query-loss rises")
def score_removals(study: Study, run_id: str, removals: Mapping[tuple[str, str], Retraining]) -> Figures:
    """How much costlier queries became without each method's first sequences; fills `evaluations`."""
    name_of = {retraining.name: pair for pair, retraining in removals.items()}
    with session(study.store) as connection:
        found = rows(
            connection,
            "validation/rises",
            study=study.study_id,
            run=run_id,
            seed=study.training.seed,
            retrainings=list(name_of),
            queries=[query for _, query in name_of.values()],
        )
    by_method: dict[str, list[dict]] = {}
    for row in found:
        by_method.setdefault(name_of[row["retraining"]][0], []).append(row)
    figures: Figures = {}
    for method, of in by_method.items():
        values = np.array([[row[column] for column in RISES] for row in of])
        estimates = bootstrap_means(values, [row["query_id"] for row in of])
        figures[method] = dict(zip(RISES.values(), estimates, strict=True))
    keep_figures(study.store, run_id, figures)
    return figures


@stage("noise")
def measure_spread(study: Study, run_id: str, planned: Sequence[Retraining]) -> tuple[Spread, int, float]:
    """How far losses vary by subset and by order; how many retrainings there are, and the seconds of one."""
    names = [r.name for r in planned if r.kind == "subset"]
    with session(study.store) as connection:
        (noise,) = rows(
            connection, "validation/noise",
            study=study.study_id, run=run_id, subsets=names, seed=study.training.seed,
        )  # fmt: skip
        (done,) = rows(connection, "validation/seconds", study=study.study_id)
    return Spread(**noise), done["n"], done["seconds"]


def keep_figures(store: Store, run_id: str, figures: Figures) -> None:
    """Put figures into `evaluations`, beside what else is said of the run, in place of those that they replace."""
    add_figures(
        store, run_id, [(method, metric, e) for method, found in figures.items() for metric, e in found.items()]
    )
