"""Validation of influences on small networks on the command line: headwater evaluate pbrf, loo, mislabelled."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from flows.console import (
    StoreOption,
    listed,
    make_console,
    print_estimates,
    say_page,
    say_statement,
    typed_command,
)

if TYPE_CHECKING:
    from tasks.response_evaluation import ResponseFindings

TableOption = Annotated[
    str, typer.Option(help="digits, wine, iris, breast-cancer, diabetes, or a Parquet or CSV file of numbers")
]
TargetOption = Annotated[str | None, typer.Option(help="of a file: the column that is to be said of the others")]
KindOption = Annotated[str, typer.Option(help="of a file's target: auto, classification or regression")]
TestShareOption = Annotated[float, typer.Option(help="of the examples: not learned, asked about")]
ExamplesOption = Annotated[int | None, typer.Option(help="at most so many of the table, drawn by seed; default: all")]
HiddenOption = Annotated[str, typer.Option(help="widths of the network's hidden layers, by commas")]
ActivationOption = Annotated[str, typer.Option(help="of the hidden layers: tanh, or relu, whose kinks hold descents")]
EpochsOption = Annotated[int, typer.Option(help="of the training: passes over the examples")]
BatchOption = Annotated[int, typer.Option(help="of the training: examples per step")]
RateOption = Annotated[float, typer.Option(help="of the training: step size at the start")]
OptimizerOption = Annotated[str, typer.Option(help="of the training: sgd with momentum .9, or adam")]
SeedsOption = Annotated[int, typer.Option(help="splits, networks and choices of examples; at least 3")]
LeftOutOption = Annotated[int, typer.Option(help="training examples left out, one at a time, for each seed")]
TestsOption = Annotated[int, typer.Option(help="test examples whose loss is asked about, for each seed")]
DampingOption = Annotated[str, typer.Option(help="λ in the units of G, by commas; the first is the main one")]
MethodsOption = Annotated[list[str] | None, typer.Option(help="methods, by commas; the default names all")]
ObjectivesOption = Annotated[
    list[str] | None, typer.Option(help="cold, warm, proximity, pbrf, linearised, by commas; default: all, with gaps")
]
StartOption = Annotated[str, typer.Option(help="of what is trained again: same as the network's, or own for each")]
IterationsOption = Annotated[int, typer.Option(help="of L-BFGS for proximity and PBRF, at most")]
CgOption = Annotated[int, typer.Option("--cg-iterations", help="of cg, at most, each a pass over the examples")]
DepthOption = Annotated[int, typer.Option("--lissa-depth", help="terms of LiSSA's series, at most")]
RoundsOption = Annotated[int, typer.Option("--lissa-rounds", help="series of LiSSA whose mean is taken")]
AlphaOption = Annotated[float | None, typer.Option("--lissa-alpha", help="LiSSA's step; default: from σ_max")]
ScaleOption = Annotated[float | None, typer.Option("--lissa-scale", help="in its place Koh & Liang's scale, 1 / alpha")]
WorkersOption = Annotated[str, typer.Option("--cluster", help="auto, local, none, or the address of a Dask scheduler")]


def pbrf(
    store: StoreOption,
    table: TableOption = "digits",
    target: TargetOption = None,
    kind: KindOption = "auto",
    test_share: TestShareOption = 0.2,
    examples: ExamplesOption = None,
    hidden: HiddenOption = "32",
    activation: ActivationOption = "tanh",
    epochs: EpochsOption = 20,
    batch_size: BatchOption = 128,
    learning_rate: RateOption = 0.02,
    optimizer: OptimizerOption = "sgd",
    seeds: SeedsOption = 5,
    left_out: LeftOutOption = 32,
    tests: TestsOption = 64,
    damping: DampingOption = "0.01,0.001,0.1",
    methods: MethodsOption = None,
    objectives: ObjectivesOption = None,
    start: StartOption = "same",
    iterations: IterationsOption = 500,
    cg_iterations: CgOption = 20,
    lissa_depth: DepthOption = 2000,
    lissa_rounds: RoundsOption = 2,
    lissa_alpha: AlphaOption = None,
    lissa_scale: ScaleOption = None,
    cluster: WorkersOption = "none",
    output: Annotated[str | None, typer.Option("--output", "-o", help="HTML page to write")] = "pbrf.html",
) -> None:
    """From retraining to influence, step by step: which question do influence functions answer, and how well?"""
    asked = leave_out_words(seeds, left_out, tests, damping, methods, start) | {
        "iterations": iterations,
        "effort": effort_words(cg_iterations, lissa_depth, lissa_rounds, lissa_alpha, lissa_scale),
    }
    given = {
        "store": store,
        "problem": problem_words(table, target, kind, test_share, examples),
        "network": network_words(hidden, activation, epochs, batch_size, learning_rate, optimizer),
        "asked": asked,
        "cluster": cluster,
    }
    if objectives:
        given["objectives"] = [name for some in objectives for name in listed(some)]
    _measure(given, output)


def loo(
    store: StoreOption,
    table: TableOption = "digits",
    target: TargetOption = None,
    kind: KindOption = "auto",
    test_share: TestShareOption = 0.2,
    examples: ExamplesOption = None,
    hidden: HiddenOption = "32",
    activation: ActivationOption = "tanh",
    epochs: EpochsOption = 20,
    batch_size: BatchOption = 128,
    learning_rate: RateOption = 0.02,
    optimizer: OptimizerOption = "sgd",
    seeds: SeedsOption = 5,
    left_out: LeftOutOption = 32,
    tests: TestsOption = 64,
    damping: DampingOption = "0.01",
    methods: MethodsOption = None,
    start: StartOption = "same",
    cg_iterations: CgOption = 20,
    lissa_depth: DepthOption = 2000,
    lissa_rounds: RoundsOption = 2,
    lissa_alpha: AlphaOption = None,
    lissa_scale: ScaleOption = None,
    cluster: WorkersOption = "none",
    output: Annotated[str | None, typer.Option("--output", "-o", help="HTML page to write")] = "loo.html",
) -> None:
    """Leave-one-out: does a network trained anew on the loss less the example's own do what influences say?"""
    asked = leave_out_words(seeds, left_out, tests, damping, methods, start) | {
        "effort": effort_words(cg_iterations, lissa_depth, lissa_rounds, lissa_alpha, lissa_scale)
    }
    given = {
        "store": store,
        "problem": problem_words(table, target, kind, test_share, examples),
        "network": network_words(hidden, activation, epochs, batch_size, learning_rate, optimizer),
        "asked": asked,
        "objectives": ("loo",),
        "cluster": cluster,
    }
    _measure(given, output)


