"""Restrict: the first sequences where only a third of the layers counts (Grosse et al. 2023, Figs. 20 and 21)."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from storage.database import session
from storage.store import Store
from storage.text import printable
from tasks.evaluation.ranking import Estimate, bootstrap_mean
from tasks.fact_plots import Theme
from tasks.studies.shown import Asked, examine, plain_table, require_layers, require_words
from tasks.study_page import Block, Page, estimate_table

REGIONS = ("lower", "middle", "upper", "all")
SHOWN = 3  # sequences printed for each query and region
QUERIES = 10


def study_restrict(store: Store, run: str, k: int, command: str) -> Page:
    """Words that a query shares with its first k sequences, and how far the regions choose the same ones."""
    with session(store) as connection:
        asked = examine(connection, store, run)
        found = asked.table("restricted", k=k)
        require_layers(asked, found)
        rows = found.to_pylist()
        require_words(f"run {asked.run_id} of store {store.root}", found["word_overlap"].to_pylist())
        # Of one layer or two a third holds none; of words a query may have none.
        there = {row["region"] for row in rows if row["word_overlap"] is not None}
        overlaps = {region: _by_query(rows, region, "word_overlap") for region in REGIONS if region in there}
        alone = {region: _by_query(rows, region, "alone") for region in REGIONS[:3] if region in there}
        names = list(dict.fromkeys(row["query_id"] for row in rows))
        lowest = min(overlaps, key=lambda region: overlaps[region].value)
        return Page(
            "restricted to layers",
            asked.run_id,
            "What do the lower, the middle and the upper layers find?",
            f"Of the words of a query its first {k} sequences hold {overlaps['all'].value:.0%} where all layers count; "
            f"least where only the {lowest} ones do ({overlaps[lowest].value:.0%})."
            if lowest != "all"
            else f"Of the words of a query its first {k} sequences hold {overlaps['all'].value:.0%} where all layers "
            "count, fewer than where only a third of them does.",
            (("queries", f"{len(names):,}", ""), ("sequences", f"{k}", "for each region")),
            (_overlap(asked, k, overlaps, alone), _lists(asked, k, rows, names)),
            asked.origin(),
            (command,),
        )


def _by_query(rows: list[dict], region: str, column: str) -> Estimate:
    """The mean over queries of the mean over their sequences."""
    of: dict[str, list[float]] = {}
    for row in rows:
        if row["region"] == region and row[column] is not None:
            of.setdefault(row["query_id"], []).append(float(row[column]))
    return bootstrap_mean(np.array([np.mean(values) for values in of.values()]))


def _overlap(asked: Asked, k: int, overlaps: dict[str, Estimate], alone: dict[str, Estimate]) -> Block:
    def draw(canvas: Figure, theme: Theme) -> None:
        axes = canvas.subplots()
        for place, (region, e) in enumerate(overlaps.items()):
            axes.bar(place, e.value, width=0.6, color=theme.colours[5 if region == "all" else 0], alpha=0.8)
            axes.plot([place, place], [e.ci_low, e.ci_high], color=theme.ink, lw=1.4)
        axes.set_xticks(range(len(overlaps)), list(overlaps))
        axes.set_xlabel("layers that count")
        axes.set_ylabel("share of the query’s words")
        axes.grid(axis="x", visible=False)

    table = {region: (overlaps[region], alone.get(region)) for region in overlaps}
    return Block(
        "Words in common",
        estimate_table("Regions", "layers", ("words in common", "found by no other third"), table),
        draw,
        2.8,
        f"Share of the query’s distinct words that a sequence holds; mean over the first {k} of each query.",
        (
            "A region’s influence of a sequence is the sum over its layers, so the thirds sum to the whole. In "
            "brackets 95 % bootstrap intervals over queries. Grosse et al. found that middle layers choose by theme, "
            "lower and upper ones by words.",
        ),
        asked.sql("restricted", k=k),
    )


def _lists(asked: Asked, k: int, rows: list[dict], names: list[str]) -> Block:
    shown = [row for row in rows if row["query_id"] in names[:QUERIES] and row["rank"] <= SHOWN]
    table = plain_table(
        f"First {SHOWN} sequences of {min(len(names), QUERIES)} queries",
        "query",
        ("layers", "rank", "sequence", "influence", "words", "begins"),
        [
            (
                row["query_id"],
                (
                    row["region"], f"{row['rank']}", f"{row['sequence_id']}", f"{row['influence']:.3g}",
                    "·" if row["word_overlap"] is None else f"{row['word_overlap']:.2f}",
                    printable(row["text"].strip()[:80]),
                ),
            )
            for row in shown
        ],
        ("begins",),
    )  # fmt: skip
    return Block("Side by side", table, statement=asked.sql("restricted", k=k))
