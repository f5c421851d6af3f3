"""Table and page of a mislabel study: which ranking of the examples finds wrong labels soonest."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from storage.pages import visible
from tasks.fact_tables import Table, figure
from tasks.mislabels import INSPECTED, METHODS, MislabelFindings
from tasks.study_page import Block, Page, curves, estimate_table, write_study_page

LABELS = {
    "ekfac": "self-influence, EK-FAC",
    "identity": "self-influence, gradient dot",
    "loss": "loss",
    "random": "random",
}
NOTE = (
    "Share of the wrong labels among the first examples of a ranking, with 95 % t-intervals over seeds. Self-influence "
    "is what an example’s gradient does to its own loss under the inverse curvature; gradient dot has no curvature."
)
MAIN = INSPECTED[1]


def mislabel_table(found: MislabelFindings) -> Table:
    """Every ranking, the best first."""
    order = sorted(METHODS, key=lambda method: -found.estimates[method, MAIN].value)
    rows = {LABELS[method]: [found.estimates[method, share] for share in INSPECTED] for method in order}
    return estimate_table("Wrong labels found", "ranked by", [f"in the first {share:.0%}" for share in INSPECTED], rows)


def describe(found: MislabelFindings) -> str:
    """What was looked into."""
    return (
        f"{len(found.places)} networks learned {found.n:,} examples of {found.study.problem.table}, {found.n_wrong:,} "
        f"of them labelled as another class, and came to repeat {found.learned:.0%} of the wrong labels. An "
        "inspection from the most suspect example down looks for them."
    )


def write_mislabel_page(found: MislabelFindings, output: Path, command: str) -> Path:
    """Write one self-contained page about a study."""
    shares = np.linspace(0, 1, 101)
    lines = {LABELS[method]: (100 * shares, 100 * found.curve(method, shares)) for method in METHODS}
    best = max(METHODS, key=lambda method: found.estimates[method, MAIN].value)
    study = found.study
    page = Page(
        "wrong labels", study.problem.table, "Are wrong labels found by what a network had to learn by heart?",
        describe(found),
        (
            ("examples", f"{found.n:,}", ""),
            ("wrong labels", f"{found.n_wrong:,}", ""),
            ("seeds", f"{len(found.places)}", ""),
            (f"found in the first {MAIN:.0%}", figure(found.estimates[best, MAIN].value, 3, False), LABELS[best]),
        ),
        (
            Block(
                "Rankings", mislabel_table(found), curves(lines, "examples inspected, %", "wrong labels found, %"),
                3.4, "Mean over seeds.", (NOTE,),
            ),
        ),
        (("store", str(study.store.root)), ("study", study.study_id), ("λ", f"{study.asked.damping:g}")),
        (command, f'headwater sql --store {visible(str(study.store.root))} "{statement(found)}"'),
    )  # fmt: skip
    return write_study_page(page, output)


def statement(found: MislabelFindings) -> str:
    """What else there is to be asked."""
    return f"select method, metric, value, ci_low, ci_high, n from evaluations where run_id = '{found.study.study_id}'"
