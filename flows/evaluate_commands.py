"""Evaluations on the command line: headwater evaluate fact-tracing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from flows.console import listed, make_console, make_table, say_page, say_statement, typed_command
from flows.options import (
    BadOption,
    ClusterOption,
    ContextOption,
    FitOption,
    HeadsOption,
    LayersOption,
    LengthOption,
    PrecisionOption,
    RevisionOption,
    VocabularyOption,
    WidthOption,
    model_words,
    shape_words,
)
from storage.text import printable

if TYPE_CHECKING:
    from tasks.fact_scores import FactStudy
    from tasks.fact_tables import Cell, Table

evaluate_app = typer.Typer(no_args_is_help=True, help="How good the methods are, measured where the truth is known.")
NAMED = 5  # of what was left out


@evaluate_app.command("fact-tracing")
def fact_tracing(
    facts: Annotated[str, typer.Option("--set", help="folder with abstracts.parquet and queries.parquet")],
    store: Annotated[
        str | None, typer.Option(help="directory of a store for this set alone; default: the set's name and -store")
    ] = None,
    model: Annotated[str | None, typer.Option(help="model to be taught the set; none: a new one, untrained")] = None,
    revision: RevisionOption = None,
    checkpoints: Annotated[str | None, typer.Option(help="directory of a training that is over, instead")] = None,
    trainings: Annotated[str | None, typer.Option(help="where trainings go; default: beside the store")] = None,
    methods: Annotated[list[str] | None, typer.Option(help="methods, by commas; the default names all")] = None,
    seeds: Annotated[int, typer.Option(help="trainings, each with candidates of its own", min=1)] = 3,
    queries: Annotated[int, typer.Option(help="at most so many, the same for every seed", min=1)] = 1000,
    patched: Annotated[int, typer.Option(help="queries of the tail-patch column; 0: none", min=0)] = 50,
    epochs: Annotated[int, typer.Option(help="passes over the documents", min=1)] = 10,
    batch_size: Annotated[int, typer.Option(help="of the training: sequences per step", min=1)] = 8,
    learning_rate: Annotated[float, typer.Option(help="of the training: peak of Adam's step size")] = 2e-3,
    save: Annotated[int, typer.Option(help="checkpoints, each at twice the step of the one before", min=1)] = 8,
    layers: LayersOption = 4,
    width: WidthOption = 128,
    heads: HeadsOption = 4,
    context: ContextOption = 128,
    vocabulary: VocabularyOption = 4096,
    sequence_length: LengthOption = None,
    bad_documents: BadOption = "refuse",
    modules: Annotated[str, typer.Option(help="of EK-FAC: mlp, attention, all, or a regular expression")] = "mlp",
    fit_sequences: FitOption = 2000,
    scoring_batch: Annotated[int, typer.Option(help="sequences per scoring pass", min=1)] = 32,
    precision: PrecisionOption = "auto",
    cluster: ClusterOption = "none",
    output: Annotated[str | None, typer.Option("--output", "-o", help="HTML page to write")] = "fact-tracing.html",
) -> None:
    """Which method finds the text that states a fact: a table, a page, and rows in `evaluations`."""
    from flows.fact_tracing import METHODS, FactTracingParameters
    from flows.fact_tracing import fact_tracing as fact_tracing_flow
    from tasks.fact_page import write_fact_page

    asked = [name for given in methods or [] for name in listed(given)]
    parameters = FactTracingParameters.model_validate(
        {
            "store": store or f"{Path(facts).resolve().name}-store",
            "facts": facts,
            "model": model_words(model, revision),
            "checkpoints": checkpoints,
            "trainings": trainings,
            "methods": asked or METHODS,
            "seeds": seeds,
            "queries": queries,
            "patched": patched,
            "shape": shape_words(layers, width, heads, context, vocabulary),
            "training": {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate,
                         "checkpoints": save},
            "cut": {"sequence_length": sequence_length, "bad_documents": bad_documents},
            "fit": {"modules": modules, "sequences": fit_sequences},
            "compute": {"batch_size": scoring_batch, "precision": precision},
            "cluster": cluster,
        }
    )  # fmt: skip
    began = time.perf_counter()
    study = fact_tracing_flow(parameters, typed_command())
    print_study(study, make_console())
    if output is not None:
        say_page(write_fact_page(study, Path(output)), began)
    run = study.runs[-1].run_id
    statement = f"select method, metric, value, ci_low, ci_high, n from evaluations where run_id = '{run}'"
    say_statement(study.store, statement)


def print_study(study: FactStudy, console: Console) -> None:
    """The tables of a study: every slice that has queries, the time of each method, and what was left out."""
    from tasks.fact_tables import notes, tables, times

    for note in notes(study).values():
        console.print(Text(note, style="dim"))
    for table in tables(study):
        console.print()
        _print_table(table, console)
    console.print()
    console.print(Text("Seconds per seed, all queries together", style="bold"))
    costs = make_table("stage", "methods that share it", ">seconds")
    for found in times(study):
        deviation = "" if found.seconds.deviation is None else f" ±{found.seconds.deviation:.1f}"
        costs.add_row(found.stage, found.methods, f"{found.seconds.mean:,.1f}{deviation}")
    console.print(costs)
    for seed, sizes in enumerate(study.slice_sizes):
        console.print(f"seed {seed}: " + ", ".join(f"{n:,} {of}" for of, n in sizes.items()))
    for reason, names in study.left_out.items():
        if names:
            named = ", ".join(map(printable, names[:NAMED])) + (", …" if len(names) > NAMED else "")
            console.print(f"left out: {len(names):,} {reason} ({named})", markup=False, soft_wrap=True)


def _print_table(table: Table, console: Console) -> None:
    """The first figure and differences with their intervals, the others alone: a terminal is narrow."""
    console.print(Text(table.title, style="bold"))
    shown = make_table(table.axis, *(f">{name}" for name in table.columns))
    for row in table.rows:
        cells = [_estimate(found, k == 0 or name.startswith("MRR")) if found else Text("·")
                 for k, (found, name) in enumerate(zip(row.cells, table.columns, strict=True))]  # fmt: skip
        shown.add_row(Text(row.name, no_wrap=True), *cells)
    console.print(shown)
    for row in table.rows:
        if row.kind:
            console.print(Text(f"{row.name}: {row.kind}", style="dim"), soft_wrap=True)


def _estimate(found: Cell, with_interval: bool) -> Text:
    beside = [found.interval if with_interval else "", f"±{found.deviation}" if found.deviation else ""]
    return Text.assemble(
        (found.value, "bold" if found.best else ""), (" ".join(["", *filter(None, beside)]), "dim"), no_wrap=True
    )
