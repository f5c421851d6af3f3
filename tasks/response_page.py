"""Tables and page of a response study: how far influence functions can be trusted, and where they part from truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from storage.pages import visible
from tasks.evaluation.ranking import Estimate
from tasks.fact_tables import Cell, Row, Table, figure
from tasks.response_evaluation import KINDS, ResponseFindings
from tasks.response_figures import LABELS, gap_bars, gap_rows, methods_with_seconds, ordered, scatters, sweep
from tasks.study_page import Block, Page, estimate_table, write_study_page

NOTES = {
    "correlation": "Correlation, over the training examples left out, of the predicted with the measured change of a "
    "test example’s loss; means over test examples, in brackets 95 % t-intervals over seeds. Each seed has a split, "
    "a network and examples left out of its own.",
    "objectives": "cold start trains again without the example; warm start goes on from the trained network; "
    "proximity keeps it near; PBRF asks the others to keep their outputs rather than their labels; linearised is PBRF "
    "with the network replaced by its tangent, which (G + λI)⁻¹∇L solves (Bae et al. 2022, arXiv 2209.05364). What "
    "training on does by itself, the same for every example, is part of the first three.",
    "gaps": "The mean over training examples of the distance between the outputs of two networks: each step from "
    "retraining to an approximate influence changes one thing. Gradient dot has no size that could be compared.",
}


def correlation_table(found: ResponseFindings, kind: str, damping: float) -> Table:
    """Methods against objectives, the best against the last of them first."""
    objectives = list(reversed(found.study.objectives))
    rows = {
        LABELS[m]: [found.correlations[m, o, damping, kind] for o in objectives]
        for m in ordered(found, main_objective(found))
    }
    title = f"{kind.capitalize()} with the measured change, λ = {damping:g}"
    return estimate_table(title, "method", [LABELS[o] for o in objectives], rows)


def main_objective(found: ResponseFindings) -> str:
    """The one that methods are put in order by."""
    return "pbrf" if "pbrf" in found.study.objectives else found.study.objectives[0]


def gap_table(found: ResponseFindings) -> Table:
    """Distances from retraining to each method's answer."""
    rows = [Row(name, "", (_small(e),)) for name, e in gap_rows(found).items()]
    return Table(f"Gaps, λ = {found.damping:g}", "gap", ("distance of outputs",), tuple(rows))


def seconds_table(found: ResponseFindings) -> Table:
    """What each method takes, with whatever it needs before."""
    rows = [Row(LABELS[m], "", (_small(found.seconds[m]),)) for m in ordered(found, main_objective(found))]
    return Table(f"Seconds for {found.study.asked.left_out:,} examples", "method", ("seconds",), tuple(rows))


def _small(e: Estimate) -> Cell:
    return Cell(f"{e.value:.3g}", f"[{e.ci_low:.2g}, {e.ci_high:.2g}]", None)


def tables(found: ResponseFindings) -> list[Table]:
    """Everything that a terminal shows, in order."""
    shown = [correlation_table(found, kind, found.damping) for kind in KINDS]
    if found.gaps:
        shown.append(gap_table(found))
    return [*shown, seconds_table(found)]


def describe(found: ResponseFindings) -> str:
    """What was trained and left out, in a sentence or two."""
    first, asked = found.seeds[0], found.study.asked
    losses = [np.mean([getattr(s, name) for s in found.seeds]) for name in ("train_loss", "test_loss")]
    network = found.study.network
    layers = (
        f"hidden layers of {'-'.join(map(str, network.hidden))}, {network.activation}"
        if network.hidden
        else "none hidden"
    )
    return (
        f"{len(found.seeds)} networks of {first.n_weights:,} weights ({layers}) learned {first.n:,} "
        f"examples of {found.study.problem.table} in {network.training.epochs} epochs (mean loss "
        f"{losses[0]:.3g} on them, {losses[1]:.3g} on others). {asked.left_out} examples each were left out, one at a "
        f"time, and {asked.tests} test examples asked about."
    )


