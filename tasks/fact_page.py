"""Page of a fact-tracing study: which method finds the text that states a fact, and when it stops finding it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from storage.pages import presentable, render, source, visible, write_page
from tasks.evaluation.comparison import SLICES
from tasks.fact_figures import best_methods, grid_of_steps, marks_of_methods, recall_curves, saturation_panels
from tasks.fact_plots import DARK, LIGHT, WIDTH, Draw, svg
from tasks.fact_scores import FactStudy
from tasks.fact_tables import figure, form_tables, label_of, notes, slice_title, tables, times

NAMED = 40  # queries that were left out and are named


def write_fact_page(study: FactStudy, output: Path) -> Path:
    """Write one self-contained page about a study."""
    return write_page(output, render("fact_tracing.html.j2", page_values(study)))


def page_values(study: FactStudy) -> dict[str, Any]:
    """What the template shows."""
    of, forms = study.main_slice, form_tables(study, study.main_slice)
    has_steps = len(study.steps) > 1
    described = slice_title(study, of)
    values = {
        "study": {"name": study.name},
        "lead": _lead(study),
        "numbers": _numbers(study),
        "tables": [vars(table) for table in tables(study)],
        "forms": [vars(table) for table in forms],
        "notes": {**notes(study), "forms": f"MRR of other forms of the same methods. {described}; nothing is chosen "
                  "here, so the best of a table looks better than it would on other queries."},
        "captions": _captions(described),
        "saturation": has_steps,
        "slices": {"names": list(SLICES), "rows": [[found[name] for name in SLICES] for found in study.slice_sizes]},
        "times": [vars(found) for found in times(study)],
        "origin": _origin(study),
        "left_out": [
            {"reason": reason, "n": len(names), "names": ", ".join([*names[:NAMED], *["…"] * (len(names) > NAMED)])}
            for reason, names in study.left_out.items() if names
        ],
        "commands": [study.command, *_statements(study)],
    }  # fmt: skip
    return presentable(values) | {"figures": _figures(study, has_steps), "style": _style()}


def _figures(study: FactStudy, has_steps: bool) -> dict[str, Any]:
    methods, n_methods = marks_of_methods(study)
    found = {
        "methods": _figure(methods, 0.75 + 0.34 * n_methods, "MRR of each method with its interval, by slice"),
    }
    if followed := best_methods(study):
        found["recall"] = _figure(
            recall_curves(study, followed), 3.2, "Share of true documents found among the first k, by method"
        )
    if has_steps:
        found["saturation"] = _figure(
            saturation_panels(study), 3.1, "MRR of TracIn, gradient norm and answer probability against training step"
        )
    if has_steps and study.runs[0].gradient_norms:
        parts, n_parts = grid_of_steps(study)
        found["steps"] = _figure(parts, 0.9 + 0.3 * n_parts, "MRR of TracIn by group of parameters and checkpoint")
    return found


def _figure(draw: Draw, height: float, alt: str) -> dict[str, Any]:
    pictures = {"light": svg(draw, WIDTH, height, LIGHT), "dark": svg(draw, WIDTH, height, DARK)}
    encoded = {
        name: Markup("data:image/svg+xml;base64,") + base64.b64encode(image).decode()
        for name, image in pictures.items()
    }
    return {"alt": alt, **encoded}


def _style() -> Markup:
    return Markup("\n").join(map(source, ("report.css", "fact_tracing.css")))


def _lead(study: FactStudy) -> str:
    sizes = [size for run in study.runs for size in run.sizes.values()]
    ranked, true = (np.array(numbers) for numbers in zip(*sizes, strict=True))
    states = f"{true[0]}" if true.min() == true.max() else f"{true.min()} to {true.max()}, median {np.median(true):g},"
    return (
        f"{len(study.runs[0].slice_of):,} queries ask for facts that training text states. Every method ranks the "
        f"same {ranked.mean():,.0f} candidates of a query (mean), of which {states} state its fact."
    )


def _numbers(study: FactStudy) -> list[dict[str, str]]:
    best = study.methods(study.main_slice)[0]
    mrr = study.summaries[study.main_slice][best, "mrr"].estimate
    steps = f"steps {study.steps[0]:,} to {study.steps[-1]:,}" if study.steps else ""
    found = [
        ("queries", f"{len(study.runs[0].slice_of):,}", ""),
        ("documents", f"{study.n_documents:,}", ""),
        ("seeds", f"{len(study.runs)}", ""),
        ("checkpoints", f"{len(study.steps)}", steps),
        ("highest MRR", figure(mrr.value, 2, False), label_of(best)),
    ]
    return [{"name": name, "value": value, "unit": unit} for name, value, unit in found]


def _captions(described: str) -> dict[str, str]:
    return {
        "methods": "Mean reciprocal rank: the mean of 1 / the place of the first document that states the fact. Bars "
        f"are 95 % bootstrap intervals over queries. The order is that of: {described[0].lower()}{described[1:]}.",
        "recall": f"Of the documents that state the fact, the share among the first k, of as many as k places hold. "
        f"{described}; bands are 95 % intervals.",
        "saturation": "A curve per slice of the queries, its band the 95 % interval over them. A fact that the model "
        "knows costs it next to no loss, so its query has a short gradient, whose direction says little.",
        "steps": f"MRR of the cosine of one group’s gradients at one checkpoint. {described}. Step 0 is the model "
        "before training.",
    }


def _origin(study: FactStudy) -> list[tuple[str, str]]:
    row = study.rows[0]
    rates = [rate for rate in study.learning_rates.values() if rate]
    return [
        ("set", study.name),
        ("store", study.store),
        ("runs", ", ".join(run.run_id for run in study.runs)),
        ("model", row["model"]),
        ("finished", f"{row['finished_at']:%Y-%m-%d %H:%M} UTC"),
        ("training sequences", f"{row['n_sequences']:,}"),
        ("learning rate", f"{min(rates):.2g} to {max(rates):.2g}" if rates else "not known"),
        ("factors", row["factors_id"]),
        ("computed in", f"{row['precision']} on {row['device']}"),
        ("numerics", row["code_revision"]),
    ]  # fmt: skip


def _statements(study: FactStudy) -> Sequence[str]:
    run, every = study.runs[-1].run_id, ", ".join(f"'{found.run_id}'" for found in study.runs)
    asked = (
        f"select method, value as mrr, ci_low, ci_high, n from evaluations where run_id = '{run}' and metric = 'mrr' "
        "order by value desc",
        "select method, metric, avg(value) as mean, stddev_samp(value) as over_seeds from evaluations "
        f"where run_id in ({every}) group by all order by metric, mean desc",
        f"select * from tracin_scores('{run}', parameter_groups := ['embedding'], normalise := 'unit') "
        "order by query_id, influence desc",
        f"select query_id, checkpoint, probability, is_first from query_outcomes where run_id = '{run}'",
    )
    return [f'headwater sql --store {visible(study.store)} "{statement}"' for statement in asked]
