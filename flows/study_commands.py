"""Studies on the command line: headwater study layers, themes, restrict, sparsity, memorization, word-order …"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from flows.console import StoreOption, listed, make_console, print_estimates, say_page, typed_command
from flows.options import (
    ClusterOption,
    DampingOption,
    FitOption,
    ModulesOption,
    PrecisionOption,
    RevisionOption,
    model_words,
)
from storage.text import printable

if TYPE_CHECKING:
    from tasks.study_page import Page

study_app = typer.Typer(no_args_is_help=True, help="What influences say about a model: a table, a figure, a sentence.")
RunOption = Annotated[str, typer.Option("--run", help="a run's id, or latest")]
ModelsOption = Annotated[
    list[str], typer.Option("--model", help="model directory or hub name; several of one tokenizer may be compared")
]
FirstOption = Annotated[int | None, typer.Option("--first", help="sequences of each query; default: as was published")]
PageOption = Annotated[str | None, typer.Option("--output", "-o", help="HTML page to write; default: by its name")]
FiguresOption = Annotated[str | None, typer.Option("--figures", help="directory for each figure, SVG one column wide")]


@study_app.command()
def layers(
    store: StoreOption,
    run: RunOption = "latest",
    first: FirstOption = None,
    output: PageOption = None,
    figures: FiguresOption = None,
) -> None:
    """How influence is spread over the network's depth, over all queries and sequence by sequence."""
    _ask("layers", store, run, first, output, figures)


@study_app.command()
def themes(
    store: StoreOption,
    run: RunOption = "latest",
    first: FirstOption = None,
    output: PageOption = None,
    figures: FiguresOption = None,
) -> None:
    """What groups of queries have in common: where their sequences act, the words they share, what they find."""
    _ask("themes", store, run, first, output, figures)


@study_app.command()
def restrict(
    store: StoreOption,
    run: RunOption = "latest",
    first: FirstOption = None,
    output: PageOption = None,
    figures: FiguresOption = None,
) -> None:
    """The first sequences where only the lower, middle or upper layers count, and the words they share with queries."""
    _ask("restrict", store, run, first, output, figures)


@study_app.command()
def sparsity(
    store: StoreOption, run: RunOption = "latest", output: PageOption = None, figures: FiguresOption = None
) -> None:
    """Whether the largest influences follow a power law, and which share of all influence they hold."""
    _ask("sparsity", store, run, None, output, figures)


@study_app.command()
def memorization(
    store: StoreOption,
    run: RunOption = "latest",
    first: FirstOption = None,
    output: PageOption = None,
    figures: FiguresOption = None,
) -> None:
    """Where the sequences rank that quote a query: is what the model said a quotation?"""
    _ask("memorization", store, run, first, output, figures)


@study_app.command()
def scale(
    store: StoreOption, first: FirstOption = None, output: PageOption = None, figures: FiguresOption = None
) -> None:
    """What the store's models find for the same queries, side by side, and the words they share, by model size."""
    _ask("scale", store, "latest", first, output, figures)


@study_app.command("word-order")
def word_order(
    store: StoreOption,
    model: ModelsOption,
    stimuli: Annotated[
        str, typer.Option(help="JSON file; FILE.parquet:en:de; planted: the demo's facts; unknown")
    ] = "unknown",
    modules: ModulesOption = "mlp",
    fit_sequences: FitOption = 10_000,
    damping: DampingOption = 0.1,
    precision: PrecisionOption = "auto",
    cluster: ClusterOption = "none",
    output: Annotated[str, typer.Option("--output", "-o", help="HTML page to write")] = "word-order.html",
    figures: FiguresOption = None,
) -> None:
    """Whether a text that names the answer first teaches it less: made-up texts, scored like training sequences."""
    from flows.word_order import WordOrderParameters
    from flows.word_order import word_order as flow

    asked = _probing_words(store, model, modules, fit_sequences, damping, precision, cluster, output, figures)
    parameters = WordOrderParameters.model_validate(asked | {"stimuli": stimuli})
    began = time.perf_counter()
    _show(flow(parameters, typed_command()), Path(output), began)


