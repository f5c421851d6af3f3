"""Submit, status, retry: the inbox of a store on the command line."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.console import StoreOption, as_json, make_console, make_table, shell_word
from storage.errors import InputError
from storage.text import printable

SHOWN = 20  # queries of each state, and flow runs


def submit(
    store: StoreOption,
    prompt: Annotated[str | None, typer.Option(help="what the model was given")] = None,
    completion: Annotated[str | None, typer.Option(help="what it said")] = None,
    query_id: Annotated[str | None, typer.Option(help="name of the query; default: made from its text")] = None,
    queries: Annotated[
        str | None, typer.Option(help="JSON lines, or a JSON document, with prompt, completion, query_id")
    ] = None,
) -> None:
    """Hand in queries for the next scheduled trace; safe from many processes at once."""
    from storage.inbox import submit as hand_in
    from storage.prompts import make_prompt, read_prompts
    from storage.store import open_store

    if (queries is None) == (completion is None) or (queries and (prompt or query_id)):
        raise InputError(
            "query",
            expected="either --queries FILE or --prompt with --completion",
            found="both" if queries else "neither",
            remedy="Give one of them.",
        )
    asked = read_prompts(queries) if queries else [make_prompt(prompt or "", completion or "", query_id)]
    new = hand_in(open_store(store), asked)
    for known in [] if queries else asked:
        typer.echo(f"{printable(known.query_id)}{'' if new else ' is known: it came in before, in the same words'}")
    typer.echo(f"{len(new):,} of {len(asked):,} queries are new in {store}")
    typer.echo(f"next  headwater status --store {shell_word(store)}")


def retry(
    store: StoreOption,
    queries: Annotated[
        list[str] | None,
        typer.Argument(help="queries that failed or whose run was deleted; none: all failed"),
    ] = None,
) -> None:
    """Let queries wait again for the next scheduled trace."""
    from storage.inbox import retry as retry_failed
    from storage.store import open_store

    typer.echo(f"{len(retry_failed(open_store(store), queries or []))} queries wait again")


def status(
    store: StoreOption,
    format: Annotated[Literal["table", "json"], typer.Option(help="how it is printed")] = "table",
) -> None:
    """What waits, what runs, what failed: in the store, and at the Prefect server that PREFECT_API_URL names."""
    from flows.runs import flow_runs, server_url
    from storage.inbox import count_states, query_states
    from storage.store import open_store

    place = open_store(store)
    counts, url = count_states(place), server_url()
    open_queries = [row for row in query_states(place) if row["state"] != "answered"]
    runs, trouble = flow_runs(place) if url else ([], None)
    if format == "json":
        found = {"queries": counts, "open": open_queries, "server": url, "trouble": trouble, "flow_runs": runs}
        typer.echo(as_json(found))
        return
    console = make_console()
    console.print(
        f"{counts['waiting']:,} queries wait · {counts['failed']:,} failed · {counts['answered']:,} answered",
        markup=False,
    )
    for state in ("waiting", "failed"):
        _print_queries(console, state, [row for row in open_queries if row["state"] == state])
    _print_runs(console, store, runs, url, trouble)
    if counts["failed"]:
        console.print(f"next  headwater retry --store {shell_word(store)}", markup=False)


def _print_queries(console: Console, state: str, found: list[dict[str, Any]]) -> None:
    if not found:
        return
    column, title = {"waiting": ("submitted_at", "since (UTC)"), "failed": ("error", "why")}[state]
    table = make_table(state, title)
    for row in found[:SHOWN]:
        table.add_row(Text(printable(row["query_id"])), Text(printable(_seconds(row[column]))))
    _close(console, table, len(found))


def _print_runs(console: Console, store: str, runs: list[dict[str, Any]], url: str | None, trouble: str | None) -> None:
    if url is None:
        console.print("no server is asked what runs: PREFECT_API_URL is not set", style="dim")
    elif trouble:
        console.print(f"Prefect at {url} does not answer: {trouble}", markup=False)
    elif not runs:
        console.print(f"no flow runs, waits or failed in the last day: {url}, store {store}", markup=False)
    else:
        table = make_table("flow", "state", "at (UTC)", "what it says")
        for run in runs[:SHOWN]:
            message = Text(printable(run["message"] or ""))
            table.add_row(Text(run["flow"]), run["state"], _seconds(run["at"]), message)
        _close(console, table, len(runs))


def _close(console: Console, table: Table, n: int) -> None:
    console.print(table)
    if n > SHOWN:
        console.print(f"… and {n - SHOWN:,} more: --format json", style="dim")


def _seconds(value: Any) -> str:
    return f"{value:%Y-%m-%d %H:%M:%S}" if hasattr(value, "strftime") else str(value)
