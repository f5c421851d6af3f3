"""Evaluations by retraining on the command line: headwater evaluate lds and mislabelled-text."""

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

StartOption = Annotated[str | None, typer.Option("--model", help="model to be taught; none: a new one, untrained")]
EpochsOption = Annotated[int, typer.Option(help="of every training: passes over the sequences", min=1)]
StepOption = Annotated[int, typer.Option(help="of every training: sequences per optimizer step", min=1)]
RateOption = Annotated[float, typer.Option(help="of every training: peak of Adam's step size")]


def lds(
    store: StoreOption,
    queries: Annotated[str, typer.Option(help="JSON lines with prompt, completion, query_id")],
    corpus: Annotated[list[str] | None, typer.Option(help="corpus files to ingest first, if new")] = None,
    model: StartOption = None,
    revision: RevisionOption = None,
    trainings: Annotated[str | None, typer.Option(help="where the model goes; default: beside the store")] = None,
    sequence_length: LengthOption = None,
    packing: PackingOption = "document",
    bad_documents: BadOption = "refuse",
    subsets: Annotated[int, typer.Option(help="random subsets of the sequences, one retraining each")] = 40,
    kept: Annotated[float, typer.Option(help="share of the sequences that a subset keeps")] = 0.5,
    size: Annotated[int | None, typer.Option(help="sequences that a subset keeps, instead")] = None,
    order: Annotated[str, typer.Option(help="of sequences: same as the traced model's, or own for each")] = "same",
    seeds: Annotated[int, typer.Option(help="retrainings on everything in other orders: the noise")] = 5,
    removals: Annotated[int, typer.Option(help="queries asked again without a method's first sequences")] = 10,
    top: Annotated[float, typer.Option(help="share of the sequences that are a method's first")] = 0.01,
    methods: Annotated[list[str] | None, typer.Option(help="methods, by commas; the default names all")] = None,
    damping: DampingOption = 0.1,
    dampings: Annotated[str, typer.Option(help="further λ, by commas, under which --swept are scored too")] = "",
    swept: Annotated[str, typer.Option(help="methods that are scored under them, by commas")] = "ekfac",
    epochs: EpochsOption = 3,
    batch_size: StepOption = 8,
    learning_rate: RateOption = 2e-3,
    save: Annotated[int | None, typer.Option(help="checkpoints of the traced model; default: every epoch")] = None,
    seed: Annotated[int, typer.Option(help="of orders, subsets and fit", min=0)] = 0,
    layers: LayersOption = 4,
    width: WidthOption = 128,
    heads: HeadsOption = 4,
    context: ContextOption = 128,
    vocabulary: VocabularyOption = 4096,
    modules: ModulesOption = "mlp",
    fit_sequences: FitOption = 10_000,
    solver_sequences: Annotated[int, typer.Option(help="of cg: sequences that G is made of")] = 1000,
    iterations: Annotated[int, typer.Option(help="of cg, at most: each a pass over those sequences")] = 20,
    rank: Annotated[int, typer.Option(help="directions kept of each query's solution")] = 64,
    scoring_batch: BatchOption = 16,
    precision: PrecisionOption = "auto",
    cluster: ClusterOption = "none",
    output: Annotated[str | None, typer.Option("--output", "-o", help="HTML page to write")] = "lds.html",
) -> None:
    """Do influences predict what retraining does? LDS and loss rises: a table, a page, rows in `evaluations`."""
    from flows.lds import METHODS, LdsParameters
    from flows.lds import lds as lds_flow
    from tasks.retraining_page import describe, lds_table, notes, statements, sweep_table, write_retraining_page

    parameters = LdsParameters.model_validate(
        {
            "store": store,
            "queries": query_words(queries),
            "model": model_words(model, revision),
            "shape": shape_words(layers, width, heads, context, vocabulary),
            "trainings": trainings,
            "corpus": corpus_words(corpus or [], sequence_length, packing, bad_documents),
            "training": {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate,
                         "checkpoints": save, "seed": seed},
            "subsets": {"subsets": subsets, "kept": kept if size is None else None, "size": size, "order": order,
                        "seeds": seeds, "queries": removals, "top": top, "seed": seed},
            "methods": [name for given in methods or [] for name in listed(given)] or METHODS,
            "damping": {"relative": damping},
            "dampings": listed(dampings),
            "swept": listed(swept),
            "fit": {"modules": modules, "sequences": fit_sequences, "seed": seed},
            "solver": {"sequences": solver_sequences, "iterations": iterations},
            "rank": rank,
            "compute": {"batch_size": scoring_batch, "precision": precision},
            "cluster": cluster,
        }
    )  # fmt: skip
    began = time.perf_counter()
    study = lds_flow(parameters, typed_command())
    console = make_console()
    console.print(describe(study), soft_wrap=True)
    print_estimates(lds_table(study), console)
    sweep = sweep_table(study)
    if sweep is not None:
        print_estimates(sweep, console)
    for note in notes(study):
        console.print(Text(note, style="dim"), soft_wrap=True)
    if output is not None:
        say_page(write_retraining_page(study, Path(output)), began)
    say_statement(study.store, statements(study)[0])


def mislabelled_text(
    corpus: Annotated[list[str], typer.Argument(help="corpus files whose documents have an answer in a field")],
    directory: Annotated[str, typer.Option(help="where corpora, stores and models go, one of each per seed")],
    answer: Annotated[str, typer.Option(help="field that holds a document's answer, as its text says it")] = "answer",
    within: Annotated[str | None, typer.Option(help="field on which documents must agree to swap answers")] = None,
    share: Annotated[float, typer.Option(help="of the documents: how many are given another's answer")] = 0.1,
    seeds: Annotated[int, typer.Option(help="corpora, each with swaps and a training of its own", min=1)] = 3,
    first_seed: Annotated[int, typer.Option(help="of the corpora; those after it count up", min=0)] = 0,
    model: StartOption = None,
    revision: RevisionOption = None,
    sequence_length: LengthOption = None,
    bad_documents: BadOption = "refuse",
    epochs: EpochsOption = 5,
    batch_size: StepOption = 8,
    learning_rate: RateOption = 2e-3,
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
    output: Annotated[str | None, typer.Option("--output", "-o", help="HTML page to write")] = "mislabelled-text.html",
) -> None:
    """How soon self-influence, of a text or of its answer alone, finds documents that say another one's answer."""
    from flows.mislabelled_text import MislabelledTextParameters
    from flows.mislabelled_text import mislabelled_text as search
    from tasks.inspection_page import NOTE, describe, inspection_table, statements, write_inspection_page

    parameters = MislabelledTextParameters.model_validate(
        {
            "inputs": corpus,
            "directory": directory,
            "model": model_words(model, revision),
            "shape": shape_words(layers, width, heads, context, vocabulary),
            "swap": {"share": share, "answer": answer, "within": within},
            "cut": {"sequence_length": sequence_length, "bad_documents": bad_documents},
            "training": {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate},
            "seeds": seeds,
            "first_seed": first_seed,
            "fit": {"modules": modules, "sequences": fit_sequences},
            "damping": {"relative": damping},
            "compute": {"batch_size": scoring_batch, "precision": precision},
            "cluster": cluster,
        }
    )
    began = time.perf_counter()
    study = search(parameters, typed_command())
    console = make_console()
    console.print(describe(study), soft_wrap=True)
    print_estimates(inspection_table(study), console)
    console.print(Text(NOTE, style="dim"), soft_wrap=True)
    if output is not None:
        say_page(write_inspection_page(study, Path(output)), began)
    say_statement(study.inspections[-1].store, statements(study)[0])
