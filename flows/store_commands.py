"""A store as a whole on the command line: `headwater store verify | compact | prune`."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Literal

import typer
from rich.text import Text

from flows.console import StoreOption, as_json, cell, make_console, make_table
from storage.errors import InputError
from storage.text import printable, size

store_app = typer.Typer(no_args_is_help=True, help="A store as a whole: verify, compact, prune.")

FormatOption = Annotated[Literal["table", "json"], typer.Option(help="how it is printed")]
NowOption = Annotated[bool, typer.Option("--now", help="remove files at once: a reader's running query may fail")]


@store_app.command()
def verify(store: StoreOption, format: FormatOption = "table") -> None:
    """Read everything and check it: files, corpus parts, factors, every run; exit code 1 when something is wrong."""
    from storage.store import open_store
    from storage.verification import verify as verify_store

    counts, findings = verify_store(open_store(store))
    if format == "json":
        typer.echo(as_json({"read": vars(counts), "wrong": [vars(finding) for finding in findings]}))
    else:
        for finding in findings:
            make_console().print(Text(printable(finding.what), "bold red"), soft_wrap=True)
            for lead, text in (("found", finding.found), ("next ", finding.next_step)):
                make_console().print(Text(f"  {lead}  {printable(text)}"), soft_wrap=True)
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
    from storage.leftovers import STALE
    from storage.pruning import plan_pruning
    from storage.pruning import prune as carry_out
    from storage.retention import GRACE
    from storage.store import open_store

    place = open_store(store)
    age = None if older_than is None else parse_age(older_than)
    plan = plan_pruning(place, age, keep, STALE if age is None else age, STALE)
    table = make_table("what", "name", ">bytes", "why")
    for run in plan.runs:
        why = f"{'finished' if run.state == 'complete' else 'broken off'} {run.at:%Y-%m-%d %H:%M}"
        table.add_row(*map(cell, ("run", run.run_id, size(run.n_bytes), why)))
    for unused in plan.unused:
        table.add_row(*map(cell, (unused.kind, unused.name, size(unused.n_bytes), "used by these runs only")))
    for leftover in plan.leftovers:
        table.add_row(*map(cell, (leftover.kind, leftover.name, size(leftover.n_bytes), leftover.reason)))
    if not table.row_count:
        typer.echo("nothing to remove")
        return
    make_console().print(table)
    if not yes:
        typer.echo(f"{size(plan.n_bytes)} would go; nothing was removed: add --yes")
        return
    carry_out(place, plan, timedelta(0) if now else GRACE)
    later = ", runs an hour from now at the earliest" if plan.runs and not now else ""
    typer.echo(f"{size(plan.n_bytes)} are gone{later}")


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
