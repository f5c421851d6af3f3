"""Table and page of an inspection: which ranking finds documents with swapped answers soonest."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from storage.pages import visible
from tasks.fact_tables import Table, figure
from tasks.inspection import FIRST, METHODS, METRIC, InspectionStudy
from tasks.study_page import Block, Page, curves, estimate_table, write_study_page

NOTE = (
    f"Share of the documents with a swapped answer among the first {FIRST:.0%} of all documents, with the 95 % "
    "interval over corpora (a bootstrap over documents where there are one or two). A document is as suspect as the "
    "most suspect of its sequences. Self-influence is what a sequence’s gradient does to its own loss under the "
    "inverse curvature; gradient dot has no curvature. Of the answer alone: −log p of its tokens given the text before "
    "them is all that counts in the loss and its gradient. An answer is contradicted as far as the answers of other "
    "documents make it less likely: the sum of their negative relative influences on it. Over the checkpoints: the "
    "less probable an answer was on average after each, the more suspect it is; TracIn sums its gradient’s squared "
    "length times the step size."
)


def inspection_table(study: InspectionStudy) -> Table:
    """Every method by falling share found."""
    estimates = sorted(study.estimates().items(), key=lambda pair: -pair[1].value)
    rows = {METHODS[method]: [estimate] for method, estimate in estimates}
    return estimate_table("Swapped answers found", "ranked by", [f"found in the first {FIRST:.0%}"], rows)


def describe(study: InspectionStudy) -> str:
    """What was looked into."""
    n_wrong = [len(found.places["random"]) for found in study.inspections]
    n = study.inspections[0].n_documents
    return (
        f"In {len(n_wrong)} corpora of {n:,} documents, {n_wrong[0]:,} documents each were given the answer of another "
        "one, and a model was taught them all. An inspection from the most suspect document down looks for them."
    )


def write_inspection_page(study: InspectionStudy, output: Path) -> Path:
    """Write one self-contained page."""
    shares = np.linspace(0, 1, 101)
    lines = {label: (100 * shares, 100 * study.curve(method, shares)) for method, label in METHODS.items()}
    best = max(study.estimates().items(), key=lambda pair: pair[1].value)
    last = study.inspections[-1]
    block = Block(
        "Rankings",
        inspection_table(study),
        curves(lines, "documents inspected, %", "swapped answers found, %"),
        3.4,
        "Mean over the corpora.",
        (NOTE,),
    )
    page = Page(
        "swapped answers",
        study.name,
        "Is a wrong answer found by what the model had to learn by heart?",
        describe(study),
        (
            ("corpora", f"{len(study.inspections)}", ""),
            ("documents", f"{last.n_documents:,}", "each"),
            ("highest share found", figure(best[1].value, 2, False), METHODS[best[0]]),
        ),
        (block,),
        tuple((Path(found.store).parent.name, found.store) for found in study.inspections),
        (study.command, *(f'headwater sql --store {visible(last.store)} "{sql}"' for sql in statements(study))),
    )
    return write_study_page(page, output)


def statements(study: InspectionStudy) -> tuple[str, ...]:
    """What the last store can be asked: figures, contradicted documents, who contradicts the first, doubted ones."""
    factors = study.inspections[-1].factors_id
    return (
        f"select method, value, ci_low, ci_high, n from evaluations where run_id = '{factors}' and metric = '{METRIC}'",
        "select document_id, text, loss, self_influence, contradiction from answer_influences "
        "join sequences using (sequence_id) join documents using (document_id) "
        f"where factors_id = '{factors}' order by contradiction desc limit 20",
        "select a.sequence_id, d.text, o.relative_influence from answer_influences a "
        "join answer_opponents o using (factors_id, sequence_id) join sequences s on s.sequence_id = o.opponent_id "
        f"join documents d on d.document_id = s.document_id where factors_id = '{factors}' "
        "order by a.contradiction desc, opponent_rank limit 10",
        "select sequence_id, document_id, d.text, avg(exp(-t.loss)) as confidence from answer_trajectories t "
        "join sequences using (sequence_id) join documents d using (document_id) "
        f"where factors_id = '{factors}' and checkpoint > 0 group by all order by confidence limit 20",
    )
