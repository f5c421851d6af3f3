"""Scale: what models of several sizes find for the same queries, side by side (Grosse et al. 2023, sec. 5.3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from storage.database import query, rows, session
from storage.errors import InputError
from storage.pages import visible
from storage.store import Store
from storage.text import printable
from tasks.evaluation.ranking import Estimate, bootstrap_mean
from tasks.fact_plots import Theme, drawable
from tasks.studies.shown import filled, plain_table, require_words
from tasks.study_page import Block, Page, estimate_table

SHOWN, QUERIES = 3, 6  # sequences of each model, of so many queries
HOW = (
    "Words in common: the share of a query’s distinct words that one of its first sequences holds. In brackets 95 % "
    "bootstrap intervals over queries. Grosse et al. found that the sequences of small models share words with the "
    "query, and those of large ones its thought."
)


@dataclass(frozen=True)
class Model:
    """One model of a store, and the run that is read."""

    run_id: str
    name: str
    n_parameters: int


def study_scale(store: Store, k: int, command: str) -> Page:
    """Words in common with the query by model size, and how far the models choose the same sequences."""
    with session(store) as connection:
        models = [
            Model(row["run_id"], Path(row["model"]).name, row["n_parameters"])
            for row in rows(connection, "studies/models")
        ]
        if len(models) < 2:
            raise InputError(
                f"store {store.root}",
                expected="complete runs of two models or more, by methods that split influence by layer",
                found="one model" if models else "none",
                remedy="Trace the same queries with another model of the same tokenizer: headwater trace --model.",
            )
        asked = {"runs": [model.run_id for model in models], "k": k}
        found = query(connection, "studies/scale", **asked).to_pylist()
    names = list(dict.fromkeys(row["query_id"] for row in found))
    if not names:
        raise InputError(
            f"store {store.root}",
            expected="a query that the latest runs of all its models share, and that some sequence raised",
            found=f"none in {', '.join(asked['runs'])}",
            remedy="Trace the same queries with every model.",
        )
    require_words(f"store {store.root}", [row["word_overlap"] for row in found])
    overlaps = [_by_query(found, model, "word_overlap", len(models)) for model in models]
    shared = [_by_query(found, model, "elsewhere", len(models)) for model in models]
    first, last = overlaps[0], overlaps[-1]
    return Page(
        "scale",
        f"{len(models)} models",
        "What do larger models find that smaller ones do not?",
        f"The first {k} sequences of a query hold {first.value:.0%} of its words under the smallest model and "
        f"{last.value:.0%} under the largest; of the sequences of the largest {shared[-1].value:.0%} are, on average, "
        "among the first of another model too.",
        (("models", f"{len(models)}", ""), ("queries", f"{len(names):,}", "that all share")),
        (_sizes(models, overlaps, shared, asked), _lists(models, found, names, asked)),
        (("store", visible(str(store.root))), *((model.run_id, model.name) for model in models)),
        (command,),
    )


def _by_query(found: list[dict], model: Model, column: str, n_models: int) -> Estimate:
    """The mean over queries of the mean over their first sequences; `elsewhere` as a share of the other models."""
    of: dict[str, list[float]] = {}
    for row in found:
        if row["run_id"] == model.run_id and row[column] is not None:
            of.setdefault(row["query_id"], []).append(row[column] / (n_models - 1 if column == "elsewhere" else 1))
    return bootstrap_mean(np.array([np.mean(values) for values in of.values()]))


def _sizes(models: list[Model], overlaps: list[Estimate], shared: list[Estimate], asked: dict) -> Block:
    def draw(canvas: Figure, theme: Theme) -> None:
        axes = canvas.subplots()
        sizes = [model.n_parameters for model in models]
        for place, e in zip(sizes, overlaps, strict=True):
            axes.plot([place, place], [e.ci_low, e.ci_high], color=theme.ink, lw=1.3)
        axes.plot(sizes, [e.value for e in overlaps], "o-", color=theme.colours[0], lw=1.4)
        for model, e in zip(models, overlaps, strict=True):
            axes.annotate(
                drawable(model.name), (model.n_parameters, e.value), (6, 6), textcoords="offset points", color=theme.ink
            )
        axes.set_xscale("log")
        axes.margins(x=0.2)
        axes.set_xticks(sizes, [size_of(n) for n in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("parameters")
        axes.set_ylabel("share of the query’s words")

    table = {
        f"{model.name}, {model.n_parameters:,} parameters": of
        for model, *of in zip(models, overlaps, shared, strict=True)
    }
    return Block(
        "Words in common by size",
        estimate_table("Models", "model", ("words in common", "chosen by other models"), table),
        draw,
        3.0,
        f"Mean over the first {asked['k']} sequences of each query; the line of a point is its 95 % interval.",
        (HOW,),
        filled("scale", **asked),
    )


def size_of(n: int) -> str:
    """A number of parameters as models are called by it: 166 k, 1.3 M, 52 B."""
    for unit, word in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if n >= 0.9995 * unit:
            return f"{float(f'{n / unit:.3g}'):g}{word}"
    return f"{n}"


def _lists(models: list[Model], found: list[dict], names: list[str], asked: dict) -> Block:
    of = {model.run_id: model.name for model in models}
    shown = [row for row in found if row["query_id"] in names[:QUERIES] and row["rank"] <= SHOWN]
    table = plain_table(
        f"First {SHOWN} sequences",
        "query",
        ("rank", "model", "sequence", "influence", "words", "begins"),
        [
            (
                row["query_id"],
                (
                    f"{row['rank']}", of[row["run_id"]], f"{row['sequence_id']}", f"{row['influence']:.3g}",
                    "·" if row["word_overlap"] is None else f"{row['word_overlap']:.2f}",
                    printable(row["text"].strip()[:80]),
                ),
            )
            for row in shown
        ],
        ("begins",),
    )  # fmt: skip
    return Block("Side by side", table, statement=filled("scale", **asked))
