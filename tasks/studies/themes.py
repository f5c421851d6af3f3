"""Themes: groups of queries, where their sequences act and what these share (Grosse et al. 2023, Fig. 19)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from storage.database import session
from storage.store import Store
from storage.text import printable
from tasks.evaluation.ranking import Estimate, bootstrap_mean
from tasks.fact_plots import Theme, grid
from tasks.studies.labels import in_figures, in_tables
from tasks.studies.shown import Asked, examine, heat_map, plain_table, require_layers
from tasks.study_page import Block, Page, estimate_table

SHOWN = 3  # sequences of one query of each group
COLUMNS = {
    "centre_of_mass": "centre of mass, layers",
    "word_overlap": "words in common",
    "top_share": "held by the first 1 %",
}
HOW = (
    "A query’s group is the field `group` of its metadata. Centre of mass: the mean layer of a query’s first "
    "sequences, weighted by their positive influence. Words in common: the share of a query’s distinct words that one "
    "of them holds. Held by the first 1 %: the part of the positive influence of all scored sequences. Means over the "
    "group’s queries, in brackets 95 % bootstrap intervals over them; one query alone has none. Grosse et al. found "
    "simple completions and memorised text in the upper layers, mathematics, code and translation in the middle ones."
)


def study_themes(store: Store, run: str, k: int, command: str) -> Page:
    """Profiles of the groups over their queries' k first sequences, and how far these are the same sequences."""
    with session(store) as connection:
        asked = examine(connection, store, run)
        profiles = asked.table("group_profiles", k=k)
        require_layers(asked, profiles)
        queries = asked.table("grouped_queries", k=k).to_pylist()
        shared = asked.table("shared_sequences", k=k).to_pylist()
        lists = asked.table("first_of_groups", n=SHOWN).to_pylist()
    raised = [row for row in queries if row["n_sequences"] is not None]
    groups = list(dict.fromkeys(row["query_group"] for row in raised))
    centres = {
        group: bootstrap_mean(np.array([row["centre_of_mass"] for row in raised if row["query_group"] == group]))
        for group in groups
    }
    lowest, highest = (pick(groups, key=lambda group: centres[group].value) for pick in (min, max))
    return Page(
        "themes",
        asked.run_id,
        "Do queries of a kind find their sequences in the same layers?",
        f"The first {k} sequences of a query act lowest in the network for {printable(lowest)} (centre of mass "
        f"{centres[lowest].value:.2f}) and highest for {printable(highest)} ({centres[highest].value:.2f})."
        if len(groups) > 1
        else f"All {len(raised):,} queries stand in one group, {printable(groups[0])}.",
        (("queries", f"{len(raised):,}", f"of {len(queries):,}"), ("groups", f"{len(groups)}", "")),
        (
            _figures(asked, k, groups, raised, centres, [row for row in queries if row["n_sequences"] is None]),
            _profiles(asked, k, groups, profiles.to_pylist()),
            _shared(asked, k, groups, shared),
            _lists(asked, groups, lists),
        ),
        asked.origin(),
        (command,),
    )


def _mean(rows: list[dict], group: str, column: str) -> Estimate:
    return bootstrap_mean(
        np.array([row[column] for row in rows if row["query_group"] == group and row[column] is not None])
    )


def _figures(
    asked: Asked, k: int, groups: list[str], raised: list[dict], centres: dict[str, Estimate], silent: list[dict]
) -> Block:
    labels, counts = (
        in_figures(groups, "group"),
        [sum(row["query_group"] == group for row in raised) for group in groups],
    )

    def draw(canvas: Figure, theme: Theme) -> None:
        axes = canvas.subplots()
        for place, (group, n) in enumerate(zip(groups, counts, strict=True)):
            e = centres[group]
            axes.plot([e.ci_low, e.ci_high], [place, place], color=theme.ink, lw=1.4)
            axes.plot(e.value, place, "o", ms=6, color=theme.colours[0], mfc=theme.colours[0] if n > 1 else "none")
        axes.set_yticks(range(len(groups)), list(labels.values()), color=theme.ink)
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("centre of mass, layers from 0")

    shown = in_tables(labels)
    table: dict[str, Sequence[Estimate | None]] = {
        f"{printable(shown[group])}, {n} {'queries' if n > 1 else 'query'}": [
            _mean(raised, group, column) for column in COLUMNS
        ]
        for group, n in zip(groups, counts, strict=True)
    }
    names = ", ".join(printable(row["query_id"]) for row in silent[:10])
    more = f" and {len(silent) - 10} more" if len(silent) > 10 else ""
    left_out = (f"Left out, because no sequence raised them: {names}{more}.",) if silent else ()
    return Block(
        "Group by group",
        estimate_table(f"First {k} sequences of each query", "group", list(COLUMNS.values()), table),
        draw,
        0.9 + 0.3 * len(groups),
        "Mean over the group’s queries with its 95 % interval; an open circle is a single query.",
        (HOW, *left_out),
        asked.sql("grouped_queries", k=k),
    )


