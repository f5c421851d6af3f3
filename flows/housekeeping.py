"""Keeping house on the command line: `headwater runs …` and `headwater store …`."""

from __future__ import annotations

import json
import re
import sys
from datetime import timedelta
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from storage.errors import InputError
from storage.text import printable

runs_app = typer.Typer(no_args_is_help=True, help="The runs of a store: list, show, delete.")
store_app = typer.Typer(no_args_is_help=True, help="A store as a whole: verify, compact, prune.")

StoreOption = Annotated[str, typer.Option("--store", help="directory of the store")]
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
        typer.echo(_json([dict(zip(columns, record, strict=True)) for record in records]))
        return
    table = _table("run", "state", "when", "method", "model", ">queries", ">sequences", ">seconds", ">bytes")
    for run in found:
        when = f"{run.at:%Y-%m-%d %H:%M}" if run.at else None
        model = (run.model or "").rstrip("/").rsplit("/", 1)[-1] or None
        counts = (run.n_queries, run.n_sequences, run.seconds and round(run.seconds), _size(run.n_bytes))
        table.add_row(*map(_cell, (run.run_id, run.state, when, run.method, model, *counts)))
    _console().print(table)
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
    console = _console()
    console.print(Text(f"{found.run_id} · {found.state} · {_size(found.n_bytes)}"), style="bold")
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
    table = _table("query", ">log p", ">candidates", ">top 1 % holds", ">compression r")
    for query in asked:
        top = None if query["top_share"] is None else f"{query['top_share']:.0%}"
        values = (query["query_id"], _number(query["log_probability"]), query["n_candidates"], top)
        table.add_row(*map(_cell, (*values, _number(query["compression_correlation"]))))
    console.print(table)
    if evaluated:
        table = _table("method", "metric", ">value", ">95 % from", ">to", ">queries")
        for row in evaluated:
            numbers = (_number(row[name]) for name in ("value", "ci_low", "ci_high"))
            table.add_row(*map(_cell, (row["method"], row["metric"], *numbers, row["n"])))
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
        typer.echo(f"{run.run_id}  {run.state}  {_size(run.n_bytes)}")
    for item in unused:
        typer.echo(f"{item.kind} {item.name}  {_size(item.n_bytes)}  used by no other run{'' if factors else ': kept'}")
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
        typer.echo(f"next  headwater store compact --store {store}")
    if unused and not factors:
        typer.echo("factors that no run uses stay until headwater store prune, or --factors, removes them")


@store_app.command()
def verify(store: StoreOption, format: FormatOption = "table") -> None:
    """Read everything and check it: files, corpus parts, factors, every run; exit code 1 when something is wrong."""
    from storage.store import open_store
    from storage.verification import verify as verify_store

    counts, findings = verify_store(open_store(store))
    if format == "json":
        typer.echo(_json({"read": vars(counts), "wrong": [vars(finding) for finding in findings]}))
    else:
        for finding in findings:
            _console().print(Text(printable(finding.what), "bold red"), soft_wrap=True)
            for lead, text in (("found", finding.found), ("next ", finding.next_step)):
                _console().print(Text(f"  {lead}  {printable(text)}"), soft_wrap=True)
        old = counts.files - counts.sealed
        typer.echo(
            f"{counts.files:,} files, {counts.rows:,} rows and {counts.runs:,} complete runs read; "
            + (f"{old:,} files, written by an older headwater, carry no digest; " if old else "")
            + (f"{len(findings):,} things are wrong" if findings else "nothing is wrong")
        )
    if findings:
        raise typer.Exit(1)


@store_app.command()
def compact(
    store: StoreOption,
    target_mib: Annotated[int, typer.Option(help="size of full merged files, in MiB")] = 256,
    least: Annotated[int, typer.Option(help="small runs, or files, that are worth merging")] = 2,
    grace_seconds: Annotated[float, typer.Option(help="how long readers may need a merged or deleted file")] = 3600,
    settle_seconds: Annotated[float, typer.Option(help="between writing merged files and naming them")] = 2,
) -> None:
    """Merge the small files of many runs, while readers go on reading; no row changes."""
    from flows.compact import CompactStoreParameters, compact_store

    compaction = {
        "target_mib": target_mib,
        "least": least,
        "grace_seconds": grace_seconds,
        "settle_seconds": settle_seconds,
    }
    done = compact_store(CompactStoreParameters.model_validate({"store": store, "compaction": compaction}))
    typer.echo(
        f"{done.runs:,} runs merged, {done.gathered_files:,} files of queries and self-influences gathered, "
        f"{done.removed_files:,} superseded files removed"
    )


