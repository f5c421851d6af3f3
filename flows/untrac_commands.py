"""Evaluation of whole datasets on the command line: headwater evaluate untrac."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from flows.console import StoreOption, listed, make_console, print_estimates, say_page, say_statement, typed_command
from flows.options import (
    BadOption,
    BatchOption,
    ClusterOption,
    ContextOption,
    DampingOption,
    FitOption,
    HeadsOption,
    LayersOption,
    LengthOption,
    ModulesOption,
    PackingOption,
    PrecisionOption,
    RevisionOption,
    VocabularyOption,
    WidthOption,
    corpus_words,
    model_words,
    query_words,
    shape_words,
)
from flows.retraining_commands import EpochsOption, RateOption, StartOption, StepOption


def untrac(
    store: StoreOption,
    queries: Annotated[str, typer.Option(help="JSON lines with prompt, completion, query_id, and group if wanted")],
    corpus: Annotated[list[str] | None, typer.Option(help="corpus files to ingest first, if new")] = None,
    datasets_by: Annotated[
        str, typer.Option(help="what a document's dataset is: file, source, or a field of its metadata")
    ] = "file",
    groups_by: Annotated[str, typer.Option(help="field of a query that names its group; none: all are one")] = "group",
    model: StartOption = None,
    revision: RevisionOption = None,
    trainings: Annotated[str | None, typer.Option(help="where models go; default: beside the store")] = None,
    sequence_length: LengthOption = None,
    packing: PackingOption = "document",
    bad_documents: BadOption = "refuse",
    methods: Annotated[list[str] | None, typer.Option(help="methods to sum over datasets, by commas")] = None,
    seeds: Annotated[int, typer.Option(help="trainings of each kind, each in an order of its own")] = 1,
    epochs: EpochsOption = 3,
    batch_size: StepOption = 8,
    learning_rate: RateOption = 2e-3,
    unlearning_rate: Annotated[float, typer.Option(help="of UnTrac: Adafactor's rate, constant")] = 5e-5,
    unlearning_epochs: Annotated[int, typer.Option(help="of UnTrac: passes over a dataset")] = 1,
    unlearning_batch: Annotated[int, typer.Option(help="of UnTrac: sequences per step")] = 1,
    unlearned: Annotated[
        int | None, typer.Option(help="of UnTrac: sequences of a dataset, at most; default: all")
    ] = None,
    inverse_rate: Annotated[float, typer.Option(help="of UnTrac-Inverse: Adafactor's rate, constant")] = 5e-5,
    inverse_epochs: Annotated[int, typer.Option(help="of UnTrac-Inverse: passes over a group of queries")] = 50,
    inverse_batch: Annotated[int, typer.Option(help="of UnTrac-Inverse: queries per step")] = 256,
    measured: Annotated[int, typer.Option(help="of UnTrac-Inverse: sequences of a dataset measured, at most")] = 256,
    seed: Annotated[int, typer.Option(help="of the first training, of unlearning and fit", min=0)] = 0,
    layers: LayersOption = 4,
    width: WidthOption = 128,
    heads: HeadsOption = 4,
    context: ContextOption = 128,
    vocabulary: VocabularyOption = 4096,
    modules: ModulesOption = "mlp",
    fit_sequences: FitOption = 10_000,
    damping: DampingOption = 0.1,
    scoring_batch: BatchOption = 16,
    precision: PrecisionOption = "auto",
    cluster: ClusterOption = "none",
    output: Annotated[str | None, typer.Option("--output", "-o", help="HTML page to write")] = "untrac.html",
) -> None:
    """Whole datasets: does unlearning (UnTrac) or summed influence foretell what a model loses without one?"""
    from flows.untrac import METHODS, UntracParameters
    from flows.untrac import untrac as untrac_flow
    from tasks.untrac_page import NOTES, describe, notes, statements, tables, write_untrac_page

    parameters = UntracParameters.model_validate(
        {
            "store": store,
            "queries": query_words(queries),
            "model": model_words(model, revision),
            "shape": shape_words(layers, width, heads, context, vocabulary),
            "trainings": trainings,
            "corpus": corpus_words(corpus or [], sequence_length, packing, bad_documents),
            "mixture": {"dataset": datasets_by, "group": groups_by},
            "training": {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "checkpoints": 1,
                         "seed": seed},
            "seeds": seeds,
            "unlearning": {
                "datasets": {"learning_rate": unlearning_rate, "epochs": unlearning_epochs,
                             "batch_size": unlearning_batch, "seed": seed},
                "queries": {"learning_rate": inverse_rate, "epochs": inverse_epochs, "batch_size": inverse_batch,
                            "seed": seed},
                "unlearned": unlearned,
                "measured": measured,
            },
            "methods": [name for given in methods or [] for name in listed(given)] or METHODS,
            "damping": {"relative": damping},
            "fit": {"modules": modules, "sequences": fit_sequences, "seed": seed},
            "compute": {"batch_size": scoring_batch, "precision": precision},
            "cluster": cluster,
        }
    )  # fmt: skip
    began = time.perf_counter()
    found = untrac_flow(parameters, typed_command())
    console = make_console()
    console.print(describe(found), soft_wrap=True)
    for table in tables(found):
        print_estimates(table, console)
    for note in (*notes(found), NOTES["truth"]):
        console.print(Text(note, style="dim"), soft_wrap=True)
    if output is not None:
        say_page(write_untrac_page(found, Path(output)), began)
    say_statement(str(found.study.store.root), statements(found)[0])
