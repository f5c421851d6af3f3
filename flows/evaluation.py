"""Evaluation: the latest runs compared with the truth that their queries name."""

from __future__ import annotations

import logging

from prefect import flow

from flows.outcome import EXPLAINED
from flows.parameters import EvaluationParameters
from storage.store import open_store
from tasks.evaluate import K, evaluate_retrieval, runs_to_evaluate

log = logging.getLogger("flows.evaluation")  # not __name__: a worker loads this file by its path


@flow(name="nightly-evaluation", flow_run_name="evaluate {parameters.store}", validate_parameters=True, **EXPLAINED)
def nightly_evaluation(parameters: EvaluationParameters) -> list[str]:
    """Fill `evaluations` for runs whose queries' metadata say which documents are true; returns their ids."""
    store = open_store(parameters.store)
    runs = runs_to_evaluate(store, parameters.runs)
    for run_id in runs:
        for score in evaluate_retrieval(store, run_id):
            log.info(
                "%s, %s: precision@%d %.3f, MRR %.3f over %d queries",
                run_id, score.method, K, score.precision.value, score.mrr.value, score.mrr.n,
            )  # fmt: skip
    log.info("%d runs evaluated", len(runs))
    return runs
