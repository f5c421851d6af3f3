"""Tables and page of a retraining study: which method predicts what a model becomes without some of its text."""

from __future__ import annotations

from pathlib import Path

from storage.pages import visible
from tasks.fact_tables import Table, figure, label_of
from tasks.retraining_scores import RISES, RetrainingStudy
from tasks.study_page import Block, Page, bars, estimate_table, write_study_page

RISE, PER_TOKEN = RISES.values()
NOTES = {
    "lds": "LDS: over random subsets, Spearman’s correlation of the sum of influences with the retrained model’s log "
    "p of the completion, mean over queries (Park et al. 2023, arXiv 2303.14186). In brackets the 95 % bootstrap "
    "interval over subsets and queries. A lead is the difference on the same subsets and queries.",
    "rise": "Loss rise (query-loss difference, QLD): nats that a completion costs more once the model is retrained "
    "without the sequences that the method ranks first for it, mean over the queries asked again; 95 % bootstrap "
    "intervals over them.",
    "solver": "λ is a share of each module’s mean eigenvalue. The factors are fitted once; only the solve differs.",
}


def lds_table(study: RetrainingStudy) -> Table:
    """Every method by falling LDS, with its lead and what its first sequences are worth."""
    lead = next((name for of in study.figures.values() for name in of if name.startswith("lds_over_")), None)
    titles = {"lds": "LDS", RISE: "loss rise, nats", PER_TOKEN: "per token"}
    if lead is not None:
        titles[lead] = f"lead over {label_of(lead.removeprefix('lds_over_'))}"
    metrics = [name for name in ("lds", lead, RISE, PER_TOKEN) if any(name in of for of in study.figures.values())]
    rows = {named(name): [study.figures[name].get(metric) for metric in metrics] for name in study.by_score()}
    return estimate_table("Methods by LDS", "method", [titles[name] for name in metrics if name], rows)


def sweep_table(study: RetrainingStudy) -> Table | None:
    """LDS by damping, the run's own among them; none where no other was asked for."""
    if not study.sweep:
        return None
    methods = list(next(iter(study.sweep.values())))
    rows = {f"{relative:g}": [found[name] for name in methods] for relative, found in sorted(study.sweep.items())}
    return estimate_table("LDS by damping", "λ", [named(name) for name in methods], rows)


def named(method: str) -> str:
    """A method's name for people."""
    return {"cg": "CG on EK-FAC"}.get(method, label_of(method))


def describe(study: RetrainingStudy) -> str:
    """What was trained, in a sentence or two."""
    order = "in the order of the traced model’s training" if study.order == "same" else "each in an order of its own"
    return (
        f"{study.n_subsets:,} models were taught random {study.n_sequences - study.n_left_out:,} of the "
        f"{study.n_sequences:,} training sequences, {order}, and asked {study.n_queries:,} queries. "
        f"{study.n_retrainings:,} retrainings in all, {study.seconds:.1f} s each."
    )


def describe_spread(study: RetrainingStudy) -> str:
    """How much of what was measured is chance."""
    spread, words = study.spread, []
    if spread.over_subsets is not None:
        words.append(f"over subsets a query’s loss varies by {spread.over_subsets:.3f} nats")
    if spread.over_seeds is not None:
        words.append(f"over orders of all sequences by {spread.over_seeds:.3f}")
    said = " and ".join(words) + " (standard deviations, median over queries). " if words else ""
    return (
        f"{said[:1].upper()}{said[1:]}The model that was traced and the one retrained on everything differ by at most "
        f"{spread.difference:.2g} nats."
    )


def notes(study: RetrainingStudy) -> tuple[str, ...]:
    """What is to be known of the figures that the study has."""
    risen = any(RISE in of for of in study.figures.values())
    ended = [
        f"{named(method)} ended after {r.iterations:,} iterations with a residual of {r.median:.2g} times the gradient "
        f"(median over queries; {r.largest:.2g} at most; no answer at all has 1)."
        if r.iterations
        else f"{named(method)} left a residual of {r.median:.2g} times the gradient (median; {r.largest:.2g} at most)."
        for method, r in study.remainders.items()
    ]
    return (NOTES["lds"], *([NOTES["rise"]] if risen else []), *ended, describe_spread(study))


def write_retraining_page(study: RetrainingStudy, output: Path) -> Path:
    """Write one self-contained page about a study."""
    scores = {named(name): study.figures[name]["lds"] for name in study.by_score()}
    rises = {named(name): study.figures[name][RISE] for name in study.by_score() if RISE in study.figures[name]}
    blocks = [
        Block(
            "Methods",
            lds_table(study),
            bars(scores, "LDS"),
            0.75 + 0.34 * len(scores),
            "The bar is the mean over queries, the line its 95 % interval.",
            notes(study),
        )
    ]
    if rises:
        words = f"What each method’s first {study.n_first:,} sequences for a query are worth to it."
        blocks.append(Block("Without the first sequences", None, bars(rises, "nats"), 0.75 + 0.34 * len(rises), words))
    if study.sweep:
        blocks.append(Block("Damping", sweep_table(study), notes=(NOTES["solver"],)))
    best = study.by_score()[0]
    page = Page(
        "retraining",
        study.study_id,
        "Do influences predict what retraining does?",
        describe(study),
        (
            ("queries", f"{study.n_queries:,}", ""),
            ("sequences", f"{study.n_sequences:,}", ""),
            ("subsets", f"{study.n_subsets:,}", ""),
            ("highest LDS", figure(study.figures[best]["lds"].value, 3, False), named(best)),
        ),
        tuple(blocks),
        (
            ("store", study.store),
            ("study", study.study_id),
            ("run", study.run_id),
            ("model", study.model),
            ("retrainings", f"{study.n_retrainings:,}"),
            ("one retraining", f"{study.seconds:.1f} s"),
        ),
        (study.command, *(f'headwater sql --store {visible(study.store)} "{text}"' for text in statements(study))),
    )
    return write_study_page(page, output)


def statements(study: RetrainingStudy) -> tuple[str, ...]:
    """What else there is to be asked."""
    return (
        f"select method, metric, value, ci_low, ci_high, n from evaluations where run_id = '{study.run_id}' "
        "order by metric, value desc",
        f"select method, avg(lds) as lds from datamodelling_scores('{study.study_id}', '{study.run_id}') "
        "group by method order by lds desc",
        f"select kind, retraining, seed, avg(loss) as nats from retrainings where study_id = '{study.study_id}' "
        "group by all order by nats desc",
    )
