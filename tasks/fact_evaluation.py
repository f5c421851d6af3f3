"""Fact evaluation stage: how well a run's methods rank the documents that state a fact, by what training did to it.

`evaluations` gets every metric of every method over all queries, and over those of each slice as in `mrr[learned]`.
The forms of TracIn and of hidden states are methods of their own there, as `tracin[block 2, dot]`. `tracin[chosen]`
is each half of the queries under the group of parameters that ranked best on the other half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import duckdb
import numpy as np
import pyarrow as pa

from storage.database import query, rows, session
from storage.fact_sets import FactSet, proponents
from storage.store import Store
from tasks.evaluation.comparison import ALL, SLICES, choose_on_other_half, halves, seed_values, summarise
from tasks.evaluation.forms import MEAN, Form
from tasks.fact_scores import CHOSEN, FIRST, TAUGHT, FactStudy, Metrics, RunScores, every_metric
from tasks.figures import write_figures
from tasks.rankings import Rankings
from tasks.stage import stage

FORM_METRICS = ("mrr", "recall@10")


@stage("first sequences")
def first_pairs(store: Store, run_id: str, fact_set: FactSet, asked: Sequence[str]) -> list[tuple[str, int]]:
    """(query_id, sequence_id) of any method's first sequences, and of the truth, for the queries asked."""
    with session(store) as connection:
        found = _first_pairs(connection, run_id, fact_set, asked)
    pairs = zip(found["query_id"].to_pylist(), found["sequence_id"].to_pylist(), strict=True)
    return list(dict.fromkeys(pairs))


@stage("fact evaluation")
def evaluate_facts(store: Store, run_id: str, fact_set: FactSet, patched: Sequence[str], first_step: int) -> RunScores:
    """Rank the documents of every query by every method and form, fill `evaluations`, and return the figures.

    `patched` are the queries whose methods' first sequences were patched; TracIn's means begin at `first_step`.
    """
    with session(store) as connection:
        rankings = Rankings(connection, run_id, fact_set)
        scores = dict(rankings.methods())
        methods = {name: rankings.metrics(found) for name, found in scores.items()}
        slice_of = {row["query_id"]: row["slice"] for row in rows(connection, "fact_tracing/slices", run=run_id)}
        half_of = halves({q.query_id: q.fact for q in fact_set.queries if q.query_id in slice_of})
        forms, chosen = _forms(rankings, methods, half_of, first_step)
        for name, taught in _taught(connection, run_id, fact_set, patched).items():
            methods.setdefault(name, {}).update(taught)
        found = RunScores(
            run_id,
            slice_of,
            rankings.candidates.sizes(),
            methods,
            forms,
            chosen,
            rankings.gradient_norms(),
            _probabilities(connection, run_id),
        )
    _write(store, found)
    return found


def describe_study(
    store: Store,
    fact_set: FactSet,
    runs: tuple[RunScores, ...],
    left_out: Mapping[str, tuple[str, ...]],
    command: str,
) -> FactStudy:
    """The runs of all seeds together, with what the store knows of how they were made."""
    with session(store) as connection:
        found = rows(connection, "fact_tracing/runs", runs=[run.run_id for run in runs])
        followed = rows(connection, "fact_tracing/checkpoints", run=runs[0].run_id)
    rates = {step: None for steps in runs[0].probabilities.values() for step in steps}
    rates |= {row["checkpoint"]: row["learning_rate"] for row in followed}
    return FactStudy(
        fact_set.directory.name,
        str(store.root),
        runs,
        tuple(found),
        rates,
        found[0]["n_documents"],
        left_out,
        command,
    )


def _forms(
    rankings: Rankings, methods: dict[str, Metrics], half_of: Mapping[str, int], first_step: int
) -> tuple[dict[tuple[str, Form], Metrics], dict[str, dict[int, str]]]:
    """Metrics of every form; and under `methods` what the halves choose for one another."""
    forms: dict[tuple[str, Form], Metrics] = {}
    chosen: dict[str, dict[int, str]] = {}
    best: dict[str, dict[int, np.ndarray]] = {}  # scores under what was chosen, by method and half
    for method, found in (("tracin", rankings.tracin_forms(first_step)), ("embedding", rankings.hidden_forms())):
        options: dict[str, np.ndarray] = {}
        for form, scores in found:
            metrics = rankings.metrics(scores)
            forms[method, form] = {name: metrics[name] for name in FORM_METRICS}
            if (form.normalise, form.steps) == ("unit", MEAN):
                options[form.name] = scores
        ranked = {form.name: metrics["mrr"] for (of, form), metrics in forms.items() if of == method}
        names = choose_on_other_half({name: ranked[name] for name in options}, half_of) if options else {}
        if names:
            chosen[method] = names
            best[method] = {half: options[name] for half, name in chosen[method].items()}
            methods[f"{method}[{CHOSEN}]"] = _by_half(rankings, best[method], half_of)
    if len(best) == 2:
        sums = {half: best["tracin"][half] + best["embedding"][half] for half in (0, 1)}
        methods[f"tracin+embedding[{CHOSEN}]"] = _by_half(rankings, sums, half_of)
    return forms, chosen


def _by_half(rankings: Rankings, scores: Mapping[int, np.ndarray], half_of: Mapping[str, int]) -> Metrics:
    found = {half: rankings.metrics(values) for half, values in scores.items()}
    return {
        name: {asked: found[half][name][asked] for asked, half in half_of.items() if asked in found[half][name]}
        for name in found[0]
    }


def _first_pairs(
    connection: duckdb.DuckDBPyConnection, run_id: str, fact_set: FactSet, asked: Sequence[str]
) -> pa.Table:
    truths = proponents(fact_set)
    pairs = [(name, document) for name in asked for document in truths[name]]
    connection.register("chosen", pa.table({"query_id": pa.array(asked, pa.string())}))
    connection.register(
        "truths",
        pa.table(
            {
                "query_id": pa.array([name for name, _ in pairs], pa.string()),
                "document_id": pa.array([document for _, document in pairs], pa.string()),
            }
        ),
    )
    return query(connection, "fact_tracing/first_pairs", run=run_id, k=FIRST)


def _taught(
    connection: duckdb.DuckDBPyConnection, run_id: str, fact_set: FactSet, patched: Sequence[str]
) -> dict[str, Metrics]:
    """By method, what a step on each of its first sequences did to the answer's probability."""
    connection.register("first_pairs", _first_pairs(connection, run_id, fact_set, patched))
    found: dict[str, Metrics] = {}
    for row in rows(connection, "fact_tracing/taught", run=run_id):
        for column, metric in TAUGHT.items():
            found.setdefault(row["method"], {}).setdefault(metric, {})[row["query_id"]] = row[column]
    return found


def _probabilities(connection: duckdb.DuckDBPyConnection, run_id: str) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for row in rows(connection, "fact_tracing/outcomes", run=run_id):
        found.setdefault(row["query_id"], {})[row["checkpoint"]] = row["probability"]
    return found


def _write(store: Store, scores: RunScores) -> None:
    """Put a row per method and metric, and per slice that has queries, in place of what the run had."""
    table = seed_values(scores.slice_of, every_metric(scores))
    figures = [
        (method, metric if of == ALL else f"{metric}[{of}]", summary.estimate)
        for of in (ALL, *SLICES)
        for (method, metric), summary in summarise([table], of).items()
    ]
    write_figures(store, scores.run_id, figures)
