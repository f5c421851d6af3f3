"""SQL answers in a terminal: one statement, or a small shell (DuckDB's own needs an extension download)."""

from __future__ import annotations

import csv
import json
import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from storage.catalog import run_user_sql
from storage.errors import InputError
from storage.store import Store
from storage.text import printable

SHOWN = 200  # rows of a table; csv and json print all


def answer(store: Store, statement: str, form: str) -> None:
    """Run one statement and print its rows as a table, csv or json."""
    columns, rows = run_user_sql(store, statement)
    if form == "csv":
        # Whoever redirects wants the rows as they are; a terminal would obey what they hold.
        table = [columns, *rows]
        csv.writer(sys.stdout).writerows([list(map(_shown, row)) for row in table] if sys.stdout.isatty() else table)
    elif form == "json":
        records = [dict(zip(columns, row, strict=True)) for row in rows]
        text = json.dumps(records, default=str, ensure_ascii=False, indent=1)
        print("\n".join(map(printable, text.split("\n"))) if sys.stdout.isatty() else text)
    elif columns:
        Console().print(_table(columns, rows))


def _table(columns: list[str], rows: list[tuple]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for k, name in enumerate(columns):
        numeric = any(isinstance(row[k], (int, float)) for row in rows[:1])
        table.add_column(Text(printable(name)), justify="right" if numeric else "left", overflow="fold")
    for row in rows[:SHOWN]:
        table.add_row(*(Text(_cell(value)) for value in row))
    if len(rows) > SHOWN:
        table.caption = f"{len(rows) - SHOWN:,} more rows: use limit, or --format csv"
    return table


def _shown(value: object) -> object:
    return printable(value) if isinstance(value, str) else value


def _cell(value: object) -> str:
    if value is None:
        return "·"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    return printable(str(value))


def shell(store: Store, form: str) -> None:
    """Read statements until the end of input; one ends with a semicolon."""
    interactive = sys.stdin.isatty()
    if interactive:
        print('headwater sql: statements end with ";"; "show tables;" lists the relations; Ctrl-D leaves.')
    pending = ""
    while True:
        try:
            line = input(("sql> " if not pending else "...> ") if interactive else "")
        except EOFError:
            break
        pending += line + "\n"
        if pending.rstrip().endswith(";"):
            _answer_or_explain(store, pending.strip(), form)
            pending = ""
    if pending.strip():
        _answer_or_explain(store, pending.strip(), form)


def _answer_or_explain(store: Store, statement: str, form: str) -> None:
    try:
        answer(store, statement, form)
    except InputError as error:  # one wrong statement does not end a shell
        print(f"headwater: {printable(str(error))}", file=sys.stderr)
