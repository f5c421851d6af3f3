"""Memorisation: where the training sequences rank that hold a query's own words (Grosse et al. 2023, sec. 5.3.3)."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from storage.database import session
from storage.store import Store
from storage.text import printable
from tasks.evaluation.ranking import bootstrap_mean
from tasks.fact_plots import Theme
from tasks.studies.shown import Asked, examine, plain_powers, plain_table, require_layers
from tasks.study_page import Block, Page

HOW = (
    "A sequence quotes a query when it holds at least half of its phrases, the runs of five words of prompt and "
    "completion (all of them where there are fewer); case and punctuation do not count. Only scored sequences are "
    "looked through."
)


def study_memorization(store: Store, run: str, k: int, command: str) -> Page:
    """The rank of the first sequence that quotes each query, and the share of the first k that do."""
    with session(store) as connection:
        asked = examine(connection, store, run)
        found = asked.table("quotations", k=k)
        require_layers(asked, found)
        rows = found.to_pylist()
        quoted = [row for row in rows if row["first_rank"] is not None]
        first = sum(row["first_rank"] == 1 for row in quoted)
        return Page(
            "memorisation",
            asked.run_id,
            "Is what the model said a quotation?",
            f"Of {len(rows):,} queries {len(quoted):,} are quoted by a scored sequence; of {first:,} of these a "
            "quotation is the most influential sequence of all.",
            (
                ("queries", f"{len(rows):,}", ""),
                ("quoted", f"{len(quoted):,}", ""),
                ("quotation first", f"{first:,}", ""),
            ),
            (_ranks(asked, k, rows, quoted),),
            asked.origin(),
            (command,),
        )


def _ranks(asked: Asked, k: int, rows: list[dict], quoted: list[dict]) -> Block:
    def draw(canvas: Figure, theme: Theme) -> None:
        axes = canvas.subplots()
        ranks = np.sort([row["first_rank"] for row in quoted])
        axes.step(ranks, np.arange(1, len(ranks) + 1) / len(rows), where="post", color=theme.colours[0], lw=1.8)
        axes.plot(ranks, np.arange(1, len(ranks) + 1) / len(rows), "o", ms=4, color=theme.colours[0])
        axes.set_xscale("log")
        plain_powers(axes.xaxis)
        axes.set_xlim(left=0.9)
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("rank of the first quotation")
        axes.set_ylabel("share of the queries")

    table = plain_table(
        "Queries",
        "query",
        ("first rank", f"among first {k}", "quotations", "of", "longest", "prompt and completion"),
        [
            (
                row["query_id"],
                (
                    None if row["first_rank"] is None else f"{row['first_rank']:,}",
                    f"{row['n_among_first']}",
                    f"{row['n_quotations']:,}",
                    f"{row['n_scored']:,}",
                    None if row["largest_share"] is None else f"{row['largest_share']:.0%}",
                    printable((row["prompt"] + row["completion"])[:70]),
                ),
            )
            for row in rows
        ],
        ("prompt and completion",),
    )  # fmt: skip
    notes = (HOW,)
    if quoted:
        of = bootstrap_mean(np.array([row["n_among_first"] / min(k, row["n_quotations"]) for row in quoted]))
        notes = (
            f"Of the first {k} places that quotations could take they take {of.value:.0%} [{of.ci_low:.0%}, "
            f"{of.ci_high:.0%}], the mean over quoted queries.",
            HOW,
        )
    return Block(
        "Quotations",
        table,
        draw if quoted else None,
        2.8,
        "Of all queries, the share whose first quotation ranks so high or higher.",
        notes,
        asked.sql("quotations", k=k),
    )
