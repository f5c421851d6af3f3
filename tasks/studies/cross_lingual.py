"""Cross-lingual: influence of a query's sequences on its translations (Grosse et al. 2023, Fig. 16)."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from storage.database import query, rows, session
from storage.digests import digest_of
from storage.errors import InputError
from storage.pages import visible
from storage.sequences import all_sequence_ids, corpus_parts
from storage.store import Store
from storage.text import printable
from storage.translations import LONGEST, Translated
from tasks.evaluation.ranking import Estimate, bootstrap_mean
from tasks.fact_plots import Theme
from tasks.probes import Probe, ProbeSet
from tasks.sampling import uniform_sample
from tasks.studies.labels import in_figures, in_tables
from tasks.studies.shown import Signed, filled, plain_table, signed_maps
from tasks.study_page import Block, Page, estimate_table

FIRST, RANDOM = "first", "random"
SHOWN = 2  # queries with a heat map of their own
WORDS = ("language", "prompt", "completion")
ASKED_SHOWN = 12  # queries whose words are listed
HOW = (
    "The columns are the sequences that raised the query most in its first language, by that influence; the rows are "
    "languages. A cell is the influence of that same sequence, as it stands in the store, on the query in that "
    "language: of one more copy in the corpus times its size. Red raises, teal lowers; each model has its own scale. "
    "Grosse et al. found rows of other languages near zero in a small model, and ever larger ones with size."
)
RATIO = (
    "For each query: the mean influence of its first sequences in a language, divided by their mean influence in the "
    "first language; beside it the same of sequences drawn at random, with the same divisor. 0 is no influence, 1 as "
    "much as in the first language, and more where completions are of more tokens or of less probable ones, which any "
    "sequence moves further: compare with the random ones. In brackets 95 % bootstrap intervals over queries. The "
    "sequences were chosen for the first language, which flatters that row and no other."
)
CUT = (
    "A sentence is cut at the white space nearest to its middle, or at its middle character where it has none there: "
    f"what stands before is the prompt, the rest is asked for. Sentences of more than {LONGEST} bytes in any language "
    "are left out. log p is that of the completion under the model, in nats per token, mean over the queries: where it "
    "is low, the model does not know the language, and nothing can be said of it."
)


def as_probes(
    store: Store, run_id: str, asked: list[Translated], k: int, n_random: int, seed: int
) -> tuple[ProbeSet, ...]:
    """Each query is a set: its prompts in every language, its k first sequences by the run, and some drawn at random.

    A query that no sequence raised in the first language has no set.
    """
    with session(store) as connection:
        found: dict[str, list[int]] = {}
        for row in rows(connection, "studies/first_sequences", run=run_id, k=k):
            found.setdefault(row["query_id"], []).append(row["sequence_id"])
    corpus = all_sequence_ids(corpus_parts(store))
    sets = []
    for of in asked:
        name = next(iter(of.prompts.values())).query_id
        if name not in found:
            continue
        others = corpus[~np.isin(corpus, found[name])]
        drawn = uniform_sample(others, n_random, seed + int(digest_of(name)[:8], 16)).tolist()
        probes = [
            Probe(kind, sequence_id=s) for kind, of_kind in ((FIRST, found[name]), (RANDOM, drawn)) for s in of_kind
        ]
        sets.append(ProbeSet(of.name, tuple(of.prompts.values()), tuple(probes)))
    if not sets:
        raise InputError(
            f"run {run_id} of store {store.root}",
            expected="a query that some sequence raised in its first language",
            found=f"none of {len(asked)}",
            remedy="Ask other sentences, or let more candidates be scored (--candidates, --filter none).",
        )
    return tuple(sets)


def study_cross_lingual(store: Store, probings: dict[str, str], asked: list[Translated], command: str) -> Page:
    """Heat maps of the first queries, and the part that is left in each language; `probings` are ids by model."""
    ids, languages = list(probings.values()), list(dict.fromkeys(name for of in asked for name in of.prompts))
    with session(store) as connection:
        cells = query(connection, "studies/cross_lingual", probings=ids).to_pylist()
        parts = query(connection, "studies/translated_ratios", probings=ids, first=languages[0]).to_pylist()
        there = {row["query"] for row in cells}
        shown = [of.name for of in asked if of.name in there][:SHOWN]
        named = sorted({row["sequence_id"] for row in cells if row["query"] in shown and row["kind"] == FIRST})
        texts = {row["sequence_id"]: row["text"] for row in rows(connection, "studies/sequence_texts", sequences=named)}
    ratios = {
        (name, kind): {language: _mean(parts, probing, language, kind) for language in languages}
        for name, probing in probings.items()
        for kind in (FIRST, RANDOM)
    }
    return Page(
        "cross-lingual",
        " and ".join(probings),
        "Do a query’s sequences act on its translations, too?",
        _lead(ratios, list(probings), languages),
        (
            ("queries", f"{len(there):,}", f"of {len(asked):,}"),
            ("languages", f"{len(languages)}", ""),
            ("models", f"{len(probings)}", ""),
        ),
        (
            _left(ratios, languages, ids, _left_out(asked, cells, probings)),
            *(_maps(name, cells, probings, languages, texts) for name in shown),
            _knowledge(parts, probings, languages),
            _words([of for of in asked if of.name in there][:ASKED_SHOWN], languages),
        ),
        (("store", visible(str(store.root))), *(("probing", f"{p}, {name}") for name, p in probings.items())),
        (command,),
    )


def _mean(parts: list[dict], probing: str, language: str, kind: str) -> Estimate | None:
    found = [
        row[f"{kind}_ratio"] for row in parts
        if row["probing_id"] == probing and row["language"] == language and row[f"{kind}_ratio"] is not None
    ]  # fmt: skip
    return bootstrap_mean(np.array(found)) if found else None


def _lead(ratios: dict, names: list[str], languages: list[str]) -> str:
    def said(name: str) -> str:
        others = [
            f"{of.value:.2f} in {printable(language)} (at random, {floor.value:.2f})"
            for language in languages[1:]
            if (of := ratios[name, FIRST][language]) is not None
            and (floor := ratios[name, RANDOM][language]) is not None
        ]
        return f"under {printable(name)} {', '.join(others)}"

    words = (
        f"As a part of what they do for the query in {printable(languages[0])}, its first sequences do, for its "
        f"translation: {'; '.join(map(said, names))}."
    )
    return re.sub(r"(?<= )-(?=\d)", "−", words)


def _left_out(asked: list[Translated], cells: list[dict], probings: dict[str, str]) -> tuple[str, ...]:
    notes = []
    for name, probing in probings.items():
        there = {row["query"] for row in cells if row["probing_id"] == probing}
        missing = [printable(of.name) for of in asked if of.name not in there]
        if missing:
            more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
            notes.append(f"Left out under {printable(name)}, because no sequence raised them: "
                         f"{', '.join(missing[:10])}{more}.")  # fmt: skip
    return tuple(notes)


def _left(ratios: dict, languages: list[str], ids: list[str], notes: tuple[str, ...]) -> Block:
    names = list(dict.fromkeys(name for name, _ in ratios))
    labels, models = in_figures(languages, "language"), in_figures(names, "model")

    def draw(canvas: Figure, theme: Theme) -> None:
        axes = canvas.subplots()
        width = 0.8 / len(names)
        for k, name in enumerate(names):
            for place, language in enumerate(languages):
                at = place + (k - (len(names) - 1) / 2) * width
                e, floor = ratios[name, FIRST][language], ratios[name, RANDOM][language]
                if e is not None:
                    axes.bar(at, e.value, width=0.9 * width, color=theme.colours[k % 5], alpha=0.8,
                             label=models[name] if place == 0 else None)  # fmt: skip
                    axes.plot([at, at], [e.ci_low, e.ci_high], color=theme.ink, lw=1.3)
                if floor is not None:
                    said = "random sequences" if (k, place) == (0, 0) else None
                    axes.plot(at, floor.value, "D", ms=4.5, color=theme.muted, mec=theme.ink, mew=0.6, label=said)
        axes.axhline(0, color=theme.muted, lw=0.8)
        axes.set_xticks(range(len(languages)), list(labels.values()))
        axes.set_xlabel("language of the query")
        axes.set_ylabel(f"influence, part of that on {labels[languages[0]]}")
        axes.grid(axis="x", visible=False)
        canvas.legend(frameon=False, loc="outside lower center", ncols=2)

    shown, columns = in_tables(labels), [f"{name}, {kind}" for name in names for kind in (FIRST, RANDOM)]
    table: dict[str, Sequence[Estimate | None]] = {
        printable(shown[language]): [ratios[name, kind][language] for name in names for kind in (FIRST, RANDOM)]
        for language in languages
    }
    return Block(
        "What is left in other languages",
        estimate_table("Influence, as a part of that on the first language", "language", columns, table),
        draw,
        3.0,
        "Mean over the queries; the line of a bar is its 95 % interval, a diamond the mean of random sequences.",
        (RATIO, *notes),
        filled("translated_ratios", probings=ids, first=languages[0]),
    )


def _maps(name: str, cells: list[dict], probings: dict[str, str], languages: list[str], texts: dict[int, str]) -> Block:
    models, labels, listed = in_figures(list(probings), "model"), in_figures(languages, "language"), []
    maps: list[Signed] = []
    for model, probing in probings.items():
        of = [row for row in cells if (row["probing_id"], row["query"], row["kind"]) == (probing, name, FIRST)]
        columns = {row["rank"]: row["sequence_id"] for row in sorted(of, key=lambda row: row["rank"])}
        if not columns:
            continue
        values = np.full((len(languages), len(columns)), np.nan)
        for row in of:
            values[languages.index(row["language"]), row["rank"] - 1] = row["influence"]
        maps.append(Signed(models[model], values, list(labels.values()), [f"{s}" for s in columns.values()]))
        listed += [
            (printable(model), (f"{rank}", f"{s}", *(None if np.isnan(v) else f"{v:.3g}" for v in values[:, rank - 1]),
                                printable(texts[s].strip()[:80])))
            for rank, s in columns.items()
        ]  # fmt: skip
    spoken = [printable(language) for language in in_tables(labels).values()]
    return Block(
        f"Sequence by sequence: {printable(name)}",
        plain_table(
            "Influence of each sequence, nats", "model", ("rank", "sequence", *spoken, "begins"), listed, ("begins",)
        ),
        signed_maps(maps, "sequence, by its influence in the first language", "influence, nats"),
        len(maps) * (0.55 + 0.3 * len(languages)) + 0.4,
        f"Influence of the first {max(len(of.columns) for of in maps)} sequences of the query in its first language.",
        (HOW,),
        filled("cross_lingual", probings=list(probings.values())),
    )


def _knowledge(parts: list[dict], probings: dict[str, str], languages: list[str]) -> Block:
    def of(probing: str, language: str) -> Estimate | None:
        found = [
            row["log_probability_per_token"] for row in parts
            if (row["probing_id"], row["language"]) == (probing, language)
        ]  # fmt: skip
        return bootstrap_mean(np.array(found)) if found else None

    spoken = in_tables(in_figures(languages, "language"))
    table: dict[str, Sequence[Estimate | None]] = {
        printable(spoken[name]): [of(probing, name) for probing in probings.values()] for name in languages
    }
    return Block(
        "Does the model know the language?",
        estimate_table("log p of the completions, nats per token", "language", list(probings), table),
        notes=(CUT,),
        statement=filled("translated_ratios", probings=list(probings.values()), first=languages[0]),
    )


def _words(asked: list[Translated], languages: list[str]) -> Block:
    spoken = in_tables(in_figures(languages, "language"))
    listed = [
        (printable(of.name), (printable(spoken[language]), printable(p.prompt), printable(p.completion)))
        for of in asked
        for language, p in of.prompts.items()
    ]
    return Block("What was asked", plain_table("Queries", "query", WORDS, listed, WORDS))
