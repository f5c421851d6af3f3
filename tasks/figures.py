"""Figures that evaluations leave: rows of the relation `evaluations`, whoever measured them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from storage.schemas import SCHEMAS
from storage.store import Store
from storage.tables import has_part, read_part, write_part
from tasks.evaluation.ranking import Estimate

RELATION = "evaluations"
Figure = tuple[str, str, Estimate]  # method, metric, estimate


def figure_columns(run_id: str, figures: Sequence[Figure]) -> dict[str, list[Any]]:
    """The columns of the relation, a row per figure of a run or a study."""
    return {
        "run_id": [run_id] * len(figures),
        "method": [method for method, _, _ in figures],
        "metric": [metric for _, metric, _ in figures],
        "value": [e.value for _, _, e in figures],
        "ci_low": [e.ci_low for _, _, e in figures],
        "ci_high": [e.ci_high for _, _, e in figures],
        "n": [e.n for _, _, e in figures],
    }


def add_figures(store: Store, run_id: str, figures: Sequence[Figure]) -> None:
    """Keep figures beside what else is said of a run or a study, in place of those that they replace."""
    known = read_part(store, RELATION, run_id) if has_part(store, RELATION, run_id) else SCHEMAS[RELATION].empty_table()
    replaced = {(method, metric) for method, metric, _ in figures}
    there = zip(known["method"].to_pylist(), known["metric"].to_pylist(), strict=True)
    stays = pa.array([figure not in replaced for figure in there], pa.bool_())
    added = pa.table(figure_columns(run_id, figures), schema=SCHEMAS[RELATION])
    write_part(store, RELATION, run_id, columns=pa.concat_tables([known.filter(stays), added]))


def write_figures(store: Store, run_id: str, figures: Sequence[Figure]) -> None:
    """Keep the figures of a run or a study, in place of those that it had."""
    write_part(store, RELATION, run_id, columns=figure_columns(run_id, figures))