@study_app.command("cross-lingual")
def cross_lingual(
    store: StoreOption,
    model: ModelsOption,
    sentences: Annotated[
        str, typer.Option(help="FILE.parquet:en:de:fr, or a file of queries with group and language; the first leads")
    ],
    queries: Annotated[int, typer.Option(help="sentences taken of a table")] = 24,
    first: Annotated[int, typer.Option(help="sequences of each query that are followed")] = 10,
    random: Annotated[int, typer.Option(help="sequences drawn at random beside them")] = 10,
    filter: Annotated[
        list[str] | None, typer.Option(help="of the trace in the first language, as headwater trace has it; may repeat")
    ] = None,
    candidates: Annotated[int, typer.Option(help="sequences that the filter keeps per query")] = 10_000,
    modules: ModulesOption = "mlp",
    fit_sequences: FitOption = 10_000,
    damping: DampingOption = 0.1,
    precision: PrecisionOption = "auto",
    cluster: ClusterOption = "none",
    output: Annotated[str, typer.Option("--output", "-o", help="HTML page to write")] = "cross-lingual.html",
    figures: FiguresOption = None,
) -> None:
    """Whether the sequences that a query is traced to act on its translations, too: heat maps by model."""
    from flows.cross_lingual import CrossLingualParameters
    from flows.cross_lingual import cross_lingual as flow

    asked = _probing_words(store, model, modules, fit_sequences, damping, precision, cluster, output, figures)
    parameters = CrossLingualParameters.model_validate(
        asked
        | {
            "sentences": sentences,
            "queries": queries,
            "first": first,
            "random": random,
            "candidates": {"filters": filter or ["bm25"], "top_k": candidates},
        }
    )
    began = time.perf_counter()
    _show(flow(parameters, typed_command()), Path(output), began)


@study_app.command()
def tokens(
    store: StoreOption,
    run: RunOption = "latest",
    query: Annotated[list[str] | None, typer.Option("--query", help="a query of the run; may repeat")] = None,
    most: Annotated[int, typer.Option(help="queries of the run, where none is named", min=1)] = 8,
    first: Annotated[int, typer.Option(help="exactly scored sequences of each query", min=1)] = 5,
    rises: Annotated[
        str, typer.Option(help="steps beside the limit: nats that the query's log-probability rises by")
    ] = ".01,.1,1",
    model: Annotated[str | None, typer.Option(help="where the run's model lies, if not where it lay then")] = None,
    revision: RevisionOption = None,
    cluster: ClusterOption = "none",
    output: Annotated[str, typer.Option("--output", "-o", help="HTML page to write")] = "tokens.html",
    figures: FiguresOption = None,
) -> None:
    """Which tokens carry a sequence's influence: three colourings of the same text, and how far they agree."""
    from flows.tokens import TokenStudyParameters
    from flows.tokens import tokens as flow

    parameters = TokenStudyParameters.model_validate(
        {
            "store": store,
            "run": run,
            "model": model_words(model, revision),
            "queries": query or (),
            "most": most,
            "first": first,
            "rises": listed(rises),
            "cluster": cluster,
            "output": output,
            "figures": figures,
        }
    )
    began = time.perf_counter()
    _show(flow(parameters, typed_command()), Path(output), began)


def _probing_words(
    store: str,
    models: list[str],
    modules: str,
    fit_sequences: int,
    damping: float,
    precision: str,
    cluster: str,
    output: str,
    figures: str | None,
) -> dict:
    """What both of them say of models and how these are fitted."""
    return {
        "store": store,
        "models": [{"name": name} for name in models],
        "damping": {"relative": damping},
        "fit": {"modules": modules, "sequences": fit_sequences},
        "compute": {"precision": precision},
        "cluster": cluster,
        "output": output,
        "figures": figures,
    }


def _ask(question: str, store: str, run: str, first: int | None, output: str | None, figures: str | None) -> None:
    from flows.studies import StudyParameters, study

    path = Path(output or f"{question}.html")
    parameters = StudyParameters.model_validate(
        {
            "store": store,
            "question": question,
            "run": run,
            "first": first,
            "output": str(path),
            "figures": figures,
        }
    )
    began = time.perf_counter()
    _show(study(parameters, typed_command()), path, began)


def _show(page: Page, path: Path, began: float) -> None:
    console = make_console()
    console.print(Text(page.title, style="bold"))
    console.print(Text(printable(page.lead)), soft_wrap=True)
    for block in page.blocks:
        if block.table is not None:
            print_estimates(block.table, console)
        for note in block.notes:
            console.print(Text(printable(note), style="dim"), soft_wrap=True)
    say_page(path, began)
