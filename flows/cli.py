"""headwater on the command line: every command of the README; nothing imports this file.

Each command turns words into parameters, runs one flow and prints the answer. Errors are one sentence and a
non-zero exit code; --debug shows where they came from.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic import ValidationError
from rich.console import Console

from flows.annotate_commands import annotate_app
from flows.console import StoreOption, explained, make_console, shell_word
from flows.evaluate_commands import evaluate_app
from flows.explore_command import explore
from flows.fact_sets import fact_set_app, train
from flows.operations import retry, status, submit
from flows.options import (
    BadOption,
    BatchOption,
    BlocksOption,
    ClusterOption,
    DampingOption,
    FisherOption,
    FitOption,
    LengthOption,
    ModelOption,
    ModulesOption,
    PackingOption,
    PrecisionOption,
    RevisionOption,
    SchedulerOption,
    TermsOption,
    corpus_words,
    damping_words,
    fit_words,
)
from flows.retraining_commands import lds, mislabelled_text
from flows.run_commands import runs_app
from flows.store_commands import store_app
from flows.study_commands import study_app
from flows.trace_command import trace
from flows.untrac_commands import untrac
from flows.validate_commands import loo, mislabelled, pbrf
from storage.errors import HeadwaterError
from storage.text import printable
from tasks.influence.errors import InfluenceError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Traces what a language model says back to the training text that taught it.",
)


@app.command()
def demo(
    directory: Annotated[str, typer.Option(help="where the demo's corpus, model and store go")] = "demo",
    cluster: ClusterOption = "none",  # two workers with a model each would pass 3 GiB together
) -> None:
    """The whole walk on an embedded corpus, with a model trained on it here."""
    from flows.demo import run_demo

    run_demo(Path(directory), cluster, make_console())


@app.command()
def ingest(
    inputs: Annotated[list[str], typer.Argument(help="Parquet, JSONL, text or a saved datasets directory")],
    store: StoreOption,
    model: ModelOption,
    revision: RevisionOption = None,
    sequence_length: LengthOption = None,
    packing: PackingOption = "document",
    bad_documents: BadOption = "refuse",
    cluster: ClusterOption = "auto",
    scheduler: SchedulerOption = None,
) -> None:
    """Documents to training sequences, and their lexical index; known files are not read again."""
    from flows.ingest import ingest_corpus
    from flows.parameters import IngestParameters

    parameters = IngestParameters.model_validate(
        {
            "store": store,
            "model": {"name": model, "revision": revision},
            "corpus": corpus_words(inputs, sequence_length, packing, bad_documents),
            "cluster": scheduler or cluster,
        }
    )
    n = ingest_corpus(parameters)
    typer.echo(f"{n:,} sequences in {store}")
    words = f"--store {shell_word(store)} --model {shell_word(model)}"
    typer.echo(f"next  headwater trace {words} --prompt … --completion …")


@app.command()
def index(
    store: StoreOption,
    terms: TermsOption = "tokens",
    cluster: ClusterOption = "auto",
    scheduler: SchedulerOption = None,
) -> None:
    """Sequences to lexical index; only parts that have none yet."""
    from flows.index import index_corpus

    built = index_corpus(store, scheduler or cluster, terms)
    typer.echo(f"{built} new shards in {store}")


@app.command()
def fit(
    store: StoreOption,
    model: ModelOption,
    revision: RevisionOption = None,
    modules: ModulesOption = "mlp",
    fit_sequences: FitOption = 10_000,
    fisher: FisherOption = "sampled",
    blocks: BlocksOption = 1,
    seed: int = 0,
    precision: PrecisionOption = "auto",
    cluster: ClusterOption = "auto",
    scheduler: SchedulerOption = None,
) -> None:
    """EK-FAC factors of a model on the corpus of a store."""
    from flows.fit import fit as fit_flow
    from flows.parameters import FactorParameters

    parameters = FactorParameters.model_validate(
        {
            "store": store,
            "model": {"name": model, "revision": revision},
            "fit": fit_words(modules, fit_sequences, fisher, blocks, seed),
            "compute": {"precision": precision},
            "cluster": scheduler or cluster,
        }
    )
    typer.echo(f"factors {fit_flow(parameters)} in {store}")


@app.command("self-influence")
def self_influence(
    store: StoreOption,
    model: ModelOption,
    revision: RevisionOption = None,
    method: Annotated[str, typer.Option(help="ekfac, kfac or identity (squared gradient norm)")] = "ekfac",
    damping: DampingOption = 0.1,
    absolute_damping: Annotated[float | None, typer.Option(help="λ itself, instead")] = None,
    modules: ModulesOption = "mlp",
    fit_sequences: FitOption = 10_000,
    fisher: FisherOption = "sampled",
    blocks: BlocksOption = 1,
    seed: int = 0,
    batch_size: BatchOption = 16,
    precision: PrecisionOption = "auto",
    cluster: ClusterOption = "auto",
    scheduler: SchedulerOption = None,
    top: Annotated[int, typer.Option(help="sequences printed")] = 10,
) -> None:
    """The corpus's outliers: each sequence's influence on itself, measured once per factors."""
    from flows.parameters import SelfInfluenceParameters
    from flows.self_influence import self_influence as self_influence_flow
    from flows.terminal import print_outliers

    parameters = SelfInfluenceParameters.model_validate(
        {
            "store": store,
            "model": {"name": model, "revision": revision},
            "fit": fit_words(modules, fit_sequences, fisher, blocks, seed),
            "method": method,
            "damping": damping_words(damping, absolute_damping),
            "compute": {"batch_size": batch_size, "precision": precision},
            "cluster": scheduler or cluster,
        }
    )
    factors_id, measured = self_influence_flow(parameters)
    print_outliers(store, factors_id, measured, make_console(), top)


app.command()(trace)


@app.command()
def report(
    store: StoreOption,
    output: Annotated[str, typer.Option("--output", "-o", help="the HTML file to write")] = "report.html",
    run: Annotated[str, typer.Option(help="a run's id, or latest")] = "latest",
    top: Annotated[int, typer.Option(help="sequences per query")] = 100,
) -> None:
    """One self-contained HTML page of a run."""
    from storage.store import open_store
    from tasks.report import render_report

    typer.echo(render_report(open_store(store), run, Path(output), top))


@app.command()
def sql(
    store: StoreOption,
    statement: Annotated[str | None, typer.Argument(help="SQL; without it, a shell")] = None,
    format: Annotated[Literal["table", "csv", "json"], typer.Option(help="how rows are printed")] = "table",
) -> None:
    """Ask the result tables in DuckDB SQL: read-only, and locked to the store."""
    from flows.shell import answer, shell
    from storage.store import open_store

    if statement is None:
        shell(open_store(store), format)
    else:
        answer(open_store(store), statement, format)


@app.command()
def check(
    model: ModelOption,
    store: Annotated[str | None, typer.Option(help="store whose corpus and queries are measured")] = None,
    revision: RevisionOption = None,
    queries: Annotated[int, typer.Option(help="queries that are to share the passes", min=1)] = 1,
    candidates: Annotated[int, typer.Option(help="sequences scored per query", min=1)] = 10_000,
    rescore: Annotated[int, typer.Option(help="top sequences scored again exactly", min=0)] = 100,
    rank: Annotated[int, typer.Option(help="singular directions kept of each query gradient", min=1)] = 32,
    modules: ModulesOption = "mlp",
    fit_sequences: FitOption = 10_000,
    fisher: FisherOption = "sampled",
    blocks: BlocksOption = 1,
    seed: int = 0,
    batch_size: BatchOption = 16,
    precision: PrecisionOption = "auto",
    sample: Annotated[int, typer.Option(help="sequences of the precision report; 0: none", min=0)] = 64,
) -> None:
    """What an attribution covers, what it will take here, and how far its numbers can be trusted."""
    from flows.check import print_agreement, print_coverage, print_gradient_check, print_plan
    from storage.checkpoints import find_checkpoint
    from storage.store import open_store
    from tasks.compute import ComputeParameters
    from tasks.factors import FitParameters
    from tasks.plan import require_room, workload

    path, console = find_checkpoint(model, revision), make_console()
    opened = open_store(store) if store else None
    fit = FitParameters.model_validate(fit_words(modules, fit_sequences, fisher, blocks, seed))
    compute = ComputeParameters.model_validate({"batch_size": batch_size, "precision": precision})
    room = require_room(path, fit)
    print_coverage(path, modules, console)
    work = workload(opened, path, fit, queries, candidates, rescore, rank)
    print_plan(path, work, fit, compute, room, console)
    print_gradient_check(path, modules, opened, console)
    if opened and sample:
        print_agreement(opened, path, fit, compute, rank, sample, console)


app.command()(explore)
app.command()(train)
app.command()(submit)
app.command()(status)
app.command()(retry)
app.add_typer(runs_app, name="runs")
app.add_typer(store_app, name="store")
app.add_typer(fact_set_app, name="fact-set")
evaluate_app.command()(lds)
evaluate_app.command()(mislabelled_text)
evaluate_app.command()(untrac)
evaluate_app.command()(pbrf)
evaluate_app.command()(loo)
evaluate_app.command()(mislabelled)
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(study_app, name="study")
app.add_typer(annotate_app, name="annotate")


def main() -> None:
    """Run a command; every foreseen error is one sentence on standard error and exit code 1."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    # Prefect would print every failure with its traceback; the command prints the failure itself. Only the terminal
    # is quiet: at a higher PREFECT_LOGGING_LEVEL the run's page would have no logs either.
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO")
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "INFO" if debug else "CRITICAL")
    _show_warnings()
    os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "CRITICAL")
    try:
        app(arguments)
    except (HeadwaterError, InfluenceError) as error:
        _fail(str(error), debug)
    except ValidationError as error:
        _fail(explained(error.errors(), error.title), debug)
    except KeyboardInterrupt:
        _fail("stopped. Run the same command again: finished parts are kept.", debug=False)


def _show_warnings() -> None:
    """Print our own warnings in one line each."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(_Printable())
    for name in ("flows", "tasks", "storage"):
        logging.getLogger(name).addHandler(handler)


class _Printable(logging.Formatter):
    """One line that a terminal can be shown, whatever corpus it quotes."""

    def format(self, record: logging.LogRecord) -> str:
        return f"headwater: {printable(record.getMessage())}"


def _fail(message: str, debug: bool) -> None:
    if debug:
        raise  # the error that main is handling, with its traceback
    _let_go(sys.exception())
    shown = "\n".join(map(printable, message.split("\n")))  # it may quote a corpus
    Console(stderr=True, highlight=False, markup=False).print(f"headwater: {shown}", soft_wrap=True)
    sys.exit(1)


def _let_go(error: BaseException | None) -> None:
    """Drop what the frames of an error hold: DuckDB would list what is left of it at exit, below the message."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


if __name__ == "__main__":
    main()
