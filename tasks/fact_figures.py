"""Figures of a fact-tracing study: what each plot shows, from the study's estimates."""

from __future__ import annotations

import numpy as np

from tasks.evaluation.comparison import ALL, seed_values, summarise
from tasks.evaluation.forms import Form
from tasks.evaluation.ranking import DEPTHS, Estimate
from tasks.fact_plots import Curve, Draw, Marked, Panel, grid, marks, panels
from tasks.fact_scores import FactStudy
from tasks.fact_tables import label_of

SHOWN = 6  # methods in a plot of curves


def present_slices(study: FactStudy) -> list[str]:
    """The slices that have curves of their own; all queries where one slice has nearly all of them."""
    return study.shown_slices or [ALL]


def marks_of_methods(study: FactStudy) -> tuple[Draw, int]:
    """MRR of each method, all queries and each slice; and how many rows."""
    series = [ALL, *study.shown_slices]
    rows = []
    for method in study.methods(study.main_slice):
        found = [study.summaries[of].get((method, "mrr")) for of in series]
        rows.append(Marked(label_of(method), tuple(summary.estimate if summary else None for summary in found)))
    names = ["all queries" if of == ALL else of for of in series]
    return marks(rows, names, "MRR, with 95 % intervals over queries"), len(rows)


def best_methods(study: FactStudy) -> list[str]:
    """The first methods of the main table; none of them draws at random."""
    return [method for method in study.methods(study.main_slice) if not method.startswith("random")][:SHOWN]


def recall_curves(study: FactStudy, methods: Sequence[str]) -> Draw:
    """Share found among the first k, of as many as k places hold, by method."""
    of = study.main_slice
    curves = [
        Curve(
            label_of(method),
            tuple(map(float, DEPTHS)),
            tuple(study.summaries[of][method, f"capped_recall@{k}"].estimate for k in DEPTHS),
        )
        for method in methods
    ]
    return panels([Panel("", "first k documents", "found, of as many as possible", tuple(curves), unit=True)])


def saturation_panels(study: FactStudy) -> Draw:
    """By slice, against the optimizer step: MRR at one checkpoint, length of the query's gradient, p(answer)."""
    found = [
        Panel("MRR of TracIn at one checkpoint", "optimizer step", "MRR", _ranked(study), unit=True),
        Panel("Length of the query’s gradient", "optimizer step", "nats per unit of weight",
              _followed(study, "gradient_norms"), log_y=True),
        Panel("Probability of the answer", "optimizer step", "p(answer | prompt)",
              _followed(study, "probabilities"), unit=True),
    ]  # fmt: skip
    return panels([panel for panel in found if any(curve.x for curve in panel.curves)])


def _ranked(study: FactStudy) -> tuple[Curve, ...]:
    curves = []
    for of in present_slices(study):
        labels = {step: Form("all", steps=str(step)).label("tracin") for step in study.steps}
        found = {step: study.summaries[of].get((label, "mrr")) for step, label in labels.items()}
        curves.append(_curve(of, {step: summary.estimate for step, summary in found.items() if summary}))
    return tuple(curves)


def _followed(study: FactStudy, what: str) -> tuple[Curve, ...]:
    tables = []
    for run in study.runs:
        by_step: dict[str, dict[str, float]] = {}
        for query, steps in getattr(run, what).items():
            for step, value in steps.items():
                by_step.setdefault(str(step), {})[query] = value
        tables.append(seed_values(run.slice_of, {what: by_step}))
    curves = []
    for of in present_slices(study):
        found = {int(step): summary.estimate for (_, step), summary in summarise(tables, of).items()}
        curves.append(_curve(of, found))
    return tuple(curves)


def _curve(of: str, estimates: dict[int, Estimate]) -> Curve:
    steps = sorted(estimates)
    return Curve("all queries" if of == ALL else of, tuple(map(float, steps)), tuple(estimates[step] for step in steps))


def grid_of_steps(study: FactStudy) -> tuple[Draw, int]:
    """MRR of TracIn by group of parameters and checkpoint; and how many rows."""
    parts = list(dict.fromkeys(form.part for method, form in study.runs[0].forms if method == "tracin"))
    summaries = study.summaries[study.main_slice]
    values = np.full((len(parts), len(study.steps)), np.nan)
    for (r, part), (c, step) in ((row, column) for row in enumerate(parts) for column in enumerate(study.steps)):
        summary = summaries.get((Form(part, steps=str(step)).label("tracin"), "mrr"))
        values[r, c] = summary.estimate.value if summary else np.nan
    columns = [f"{step:,}" for step in study.steps]
    return grid(values, parts, columns, "optimizer step", "group of parameters"), len(parts)
