"""Fact-tracing studies written by hand, for tests of their tables and page."""

from __future__ import annotations

import json
from datetime import datetime

from tasks.evaluation.forms import LEARNING_RATES, Form
from tasks.fact_scores import FactStudy, RunScores

STEPS = (0, 5, 10)
SLICES = {"a": "known", "b": "learned", "c": "learned", "d": "never"}


def run_scores(run_id: str, mrr: dict[str, dict[str, float]], slices: dict[str, str] = SLICES) -> RunScores:
    """A run whose methods have these reciprocal ranks by query; its forms have TracIn's, single steps half of them."""
    methods = {
        name: {metric: values for metric in ("mrr", "precision@10", "recall@10", "capped_recall@10", "capped_recall@1",
                                             "capped_recall@3", "capped_recall@5", "capped_recall@25")}
        for name, values in mrr.items()
    }  # fmt: skip
    of_tracin = {"mrr": mrr.get("tracin", next(iter(mrr.values())))}
    forms = {("tracin", form): of_tracin for form in (Form("all"), Form("embedding"), Form("all", "none"),
                                                      Form("all", steps=LEARNING_RATES))}  # fmt: skip
    for step in STEPS:
        halved = {query: value / 2 for query, value in of_tracin["mrr"].items()}
        forms["tracin", Form("all", steps=str(step))] = {"mrr": halved}
    forms["embedding", Form("layer 0")] = of_tracin
    return RunScores(
        run_id,
        slices,
        {query: (30, 2) for query in slices},
        methods,
        forms,
        {"tracin": {0: "embedding", 1: "all"}},
        {query: dict.fromkeys(STEPS, 2.0) for query in slices},
        {query: dict.fromkeys(STEPS, 0.5) for query in slices},
    )


def study(*runs: RunScores, name: str = "facts", **changes) -> FactStudy:
    """Runs that took a second for each of their stages."""
    row = {
        "model": "/models/m", "finished_at": datetime(2026, 1, 2, 3, 4), "n_sequences": 50, "factors_id": "ek-1",
        "precision": "float32", "device": "cpu", "code_revision": "c0de",
        "stages": json.dumps({"scores": {"seconds": 1.0}, "checkpoints": {"seconds": 2.0}}),
    }  # fmt: skip
    fields = {
        "name": name, "store": "/tmp/store", "runs": runs, "rows": (row,) * len(runs),
        "learning_rates": dict(zip(STEPS, (None, 1e-3, 5e-4), strict=True)), "n_documents": 60,
        "left_out": {"queries whose fact no document states": ("lost",), "queries without an answer": ()},
        "command": "headwater …",
    }  # fmt: skip
    return FactStudy(**fields | changes)
