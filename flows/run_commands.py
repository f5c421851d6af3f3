"""The runs of a store on the command line: `headwater runs list | show | delete`."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

from flows.console import StoreOption, as_json, cell, make_console, make_table, shell_word
from storage.text import printable, size

runs_app = typer.Typer(no_args_is_help=True, help="The runs of a store: list, show, delete.")

RunArgument = Annotated[str, typer.Argument(help="a run's id, or latest")]
FormatOption = Annotated[Literal["table", "json"], typer.Option(help="how it is printed")]
YesOption = Annotated[bool, typer.Option("--yes", help="do it without asking")]
NowOption = Annotated[bool, typer.Option("--now", help="remove files at once: a reader's running query may fail")]


@runs_app.command("list")
def list_command(store: StoreOption, format: FormatOption = "table") -> None:
    """Every run: what it was, what it took, and whether it is complete."""
    from storage.retention import list_runs
    from storage.store import open_store

    found = list_runs(open_store(store))
    columns = ("run", "state", "when", "method", "model", "queries", "sequences", "seconds", "bytes")
    records = [
        (run.run_id, run.state, run.at, run.method, run.model, run.n_queries, run.n_sequences, run.seconds, run.n_bytes)
        for run in found
    ]
    if format == "json":
        typer.echo(as_json([dict(zip(columns, record, strict=True)) for record in records]))
        return
    table = make_table("run", "state", "when", "method", "model", ">queries", ">sequences", ">seconds", ">bytes")
    for run in found:
        when = f"{run.at:%Y-%m-%d %H:%M}" if run.at else None
        model = (run.model or "").rstrip("/").rsplit("/", 1)[-1] or None
        counts = (run.n_queries, run.n_sequences, run.seconds and round(run.seconds), size(run.n_bytes))
        table.add_row(*map(cell, (run.run_id, run.state, when, run.method, model, *counts)))
    make_console().print(table)
    if any(run.state == "interrupted" for run in found):
        typer.echo("interrupted: the same headwater trace finishes it; headwater runs delete removes it")


@runs_app.command()
def show(store: StoreOption, run: RunArgument = "latest") -> None:
    """One run: parameters, stages, coverage, evaluations, and the SQL to copy."""
    from storage.database import rows, session
    from storage.retention import find_run
    from storage.store import open_store

    place = open_store(store)
    found = find_run(place, run)
    console = make_console()
    console.print(Text(f"{found.run_id} · {found.state} · {size(found.n_bytes)}"), style="bold")
    if found.facts is None:
        console.print("the same headwater trace finishes it; headwater runs delete removes it")
        return
    with session(place) as connection:
        facts = rows(connection, "answer/run", run=found.run_id)[0]
        covered = rows(connection, "housekeeping/coverage", run=found.run_id)[0]
        asked = rows(connection, "answer/queries", run=found.run_id)
        evaluated = rows(connection, "housekeeping/evaluations", run=found.run_id)
    _print_pairs(console, "parameters", [("model", found.model), *_flat(json.loads(facts["parameters"]))])
    _print_stages(console, json.loads(found.facts["stages"]))
    share = covered["tracked_parameters"] / (covered["parameters"] or 1)
    console.print(
        f"\ncoverage  {covered['tracked_parameters']:,} of {covered['parameters']:,} parameters are attributed "
        f"({share:.1%}), in {covered['n_tracked']} of {covered['n_modules']} modules"
    )
    table = make_table("query", ">log p", ">candidates", ">top 1 % holds", ">compression r")
    for query in asked:
        top = None if query["top_share"] is None else f"{query['top_share']:.0%}"
        values = (query["query_id"], _number(query["log_probability"]), query["n_candidates"], top)
        table.add_row(*map(cell, (*values, _number(query["compression_correlation"]))))
    console.print(table)
    if evaluated:
        table = make_table("method", "metric", ">value", ">95 % from", ">to", ">queries")
        for row in evaluated:
            numbers = (_number(row[name]) for name in ("value", "ci_low", "ci_high"))
            table.add_row(*map(cell, (row["method"], row["metric"], *numbers, row["n"])))
        console.print()
        console.print(table)
    _print_sql(console, store, found.run_id, [query["query_id"] for query in asked])


@runs_app.command()
def delete(
    store: StoreOption,
    runs: Annotated[list[str], typer.Argument(help="ids of runs, complete or interrupted")],
    factors: Annotated[bool, typer.Option(help="remove factors and self-influences that only they use too")] = False,
    yes: YesOption = False,
    now: NowOption = False,
) -> None:
    """Let runs vanish from every table at once; their queries stay, and wait again only after headwater retry."""
    from storage.retention import GRACE, delete_runs, find_run, remove_unused, unused_without
    from storage.store import open_store

    place = open_store(store)
    found = [find_run(place, run) for run in dict.fromkeys(runs)]
    names = [run.run_id for run in found]
    unused = unused_without(place, names)
    for run in found:
        typer.echo(f"{run.run_id}  {run.state}  {size(run.n_bytes)}")
    for item in unused:
        typer.echo(f"{item.kind} {item.name}  {size(item.n_bytes)}  used by no other run{'' if factors else ': kept'}")
    if not yes and not typer.confirm(f"Delete {len(found)} runs?"):
        typer.echo("nothing was deleted")
        raise typer.Exit(1)
    delete_runs(place, names, timedelta(0) if now else GRACE)
    for item in unused if factors else []:
        remove_unused(place, item)
    typer.echo(f"{len(found)} runs are gone from every table")
    if not now:
        typer.echo(
            "their files leave the disk when readers cannot need them any more, an hour from now at the earliest"
        )
        typer.echo(f"next  headwater store compact --store {shell_word(store)}")
    if unused and not factors:
        typer.echo("factors that no run uses stay until headwater store prune, or --factors, removes them")


def _print_pairs(console: Console, title: str, pairs: list[tuple[str, Any]]) -> None:
    table = make_table(title, "")
    for name, value in pairs:
        table.add_row(*map(cell, (name, value)))
    console.print(table)


def _print_stages(console: Console, stages: dict[str, dict[str, float]]) -> None:
    table = make_table("stage", ">seconds", ">written")
    for name, cost in stages.items():
        table.add_row(*map(cell, (name, f"{cost['seconds']:,.1f}", size(int(cost.get("bytes", 0))))))
    console.print()
    console.print(table)


def _print_sql(console: Console, store: str, run_id: str, queries: list[str]) -> None:
    statements = [f"select * from influences where run_id = '{run_id}'"]
    if queries:
        quoted = printable(queries[0]).replace("'", "''")
        statements = [
            f"select * from top_influences('{quoted}', run := '{run_id}')",
            f"select * from layer_profile('{quoted}', run := '{run_id}')",
            f"select * from coverage('{quoted}', run := '{run_id}')",
            *statements,
        ]
    console.print()
    for lead, text in zip(["next", *["    "] * len(statements)], statements, strict=False):
        line = f"{lead}  headwater sql --store {shell_word(store)} {shell_word(text)}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _flat(parameters: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in parameters.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}.")
        elif prefix or name != "queries":
            found.append((prefix + name, ", ".join(map(str, value)) if isinstance(value, list) else value))
    return found


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"
