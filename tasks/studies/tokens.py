"""Tokens: where the credit of a sequence stands by three definitions (Grosse et al. 2023, Eqs. 31, 36 and 38)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from matplotlib.figure import Figure

from storage.database import session
from storage.pages import number
from storage.store import Store
from tasks.coloured_text import ColouredText
from tasks.evaluation.ranking import Estimate, bootstrap_mean
from tasks.fact_plots import Theme
from tasks.studies.shown import Asked, examine, plain_powers
from tasks.study_page import Block, Page, Passage, bars, estimate_table

SHOWN = 6  # sequences in colours
PAIRS = {
    "update_output": "update and output",
    "update_input": "update and input",
    "output_input": "output and input",
    "read_input": "update where the token is read, and input",
}
FORMS = {
    "update_influence": "Update influence",
    "output_influence": "Output-token influence",
    "input_influence": "Input-token influence",
}
READING = (
    "Red raised the completion, teal lowered it; each text has a scale of its own, in nats.",
    "Update influence (Eq. 31), as in the report: a token’s colour is what learning to predict it did. The update "
    "happens at the position before; here it stands at the token that it predicts.",
    "Output-token influence (Eq. 36): red tokens become likelier, after those before them, when the weights move "
    "towards the completion. They sum to the influence of the sequence.",
    "Input-token influence (Eq. 38): with more of a red token’s embedding the sequence would raise the completion "
    "more. A token acts on all that come after it, so these sum to no influence.",
)
HOW = (
    "Spearman’s correlation over the tokens of a sequence, all but the first, each form standing at the token that it "
    "speaks of; means over sequences with 95 % bootstrap intervals. 1: the forms order tokens alike, 0: they have "
    "nothing in common."
)
STEPS = (
    "Output and input influence are limits of small steps; at a step that raises the query’s log-probability by r nats "
    "to first order they are off by this much of their length over a sequence’s tokens. What grows with r is the bend "
    "of the model, what grows as r falls is rounding: the limit needs no step."
)


@dataclass(frozen=True)
class Measured:
    """The rows that the study rests on."""

    forms: list[dict]
    agreement: list[dict]
    steps: list[dict]


def study_tokens(store: Store, run: str, queries: Sequence[str], k: int, command: str) -> Page:
    """Three colourings of each query's first sequences, how far they agree, and what a step of finite length costs."""
    chosen = list(queries)
    with session(store) as connection:
        asked = examine(connection, store, run)
        found = Measured(
            asked.table("token_forms", queries=chosen, k=k).to_pylist(),
            asked.table("token_agreement", queries=chosen).to_pylist(),
            asked.table("token_steps", queries=chosen).to_pylist(),
        )
        agreement = {
            words: bootstrap_mean(np.array(values))
            for name, words in PAIRS.items()
            if (values := [row[name] for row in found.agreement if row[name] is not None])
        }
        errors = [row["sum_error"] for row in found.steps if row["rise"] == 0 and row["sum_error"] is not None]
        pairs = {(row["query_id"], row["sequence_id"]) for row in found.forms}
        return Page(
            "tokens",
            asked.run_id,
            "Which tokens of a sequence does its influence come from?",
            _lead(agreement, len(pairs)),
            (
                ("queries", f"{len({query for query, _ in pairs}):,}", ""),
                ("sequences", f"{len(pairs):,}", "scored exactly"),
                ("output influences sum to the influence", f"± {max(errors, default=0):.0e}", "of it, at most"),
            ),
            (
                _passages(asked, found.forms, chosen, k),
                _agreement(asked, agreement, chosen),
                *_steps(asked, found.steps, chosen),
            ),
            asked.origin(),
            (command,),
        )


def _lead(agreement: dict[str, Estimate], n: int) -> str:
    if not agreement:
        return "No sequence has tokens enough to be ranked."
    said = "; ".join(f"{words} {number(round(e.value, 2))}" for words, e in agreement.items())
    return f"How far three ways of giving credit to tokens rank them alike, over {n:,} sequences: {said}."


def _passages(asked: Asked, forms: list[dict], queries: list[str], k: int) -> Block:
    """The first sequence of each query, then the second ones, until there are enough."""
    passages = []
    for (query, sequence), rows in groupby(forms, key=lambda row: (row["query_id"], row["sequence_id"])):
        if len(passages) == SHOWN:
            break
        of = list(rows)
        rank, influence = of[0]["influence_rank"], number(of[0]["influence"])
        title = f"{query} · sequence {sequence} · rank {rank} · influence {influence}"
        tokens = [row["token"] for row in of]
        passages.append(
            Passage(
                title,
                tuple(ColouredText(words, tokens, [row[name] for row in of]) for name, words in FORMS.items()),
            )
        )
    return Block(
        "The same sequences, three times",
        notes=READING,
        statement=asked.sql("token_forms", queries=queries, k=k),
        passages=tuple(passages),
    )


def _agreement(asked: Asked, agreement: dict[str, Estimate], queries: list[str]) -> Block:
    return Block(
        "How far they agree",
        estimate_table(
            "Rank correlation over tokens", "forms", ("mean",), {name: (e,) for name, e in agreement.items()}
        ),
        bars(agreement, "rank correlation"),
        2.2,
        "Mean over sequences; the line of a bar is its 95 % interval.",
        (HOW,),
        asked.sql("token_agreement", queries=queries),
    )


def _steps(asked: Asked, steps: list[dict], queries: list[str]) -> tuple[Block, ...]:
    """How far a step of finite length is from the limit; nothing where none was asked for."""
    rises = sorted({row["rise"] for row in steps if row["rise"] > 0})
    if not rises:
        return ()
    kinds = {"output_error": "output-token influence", "input_error": "input-token influence"}
    found = {
        name: [
            np.percentile([row[kind] for row in steps if row["rise"] == rise and row[kind] is not None], [10, 50, 90])
            for rise in rises
        ]
        for kind, name in kinds.items()
    }

    def draw(canvas: Figure, theme: Theme) -> None:
        axes = canvas.subplots()
        for n, (name, quantiles) in enumerate(found.items()):
            low, middle, high = np.array(quantiles).T
            axes.fill_between(rises, low, high, color=theme.colours[n], alpha=0.18, lw=0)
            axes.plot(rises, middle, "os"[n] + "-", color=theme.colours[n], lw=1.6, ms=4, label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        plain_powers(axes.xaxis)
        plain_powers(axes.yaxis)
        axes.set_xlabel("rise of the query’s log-probability, nats to first order")
        axes.set_ylabel("distance to the limit")
        axes.legend(frameon=False)

    table = {
        f"{rise:g} nats": [
            Estimate(float(of[n][1]), float(of[n][0]), float(of[n][2]), len(steps)) for of in found.values()
        ]
        for n, rise in enumerate(rises)
    }
    block = Block(
        "What the length of the step costs",
        estimate_table("Distance to the limit, relative to its length", "rise", tuple(found), table),
        draw,
        3.0,
        "Median over sequences; the band holds the middle 80 %.",
        (STEPS,),
        asked.sql("token_steps", queries=queries),
    )
    return (block,)