def mislabelled(
    store: StoreOption,
    table: TableOption = "digits",
    target: TargetOption = None,
    kind: KindOption = "auto",
    test_share: TestShareOption = 0.2,
    examples: ExamplesOption = None,
    share: Annotated[float, typer.Option(help="of the training examples: labelled as another class")] = 0.1,
    hidden: HiddenOption = "32",
    activation: ActivationOption = "tanh",
    epochs: EpochsOption = 20,
    batch_size: BatchOption = 128,
    learning_rate: RateOption = 0.02,
    optimizer: OptimizerOption = "sgd",
    seeds: SeedsOption = 5,
    damping: Annotated[float, typer.Option(help="λ in the units of G")] = 0.01,
    cluster: WorkersOption = "none",
    output: Annotated[str | None, typer.Option("--output", "-o", help="HTML page to write")] = "mislabelled.html",
) -> None:
    """How soon self-influence finds wrong labels; for text, see mislabelled-text."""
    from flows.mislabels import MislabelStudyParameters, search_mislabels
    from tasks.mislabels_page import NOTE, describe, mislabel_table, statement, write_mislabel_page

    parameters = MislabelStudyParameters.model_validate(
        {
            "store": store,
            "problem": problem_words(table, target, kind, test_share, examples),
            "network": network_words(hidden, activation, epochs, batch_size, learning_rate, optimizer),
            "asked": {"share": share, "damping": damping, "seeds": seeds},
            "cluster": cluster,
        }
    )
    began = time.perf_counter()
    found, console = search_mislabels(parameters), make_console()
    console.print(describe(found), soft_wrap=True)
    print_estimates(mislabel_table(found), console)
    console.print(Text(NOTE, style="dim"), soft_wrap=True)
    if output is not None:
        say_page(write_mislabel_page(found, Path(output), typed_command()), began)
    say_statement(store, statement(found))


def problem_words(table: str, target: str | None, kind: str, test_share: float, examples: int | None) -> dict:
    """The parameters of a problem."""
    return {"table": table, "target": target, "kind": kind, "test_share": test_share, "examples": examples}


def network_words(
    hidden: str, activation: str, epochs: int, batch_size: int, learning_rate: float, optimizer: str
) -> dict:
    """The parameters of a network and its training."""
    training = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "optimizer": optimizer}
    return {"hidden": listed(hidden), "activation": activation, "training": training}


def leave_out_words(seeds: int, left_out: int, tests: int, damping: str, methods: list[str] | None, start: str) -> dict:
    """What is left out, and what is asked of whom; without methods the default names them."""
    words = {"seeds": seeds, "left_out": left_out, "tests": tests, "dampings": listed(damping), "start": start}
    return words | ({"methods": [name for given in methods for name in listed(given)]} if methods else {})


def effort_words(iterations: int, depth: int, rounds: int, alpha: float | None, scale: float | None) -> dict:
    """How far the iterative methods go."""
    return {"iterations": iterations, "depth": depth, "rounds": rounds, "alpha": alpha, "scale": scale}


def _measure(given: dict, output: str | None) -> None:
    from flows.responses import ResponseParameters, measure_responses
    from tasks.response_page import write_response_page

    began = time.perf_counter()
    found = measure_responses(ResponseParameters.model_validate(given))
    print_responses(found)
    if output is not None:
        page = write_response_page(found, Path(output), typed_command())
        say_page(page, began)


def print_responses(found: ResponseFindings) -> None:
    """The tables of a study, what they mean, and what else there is to be asked."""
    from tasks.response_page import NOTES, describe, residual_note, statements, tables

    console = make_console()
    console.print(describe(found), soft_wrap=True)
    for table in tables(found):
        print_estimates(table, console)
    for note in (NOTES["correlation"], NOTES["gaps"] if found.gaps else "", residual_note(found)):
        if note:
            console.print(Text(note, style="dim"), soft_wrap=True)
    say_statement(str(found.study.store.root), statements(found)[0])
