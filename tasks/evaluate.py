"""Evaluation stage: how often a run's top sequences are true sources, per method, with BM25 beside them."""

from __future__ import annotations

from dataclasses import dataclass

from storage.database import rows, session
from storage.store import Store
from tasks.evaluation.ranking import Estimate, bootstrap_mean, precision_at, reciprocal_rank
from tasks.figures import add_figures
from tasks.stage import stage

K = 10


@dataclass(frozen=True)
class MethodScore:
    """Retrieval of true sources by one method: means over the queries that have any."""

    method: str
    precision: Estimate
    mrr: Estimate


def runs_to_evaluate(store: Store, most: int) -> list[str]:
    """The latest complete runs with a query whose truth the corpus holds and without a row in `evaluations`."""
    with session(store) as connection:
        return [row["run_id"] for row in rows(connection, "evaluation/runs_with_truth", most=most)]


@stage("evaluation")
def evaluate_retrieval(store: Store, run_id: str) -> list[MethodScore]:
    """Compare every ranking of a run with the truth in the queries' metadata, and fill `evaluations`.

    A sequence is a true source if its document's metadata holds everything that the query's says but its `group`.
    """
    with session(store) as connection:
        found = rows(connection, "evaluation/true_ranks", run=run_id)
    by_method: dict[str, list[list[int]]] = {}
    for row in found:
        by_method.setdefault(row["method"], []).append(row["true_ranks"] or [])
    scores = [
        MethodScore(
            method,
            bootstrap_mean([precision_at(K, ranks) for ranks in lists]),
            bootstrap_mean([reciprocal_rank(ranks) for ranks in lists]),
        )
        for method, lists in by_method.items()
    ]
    metrics = [(s.method, name, e) for s in scores for name, e in ((f"precision@{K}", s.precision), ("mrr", s.mrr))]
    if metrics:
        add_figures(store, run_id, metrics)
    return scores