@store_app.command()
def prune(
    store: StoreOption,
    older_than: Annotated[str | None, typer.Option(help="let runs go that finished so long ago: 90d, 12h, 6w")] = None,
    keep: Annotated[int | None, typer.Option(help="keep so many of the latest runs, whatever their age", min=0)] = None,
    yes: Annotated[bool, typer.Option("--yes", help="do it; without it, only print what would go")] = False,
    now: NowOption = False,
) -> None:
    """Old runs, stale work, factors that nothing uses, embeddings of replaced parts; by default only printed."""
    from storage.leftovers import find_leftovers, remove_leftover
    from storage.retention import GRACE, delete_runs, list_runs, older_runs, remove_unused, stale_runs, unused_without
    from storage.sequences import corpus_fingerprint, current_parts
    from storage.store import open_store
    from storage.verification import STALE

    place = open_store(store)
    age = None if older_than is None else parse_age(older_than)
    going = [*stale_runs(place, STALE if age is None else age), *older_runs(place, age, keep)]
    names = [run.run_id for run in going]
    unused = unused_without(place, names, corpus_fingerprint(current_parts(place)))  # the next run may use the rest
    leftovers = find_leftovers(place, [run for run in list_runs(place) if run.run_id not in names], STALE)
    leftovers = [item for item in leftovers if item.name not in {u.name for u in unused}]
    table = _table("what", "name", ">bytes", "why")
    for run in going:
        why = f"{'finished' if run.state == 'complete' else 'broken off'} {run.at:%Y-%m-%d %H:%M}"
        table.add_row(*map(_cell, ("run", run.run_id, _size(run.n_bytes), why)))
    for item in unused:
        table.add_row(*map(_cell, (item.kind, item.name, _size(item.n_bytes), "used by these runs only")))
    for item in leftovers:
        table.add_row(*map(_cell, (item.kind, item.name, _size(item.n_bytes), item.reason)))
    if not table.row_count:
        typer.echo("nothing to remove")
        return
    _console().print(table)
    total = sum(item.n_bytes for item in (*going, *unused, *leftovers))
    if not yes:
        typer.echo(f"{_size(total)} would go; nothing was removed: add --yes")
        return
    if names:
        delete_runs(place, names, timedelta(0) if now else GRACE)
    for item in unused:
        remove_unused(place, item)
    for item in leftovers:
        remove_leftover(item)
    typer.echo(f"{_size(total)} are gone" + (", runs an hour from now at the earliest" if names and not now else ""))


def parse_age(text: str) -> timedelta:
    """A time span from a number and h, d or w."""
    found = re.fullmatch(r"(\d+)\s*([hdw])", text.strip())
    if not found:
        raise InputError(
            "--older-than",
            expected="a number with h, d or w, such as 90d",
            found=repr(text),
            remedy="Correct it.",
        )
    return timedelta(hours=int(found[1]) * {"h": 1, "d": 24, "w": 168}[found[2]])


def _print_pairs(console: Console, title: str, pairs: list[tuple[str, Any]]) -> None:
    table = _table(title, "")
    for name, value in pairs:
        table.add_row(*map(_cell, (name, value)))
    console.print(table)


def _print_stages(console: Console, stages: dict[str, dict[str, float]]) -> None:
    table = _table("stage", ">seconds", ">written")
    for name, cost in stages.items():
        table.add_row(*map(_cell, (name, f"{cost['seconds']:,.1f}", _size(int(cost.get("bytes", 0))))))
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
        console.print(f'{lead}  headwater sql --store {store} "{text}"', highlight=False, markup=False, soft_wrap=True)


def _flat(parameters: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in parameters.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}.")
        elif prefix or name != "queries":
            found.append((prefix + name, ", ".join(map(str, value)) if isinstance(value, list) else value))
    return found


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        table.add_column(name.lstrip(">"), justify="right" if name.startswith(">") else "left", overflow="fold")
    return table


def _cell(value: Any) -> Text:
    if value is None:
        return Text("·")
    return Text(f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else printable(str(value)))


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def _size(n_bytes: int) -> str:
    from storage.pages import size

    return size(n_bytes)


def _json(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False, indent=1)


def _console() -> Console:
    # A pipe has no width of its own; tables in a file or a log are read without wrapping.
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=140)
