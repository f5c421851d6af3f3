"""Tables of a fact-tracing study, for the terminal and the page: methods by slice, forms of TracIn, layers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tasks.evaluation.comparison import ALL, Summary
from tasks.evaluation.forms import LEARNING_RATES, MEAN, Form
from tasks.evaluation.ranking import Spread, spread
from tasks.fact_scores import BASELINE, CHOSEN, FIRST, TAUGHT, TRUTH, FactStudy
from tasks.methods import GRADIENT, SOLVED, TEXT, TRAJECTORY
from tasks.metrics import CURVED

LABELS = {
    "ekfac": "EK-FAC",
    "kfac": "K-FAC",
    "identity": "gradient dot",
    "cg": "conjugate gradients",
    "lissa": "LiSSA",
    "arnoldi": "Arnoldi",
    "datainf": "DataInf",
    "diagonal": "diagonal Fisher",
    "exact": "exact",
    "tracin": "TracIn",
    "embedding": "EMBED",
    "tracin+embedding": "TracIn + EMBED",
    "bm25plus": "BM25+",
    "bm25": "BM25",
    "lucene": "BM25 of Lucene",
    "tfidf": "TF-IDF",
    "random_target": "random target",
    "random": "random",
    TRUTH: "the true documents",
}
# Metrics of a table, with what stands at their head; the last two are of queries that were patched.
COLUMNS = {
    "mrr": "MRR",
    "precision@10": "P@10",
    "recall@10": "R@10",
    "capped_recall@10": "R@10 / possible",
    f"mrr_over_{BASELINE}": "MRR − BM25+",
    TAUGHT["probability"]: "taught, Δp",
    TAUGHT["nats"]: "taught, Δ log p",
}
# What runs in which stage, as `runs.stages` has them; gradients are compared in the last checkpoint's pass, where it is
# the run's model, and otherwise in scores.
STAGES = {
    "factors": (*CURVED, *SOLVED),
    "query gradients": GRADIENT,
    "checkpoints": (*TRAJECTORY, *GRADIENT),
    "scores": GRADIENT,
    "texts": TEXT,
}
NOTES = {
    "table": "Means with 95 % bootstrap intervals over queries; ± is the standard deviation over seeds. P@k, R@k: "
    "share of the first k that state the fact, and of those that state it that are among the first k; R@10 / possible "
    "counts at most 10 of them. A document has the score of its best sequence; maskings of one sentence count once. "
    "Ties are broken blindly. The best of each column is coloured.",
    "chosen": "“chosen”: the queries are halved by fact, and each half is scored with the group of parameters, or the "
    "layer, that ranked best on the other half. The tables of Akyürek et al. 2022 (arXiv 2205.11482) chose theirs on "
    "the test scores that they report, which flatters a method with many choices.",
    "taught": f"taught: the change of the answer’s probability after one plain gradient step on each of a method’s "
    f"first {FIRST} sequences alone (tail-patch, Chang et al. 2024, arXiv 2410.17413), mean over them. It asks whether "
    "the text teaches the fact, where the other columns ask whether it states it.",
}
SIGNED = (f"mrr_over_{BASELINE}", *TAUGHT.values())


@dataclass(frozen=True)
class Cell:
    """An estimate in words: value, 95 % interval, standard deviation over seeds."""

    value: str
    interval: str
    deviation: str | None
    best: bool = False


@dataclass(frozen=True)
class Row:
    """One method or form; a cell is None where it has no figure; what is set aside is greyed."""

    name: str
    kind: str
    cells: tuple[Cell | None, ...]
    set_aside: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under columns, and what they are about; `words` are the columns that hold sentences."""

    title: str
    axis: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Time:
    """Wall clock of a stage in seconds, all queries together."""

    stage: str
    methods: str
    seconds: Spread


def label_of(method: str) -> str:
    """A method's name for people."""
    name, _, form = method.removesuffix("]").partition("[")
    base, _, relative = name.partition(" ")
    words = [LABELS.get(base, base), *([relative] if relative else []), *([form] if form else [])]
    return ", ".join(words)


def kind_of(study: FactStudy, method: str) -> str:
    """What a method's name leaves out: what was chosen, and on what."""
    name, _, form = method.partition("[")
    if form != f"{CHOSEN}]":
        return ""
    parts = [run.chosen[part][half] for part in name.split("+") for run in study.runs for half in (0, 1)]
    return "on the other half of the queries: " + ", ".join(
        f"{part} ({parts.count(part)} of {len(parts)})" for part in dict.fromkeys(parts)
    )


def method_table(study: FactStudy, of: str) -> Table:
    """Every method in one slice, by falling MRR; below them what the true documents themselves teach."""
    summaries = study.summaries[of]
    methods = [*study.methods(of), *([TRUTH] if (TRUTH, TAUGHT["nats"]) in summaries else [])]
    metrics = [m for m in COLUMNS if any((method, m) in summaries for method in methods)]
    found = [[summaries.get((method, metric)) for metric in metrics] for method in methods]
    compared = [k for k, method in enumerate(methods) if method != TRUTH]
    cells = [[_cell(summary, metric in SIGNED) for summary, metric in zip(row, metrics, strict=True)] for row in found]
    for column in range(len(metrics)):
        _mark_best(found, cells, [(row, column) for row in compared])
    rows = [
        Row(label_of(method), kind_of(study, method), tuple(row)) for method, row in zip(methods, cells, strict=True)
    ]
    return Table(slice_title(study, of), "method", tuple(COLUMNS[m] for m in metrics), tuple(rows))