def residual_note(found: ResponseFindings) -> str:
    """How far what was measured and solved is from what it stands for: the median and the worst example."""
    names = {name for name, damping in found.seeds[0].residuals if damping == found.damping}
    shown = [name for name in ("proximity", "pbrf", "linearised", "lissa", "cg") if name in names]
    every = {name: np.concatenate([seed.residuals[name, found.damping] for seed in found.seeds]) for name in shown}
    words = ", ".join(f"{LABELS[name]} {np.median(some):.1g} ({some.max():.1g})" for name, some in every.items())
    return (
        "What is left of the gradient relative to the example’s own at the end of minimising or solving, the median "
        f"example and in brackets the worst: {words}."
        if words
        else ""
    )


def write_response_page(found: ResponseFindings, output: Path, command: str) -> Path:
    """Write one self-contained page about a study."""
    study, main = found.study, main_objective(found)
    objectives = [o for o in ("pbrf", "cold", "loo") if o in study.objectives] or [main]
    best = ordered(found, main)[0]
    shown = next((m for m in ("ekfac", "kfac", "cg") if m in study.asked.methods), best)
    pairs = list(dict.fromkeys([(best, main), (shown, main), (shown, objectives[-1])]))
    n = len(study.asked.methods)
    blocks = [
        Block(
            "Methods", correlation_table(found, "pearson", found.damping), methods_with_seconds(found, objectives),
            0.9 + 0.42 * n, "Agreement with what was measured, and the time of each method alone, factors included.",
            tuple(filter(None, (NOTES["correlation"], NOTES["objectives"], residual_note(found)))),
        ),
        Block("Ranks", correlation_table(found, "spearman", found.damping), notes=(NOTES["correlation"],)),
        Block(
            "Predicted and measured", None, scatters(found, pairs), 3.2,
            "Each point is a training example left out; the test example is the one whose correlation is the median.",
        ),
    ]  # fmt: skip
    if found.gaps:
        blocks.append(
            Block("Where they part", gap_table(found), gap_bars(found), 0.9 + 0.3 * (n + 4), "", (NOTES["gaps"],))
        )
    if found.gaps and len(study.asked.dampings) > 1:
        others = [correlation_table(found, "pearson", value) for value in study.asked.dampings[1:]]
        words = "Each method’s agreement, and the gaps: more damping brings influence and PBRF together."
        blocks.append(Block("Damping", None, sweep(found, main), 3.4, words))
        blocks += [Block(table.title, table) for table in others]
    top = found.correlations[best, main, found.damping, "pearson"]
    page = Page(
        "validation", study.problem.table,
        "Do influences predict what leaving an example out does?", describe(found),
        (
            ("examples", f"{found.seeds[0].n:,}", ""),
            ("weights", f"{found.seeds[0].n_weights:,}", ""),
            ("seeds", f"{len(found.seeds)}", ""),
            (f"Pearson with {LABELS[main]}", figure(top.value, 3, False), LABELS[best]),
        ),
        tuple(blocks),
        (
            ("store", str(study.store.root)), ("study", study.study_id), ("table", study.problem.table),
            ("λ", ", ".join(f"{value:g}" for value in study.asked.dampings)),
        ),
        (command, *(f'headwater sql --store {visible(str(study.store.root))} "{text}"' for text in statements(found))),
    )  # fmt: skip
    return write_study_page(page, output)


def statements(found: ResponseFindings) -> tuple[str, ...]:
    """What else there is to be asked."""
    study = found.study.study_id
    return (
        f"select method, metric, value, ci_low, ci_high, n from evaluations where run_id = '{study}'",
        "select source, damping, avg(r) as pearson from (select p.source, damping, seed, test_id, "
        "corr(p.change, m.change) as r from loss_changes p join loss_changes m "
        "using (study_id, seed, damping, example_id, test_id) "
        f"where study_id = '{study}' and m.source = '{main_objective(found)}' group by all) group by all "
        "order by damping, pearson desc",
    )
