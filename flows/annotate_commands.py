"""People's judgement on the command line: headwater annotate export, import, agreement."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.text import Text

from flows.console import StoreOption, make_console, print_estimates, say_page, shell_word, typed_command
from storage.text import printable

annotate_app = typer.Typer(
    no_args_is_help=True, help="Two questions to people about the first sequences: sheets, answers, agreement."
)
SHOWN = 5  # rows, queries and people in a line


@annotate_app.command()
def export(
    store: StoreOption,
    output: Annotated[str, typer.Option("--output", "-o", help="sheet to write: FILE.csv or FILE.parquet")],
    run: Annotated[list[str] | None, typer.Option(help="a run's id, or latest; several stand in one sheet")] = None,
    query: Annotated[list[str] | None, typer.Option(help="a query's id; several; default: all of each run")] = None,
    first: Annotated[int, typer.Option(help="sequences of each query", min=1)] = 6,
    annotators: Annotated[int, typer.Option(help="people who are to answer each item", min=1)] = 1,
    blind: Annotated[bool, typer.Option("--blind", help="shuffled, without model, rank and score")] = False,
    seed: Annotated[int, typer.Option(help="of the order of a blind sheet", min=0)] = 0,
    mark: Annotated[int, typer.Option(help="tokens to mark in each target: those that raised it most", min=0)] = 0,
    separator: Annotated[Literal["comma", "semicolon", "tab"], typer.Option(help="between cells of CSV")] = "comma",
) -> None:
    """Write the first sequences of queries as a sheet with two questions, and instructions beside it."""
    from storage.store import open_store
    from tasks.annotation_sheets import SheetParameters, export_sheet

    asked = SheetParameters(
        runs=tuple(run or ["latest"]), queries=tuple(query or ()), first=first, annotators=annotators, blind=blind,
        seed=seed, mark=mark, separator=separator,
    )  # fmt: skip
    sheet = export_sheet(open_store(store), asked, output)
    typer.echo(
        f"{sheet.n_rows:,} rows about {sheet.n_items:,} sequences in {printable(str(sheet.path))}; "
        f"{sheet.n_spurious:,} of these are spurious"
    )
    if sheet.without:
        typer.echo(f"no sequence raised {len(sheet.without):,} queries: {_some(sheet.without)}")
    typer.echo(f"instructions for annotators: {printable(str(sheet.instructions))}")
    typer.echo(f"next  headwater annotate import {shell_word(output)} --store {shell_word(store)}")


@annotate_app.command("import")
def import_(
    store: StoreOption,
    sheets: Annotated[list[str], typer.Argument(help="sheets that came back: CSV or Parquet")],
    annotator: Annotated[str | None, typer.Option(help="who filled in the rows that name nobody")] = None,
    encoding: Annotated[str | None, typer.Option(help="of CSV that is not UTF-8, such as cp1252")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="let answers take the place of the same people's")] = False,
) -> None:
    """Keep the answers of sheets; everything is understood before anything is kept, and twice is once."""
    from storage.store import open_store
    from tasks.annotation_answers import import_sheets

    found, recorded = import_sheets(open_store(store), sheets, annotator, encoding, replace)
    typer.echo(
        f"{found.n_rows:,} rows: {len(found.answers):,} answers, {recorded.new:,} of them new, {recorded.replaced:,} "
        f"in place of earlier ones, {recorded.known:,} known; {found.n_empty:,} rows without an answer"
        + (f", {found.n_repeated:,} that repeat one" if found.n_repeated else "")
    )
    for rows, what in (
        (found.incomplete, "rows with one answer of two were left out"),
        (found.doubtful, "relationships count as relevant and may mean irrelevant"),
    ):
        if rows:
            typer.echo(f"{len(rows):,} {what}: {_some(rows, '; ')}")
    people = [f"{name} {n:,}" for name, n in found.annotators.most_common()]
    typer.echo(f"annotators: {_some(people) if people else 'none'}")
    typer.echo(f"next  headwater annotate agreement --store {shell_word(store)}")


@annotate_app.command()
def agreement(
    store: StoreOption,
    output: Annotated[str, typer.Option("--output", "-o", help="HTML page to write")] = "annotations.html",
) -> None:
    """Which sequences people found relevant, by model, how far they agree, and what they wrote."""
    from storage.store import open_store
    from tasks.studies.annotations import study_annotations
    from tasks.study_page import write_study_page

    began, console = time.perf_counter(), make_console()
    page = study_annotations(open_store(store), typed_command())
    write_study_page(page, Path(output))
    console.print(Text(page.title, style="bold"))
    console.print(page.lead, highlight=False, markup=False, soft_wrap=True)
    for block in page.blocks[:2]:  # what was written stands on the page
        assert block.table is not None
        print_estimates(block.table, console)
    say_page(Path(output), began)


def _some(values, between: str = ", ") -> str:
    more = f"{between}and {len(values) - SHOWN:,} more" if len(values) > SHOWN else ""
    return printable(between.join(values[:SHOWN])) + more