def slice_title(study: FactStudy, of: str) -> str:
    """A slice and how many queries it has, under each seed."""
    sizes = [sum(found.values()) if of == ALL else found[of] for found in study.slice_sizes]
    count = f"{min(sizes):,}" if min(sizes) == max(sizes) else f"{min(sizes):,} to {max(sizes):,}"
    if of == ALL:
        return f"All {count} queries"
    return (
        f"{count} queries that were {of}" if of != "never" else f"{count} queries that were neither known nor learned"
    )


def form_tables(study: FactStudy, of: str) -> list[Table]:
    """TracIn by group of parameters, and by checkpoint; hidden states by layer. Only what the runs have."""
    tracin = [form for method, form in study.runs[0].forms if method == "tracin"]
    hidden = [form for method, form in study.runs[0].forms if method == "embedding"]
    tables = []
    if tracin:
        parts = list(dict.fromkeys(form.part for form in tracin))
        kinds = {
            "cosine": Form(""), "cosine, scaled": Form("", scaled=True), "dot product": Form("", "none"),
            "dot product, scaled": Form("", "none", True), "sum of cosines": Form("", "local"),
        }  # fmt: skip
        grid = {part: {name: replace(kind, part=part) for name, kind in kinds.items()} for part in parts}
        tables.append(_form_table(study, of, "tracin", "group of parameters", grid, "TracIn by group of parameters"))
        steps = dict.fromkeys(form.steps for form in tracin)
        kinds = {
            "cosine of all": Form("all"), "cosine of the embedding": Form("embedding"), "dot product of all":
            Form("all", "none"),
        }  # fmt: skip
        names = {MEAN: "mean of the checkpoints", LEARNING_RATES: "sum by learning rates"}
        grid = {
            names.get(s, f"step {s} alone"): {name: replace(kind, steps=s) for name, kind in kinds.items()}
            for s in steps
        }
        if len(steps) > 1:
            tables.append(_form_table(study, of, "tracin", "checkpoints", grid, "TracIn by checkpoints"))
    if hidden:
        grid = {form.part: {"cosine": form} for form in hidden}
        tables.append(_form_table(study, of, "embedding", "hidden states", grid, "EMBED by layer"))
    return tables


def _form_table(
    study: FactStudy, of: str, method: str, axis: str, grid: dict[str, dict[str, Form]], title: str
) -> Table:
    summaries = study.summaries[of]
    found = [[summaries.get((form.label(method), "mrr")) for form in row.values()] for row in grid.values()]
    columns = list(next(iter(grid.values())))
    kept = [k for k in range(len(columns)) if any(row[k] is not None for row in found)]
    found = [[row[k] for k in kept] for row in found]
    cells = [[_cell(summary, False) for summary in row] for row in found]
    _mark_best(found, cells, [(r, c) for r, row in enumerate(found) for c in range(len(row))])
    rows = [Row(name, "", tuple(row)) for name, row in zip(grid, cells, strict=True) if any(row)]
    return Table(title, axis, tuple(columns[k] for k in kept), tuple(rows))


def _mark_best(
    found: Sequence[Sequence[Summary | None]], cells: list[list[Cell | None]], places: Sequence[tuple[int, int]]
) -> None:
    """Mark the largest of some cells; equal ones together."""
    values = {(r, c): summary.estimate.value for r, c in places if (summary := found[r][c]) is not None}
    for (r, c), value in values.items():
        cell = cells[r][c]
        if cell is not None and value == max(values.values()):
            cells[r][c] = replace(cell, best=True)


def _cell(summary: Summary | None, signed: bool) -> Cell | None:
    if summary is None:
        return None
    e, deviation = summary.estimate, summary.seeds.deviation
    return Cell(
        figure(e.value, 3, signed),
        f"[{figure(e.ci_low, 2, signed)}, {figure(e.ci_high, 2, signed)}]",
        None if deviation is None else figure(deviation, 2, False),
    )


def figure(value: float, digits: int, signed: bool) -> str:
    """A share as tables have it: .572, 1.000, −.03, and +.03 where the sign matters; small numbers keep two digits."""
    text = f"{abs(value):.{digits}f}"
    if signed and value and float(text) < 10 ** (1 - digits):
        text = f"{abs(value):.1e}" if abs(value) < 1e-4 else f"{abs(value):.2g}"
    sign = "−" if value < 0 and float(text) else "+" if signed and float(text) else ""
    return sign + text.removeprefix("0") if text.startswith("0.") else sign + text


def notes(study: FactStudy) -> dict[str, str]:
    """What a reader of the tables must know, of what stands in them."""
    methods = study.runs[0].methods
    holds = {
        "table": True,
        "chosen": any(name.endswith(f"[{CHOSEN}]") for name in methods),
        "taught": any((name, TAUGHT["nats"]) in study.summaries[ALL] for name in methods),
    }
    return {name: text for name, text in NOTES.items() if holds[name]}


def tables(study: FactStudy) -> list[Table]:
    """All queries and every slice that figures speak of, the main one first."""
    return [method_table(study, of) for of in dict.fromkeys([study.main_slice, ALL, *study.shown_slices])]


def times(study: FactStudy) -> list[Time]:
    """Seconds per seed of each stage that scores, and which methods share it."""
    costs = [json.loads(row["stages"]) for row in study.rows]
    asked = {name.partition("[")[0].partition(" ")[0] for name in study.runs[0].methods}
    return [
        Time(
            stage,
            ", ".join(label_of(name) for name in methods if name in asked),
            spread([cost.get(stage, {}).get("seconds", 0.0) for cost in costs]),
        )
        for stage, methods in STAGES.items()
        if asked & set(methods) and any(stage in cost for cost in costs)
    ]
