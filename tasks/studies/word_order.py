"""Word order: do texts that name the answer first teach a completion less (Grosse et al. 2023, Figs. 24 and 25)?"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from storage.database import query, session
from storage.pages import visible
from storage.prompts import make_prompt
from storage.stimuli import Stimulus
from storage.store import Store
from storage.text import printable
from tasks.evaluation.ranking import Estimate, bootstrap_mean
from tasks.fact_plots import Theme, drawable
from tasks.probes import Probe, ProbeSet
from tasks.studies.shown import filled, plain_table
from tasks.study_page import Block, Page, estimate_table

HOW = (
    "A text’s influence is that of one more training sequence. For each stimulus the mean over the texts of a kind is "
    "divided by the mean over those that keep the order, so 1 is as much as a paraphrase teaches; brackets are 95 % "
    "bootstrap intervals over stimuli. Grosse et al. found: order kept high whatever the paraphrase, completion "
    "removed about 0, flipped lower, and no more than flipped without the prompt’s part."
)
ORDER = "Does it matter which comes first, the question or the answer?"
TRANSLATIONS = "Does a text with the translation first teach to translate the other way round?"
TEXTS_SHOWN = 3  # stimuli whose texts are listed
ROOM = 1.1  # inches of a figure that a name along its axis takes lying


def as_probes(stimuli: list[Stimulus]) -> tuple[ProbeSet, ...]:
    """Each stimulus is a set of its own: one query, and its texts."""
    return tuple(
        ProbeSet(
            s.name,
            (make_prompt(s.prompt, s.completion, f"word-order {s.name}", "{}"),),
            tuple(Probe(kind, text) for kind, texts in s.sets.items() for text in texts),
        )
        for s in stimuli
    )


def study_word_order(store: Store, probings: dict[str, str], command: str, title: str = ORDER) -> Page:
    """Bars by kind of wording and model; `probings` are ids by the model's name."""
    ids = list(probings.values())
    with session(store) as connection:
        rows = query(connection, "studies/word_order", probings=ids).to_pylist()
        texts = query(connection, "studies/probe_texts", probings=ids[-1:], sets=TEXTS_SHOWN).to_pylist()
    kinds = list(dict.fromkeys(row["probe_group"] for row in sorted(rows, key=lambda row: row["place"])))
    found = {name: {kind: _mean(rows, probing, kind) for kind in kinds} for name, probing in probings.items()}
    n = len({row["probe_set"] for row in rows})
    n_texts = sum(row["n_texts"] for row in rows if row["probing_id"] == ids[-1])
    last = found[list(probings)[-1]]
    return Page(
        "word order",
        " and ".join(probings),
        title,
        _lead(last),
        (("stimuli", f"{n:,}", ""), ("texts", f"{n_texts:,}", ""), ("models", f"{len(probings)}", "")),
        (_bars(found, kinds, ids), _texts(texts, ids[-1])),
        (
            ("store", visible(str(store.root))),
            *(("probing", f"{probing}, {name}") for name, probing in probings.items()),
        ),
        (command,),
    )  # fmt: skip


def _mean(rows: list[dict], probing: str, kind: str) -> Estimate | None:
    parts = [
        row["part_of_kept"] for row in rows
        if row["probing_id"] == probing and row["probe_group"] == kind and row["part_of_kept"] is not None
    ]  # fmt: skip
    return bootstrap_mean(np.array(parts)) if parts else None


def _lead(found: dict[str, Estimate | None]) -> str:
    said = {kind: f"{e.value:.2f}" for kind, e in found.items() if e is not None and kind != "order kept"}
    if not said:
        return "No text that keeps the order raised its completion."
    return "As a part of what a text that keeps the order teaches: " + ", ".join(
        f"{kind} {value}" for kind, value in said.items()
    ) + "."  # fmt: skip


def _bars(found: dict[str, dict[str, Estimate | None]], kinds: list[str], ids: list[str]) -> Block:
    def draw(canvas: Figure, theme: Theme) -> None:
        axes = canvas.subplots()
        width = 0.8 / len(found)
        for k, (name, of) in enumerate(found.items()):
            there = [(place, of[kind]) for place, kind in enumerate(kinds)]
            for place, e in there:
                if e is None:
                    continue
                at = place + (k - (len(found) - 1) / 2) * width
                axes.bar(at, e.value, width=0.9 * width, color=theme.colours[k % len(theme.colours)], alpha=0.8,
                         label=drawable(name) if place == 0 else None)  # fmt: skip
                axes.plot([at, at], [e.ci_low, e.ci_high], color=theme.ink, lw=1.3)
        axes.axhline(0, color=theme.muted, lw=0.8)
        slant = {"rotation": 35, "ha": "right"} if canvas.get_figwidth() < ROOM * len(kinds) else {}
        axes.set_xticks(range(len(kinds)), [drawable(kind).replace(", ", ",\n") for kind in kinds], **slant)
        axes.set_ylabel("influence, part of order kept")
        axes.grid(axis="x", visible=False)
        if len(found) > 1:
            axes.legend(frameon=False)

    table = {kind: [of[kind] for of in found.values()] for kind in kinds}
    return Block(
        "Kinds of wording",
        estimate_table("Influence as a part of that of texts which keep the order", "texts", list(found), table),
        draw,
        3.2,
        "Mean over the stimuli; the line of a bar is its 95 % interval.",
        (HOW,),
        filled("word_order", probings=ids),
    )


def _texts(texts: list[dict], probing: str) -> Block:
    rows = [
        (row["probe_set"], (row["probe_group"], f"{row['influence']:.3g}", printable(row["text"][:110])))
        for row in texts
    ]
    return Block(
        "Text by text",
        plain_table("Influence of each text, nats", "stimulus", ("texts", "influence", "text"), rows),
        statement=filled("probe_texts", probings=[probing], sets=TEXTS_SHOWN),
    )
