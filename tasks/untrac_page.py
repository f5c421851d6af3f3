"""Tables and page of a study of datasets: which method foretells what a model loses with a whole dataset."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from storage.pages import visible
from storage.text import printable
from tasks.evaluation.mixtures import METRICS
from tasks.evaluation.ranking import Estimate
from tasks.fact_tables import Cell, Row, Table, figure, label_of
from tasks.study_page import Block, Page, bars, write_study_page
from tasks.untrac_scores import INVERSE, SIZE, UNTRAC, Findings

LABELS = {UNTRAC: "UnTrac", INVERSE: "UnTrac-Inverse", SIZE: "size, in sequences"}
TITLES = dict(zip(METRICS, ("Pearson", "Spearman", "finds the first"), strict=True))
NOTES = {
    "scores": "Correlation over datasets of a method’s worth of a dataset with the truth, mean over groups of queries; "
    "“finds the first” is the share of groups whose dearest dataset is also the method’s. In brackets 95 % bootstrap "
    "intervals over {of}.",
    "no interval": " There is none here: it takes 5 groups of queries or 10 datasets.",
    "truth": "What a token of the queries costs more, in nats, once a model is retrained without the dataset, in the "
    "same order with the same steps; mean over seeds. The highest of each column is marked.",
    "methods": "UnTrac climbs the loss of the dataset and measures the queries; UnTrac-Inverse climbs the loss of the "
    "queries once and measures every dataset (Isonuma & Titov 2024, arXiv 2401.15241). Of the other methods the "
    "influences on the queries are summed over the dataset’s sequences.",
}


def named(method: str) -> str:
    """A method’s name for people."""
    return LABELS.get(method) or label_of(method)


def score_table(found: Findings) -> Table:
    """Every method by falling Pearson."""
    estimates = {name: [found.figures[name][metric] for metric in METRICS] for name in found.by_score()}
    best = [max(of[k].value for of in estimates.values()) for k in range(len(METRICS))]
    rows = [
        Row(named(name), "", tuple(_estimate(e, e.value == best[k]) for k, e in enumerate(of)))
        for name, of in estimates.items()
    ]
    return Table("Methods by Pearson with the truth", "method", tuple(TITLES.values()), tuple(rows))


def _estimate(e: Estimate, best: bool) -> Cell:
    low, high = (figure(end, 3, False) for end in (e.ci_low, e.ci_high))
    return Cell(figure(e.value, 3, False), "" if math.isnan(e.ci_low) else f"[{low}, {high}]", None, best)


def worth_table(found: Findings, title: str, values: np.ndarray) -> Table:
    """Nats per token, [d, g]: datasets against groups of queries."""
    highest = values.max(axis=0)
    rows = [
        Row(printable(name), "", tuple(_worth(value, value == highest[g]) for g, value in enumerate(of)))
        for name, of in zip(found.mixture.datasets, values.tolist(), strict=True)
    ]
    return Table(title, "without", tuple(map(printable, found.mixture.groups)), tuple(rows))


def _worth(value: float, best: bool) -> Cell:
    return Cell(figure(value, 3, True), "", None, best)


def truth_table(found: Findings) -> Table:
    """What leaving each dataset out does to each group of queries."""
    return worth_table(found, "Truth: nats per token, retrained without a dataset", found.measured.mean(axis=0))


def tables(found: Findings) -> list[Table]:
    """Everything that a terminal shows, in order."""
    return [score_table(found), truth_table(found)]


def describe(found: Findings) -> str:
    """What was trained and unlearned, and what each took."""
    mixture, seconds = found.mixture, found.seconds
    n = sum(map(len, mixture.datasets.values()))
    seeds = f"{len(found.runs)} seeds" if len(found.runs) > 1 else "one seed"
    return (
        f"A model was taught {n:,} sequences of {len(mixture.datasets)} datasets, and again without each of them "
        f"({seeds}). {len(found.study.prompts):,} queries in {_count(len(mixture.groups), 'group')} were asked. For "
        f"a seed retraining took {seconds['retraining']:.0f} s, unlearning the datasets {seconds[UNTRAC]:.0f} s, "
        f"unlearning the queries {seconds[INVERSE]:.0f} s, one after another."
    )


def _count(n: int, of: str) -> str:
    return f"{n} {of}" if n == 1 else f"{n} {of}s"


def notes(found: Findings) -> tuple[str, ...]:
    """What is to be known of the figures."""
    first = found.figures[UNTRAC][METRICS[0]]
    of = "groups of queries" if first.n == len(found.mixture.groups) else "datasets"
    said = NOTES["scores"].format(of=of)
    return (said + (NOTES["no interval"] if math.isnan(first.ci_low) else ""), NOTES["methods"])


def write_untrac_page(found: Findings, output: Path) -> Path:
    """Write one self-contained page about a study."""
    shown: Sequence[str] = found.by_score()
    scores = {named(name): found.figures[name]["pearson"] for name in shown}
    ranks = {named(name): found.figures[name]["spearman"] for name in shown}
    height = 0.75 + 0.34 * len(scores)
    worth = [
        Block(table.title, table)
        for name in (UNTRAC, INVERSE)
        for table in [worth_table(found, f"{named(name)}: nats per token", found.predicted[name].mean(axis=0))]
    ]
    words = "The bar is the mean over groups of queries, the line its 95 % interval."
    blocks = [
        Block("Methods", score_table(found), bars(scores, "Pearson"), height, words, notes(found)),
        Block("Ranks", None, bars(ranks, "Spearman"), height, words),
        Block("Without each dataset", truth_table(found), notes=(NOTES["truth"],)),
        *worth,
    ]
    best, study = shown[0], found.study
    page = Page(
        "datasets",
        study.study_id,
        "Which datasets do the queries owe their answers to?",
        describe(found),
        (
            ("datasets", f"{len(found.mixture.datasets):,}", ""),
            ("queries", f"{len(study.prompts):,}", ""),
            ("seeds", f"{len(found.runs):,}", ""),
            ("highest Pearson", figure(found.figures[best]["pearson"].value, 3, False), named(best)),
        ),
        tuple(blocks),
        (
            ("store", str(study.store.root)),
            ("study", study.study_id),
            ("runs", ", ".join(run.run_id for run in found.runs)),
            ("model", str(study.start)),
        ),
        (
            found.command,
            *(f'headwater sql --store {visible(str(study.store.root))} "{text}"' for text in statements(found)),
        ),
    )
    return write_study_page(page, output)


def statements(found: Findings) -> tuple[str, ...]:
    """What else there is to be asked; a dataset that is a file bears the name of its part."""
    study, run = found.study.study_id, found.runs[-1]
    return (
        f"select method, metric, value, ci_low, ci_high, n from evaluations where run_id = '{study}' "
        "order by metric, value desc",
        f"select * from dataset_influences('{run.run_id}', by := '{found.mixture.by}')",
        f"select unlearned, name, loss / n_tokens as nats_per_token from unlearnings "
        f"where study_id = '{run.untrac.study_id}'",
        f"select retraining, query_id, avg(loss) as nats from retrainings where study_id = '{study}' group by all",
    )