def _profiles(asked: Asked, k: int, groups: list[str], profiles: list[dict]) -> Block:
    spans = dict.fromkeys((row["first_layer"], row["last_layer"]) for row in sorted(profiles, key=lambda r: r["band"]))
    names = [f"{first}" if first == last else f"{first}–{last}" for first, last in spans]
    values = np.zeros((len(groups), len(spans)))
    for row in profiles:
        values[groups.index(row["query_group"]), list(spans).index((row["first_layer"], row["last_layer"]))] = row[
            "share"
        ]
    labels = in_figures(groups, "group")
    shown = in_tables(labels)
    rows = [
        (printable(shown[group]), [f"{value:.3f}" for value in of]) for group, of in zip(groups, values, strict=True)
    ]
    return Block(
        "Profiles over the layers",
        plain_table("Mean share of positive influence", "group", [f"layer {name}" for name in names], rows),
        heat_map(values, list(labels.values()), names, "layer", "", "mean share"),
        1.1 + 0.35 * len(groups),
        "The mean over the group’s queries of the mean share over each one’s first sequences; a row sums to 1.",
        (f"An even spread would give {1 / len(spans):.2f}." if all(a == b for a, b in spans) else "",),
        asked.sql("group_profiles", k=k),
    )


def _shared(asked: Asked, k: int, groups: list[str], shared: list[dict]) -> Block:
    values = np.full((len(groups), len(groups)), np.nan)
    for row in shared:
        if row["shared"] is not None:
            values[groups.index(row["query_group"]), groups.index(row["other_group"])] = row["shared"]
    labels = in_figures(groups, "group")
    spoken = [printable(name) for name in in_tables(labels).values()]
    rows = [
        (name, [None if np.isnan(value) else f"{value:.3f}" for value in of])
        for name, of in zip(spoken, values, strict=True)
    ]
    return Block(
        "Sequences in common",
        plain_table(f"Share of the first {k} sequences that two queries have in common", "group", spoken, rows),
        grid(
            values,
            [f"{label}, {place}" for place, label in enumerate(labels.values(), start=1)],
            [f"{place}" for place in range(1, len(groups) + 1)],
            "group",
            "",
        ),
        1.1 + 0.35 * len(groups),
        "Mean over pairs of different queries, one of each group; on the diagonal pairs within a group.",
        ("Where the diagonal is no higher than the rest, a list says nothing of the query’s kind.",),
        asked.sql("shared_sequences", k=k),
    )


def _lists(asked: Asked, groups: list[str], lists: list[dict]) -> Block:
    shown = in_tables(in_figures(groups, "group"))
    rows = [
        (
            printable(shown[row["query_group"]]),
            (
                printable(row["query_id"]), f"{row['rank']}", f"{row['sequence_id']}", f"{row['influence']:.3g}",
                printable(row["text"].strip()[:80]),
            ),
        )
        for row in lists
    ]  # fmt: skip
    asks = {row["query_id"]: f"{row['prompt'][-60:]} → {row['completion'][:60]}" for row in lists}
    return Block(
        "Side by side",
        plain_table(
            f"First {SHOWN} sequences of one query of each group",
            "group",
            ("query", "rank", "sequence", "influence, nats", "begins"),
            rows,
            words=("query", "begins"),
        ),
        notes=tuple(f"{printable(name)}: {printable(text)}" for name, text in asks.items()),
        statement=asked.sql("first_of_groups", n=SHOWN),
    )
