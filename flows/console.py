"""What commands share: the option that names a store, tables, cells, and words that a shell takes as they are."""

from __future__ import annotations

import json
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from storage.text import printable

if TYPE_CHECKING:
    from tasks.fact_tables import Table as EstimateTable

StoreOption = Annotated[str, typer.Option("--store", help="directory of the store")]


def make_console() -> Console:
    """A console that wraps at the terminal's width; a pipe has none, and its tables are read without wrapping."""
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=140)


def make_table(*columns: str) -> Table:
    """An empty table without lines; columns whose name begins with > stand to the right."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        table.add_column(name.lstrip(">"), justify="right" if name.startswith(">") else "left", overflow="fold")
    return table


def print_estimates(table: EstimateTable, console: Console) -> None:
    """A table of figures, those with an interval before it."""
    console.print()
    console.print(Text(table.title, style="bold"))
    shown = make_table(table.axis, *(f">{printable(name)}" for name in table.columns))
    for row in table.rows:
        cells = [
            Text("·") if cell is None
            else Text.assemble(
                (printable(cell.value), "bold" if cell.best else ""), (f" {cell.interval}", "dim"), no_wrap=True
            )
            for cell in row.cells
        ]  # fmt: skip
        shown.add_row(Text(printable(row.name), no_wrap=True), *cells)
    console.print(shown)


def cell(value: Any) -> Text:
    """A value as text that commands no terminal."""
    if value is None:
        return Text("·")
    return Text(f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else printable(str(value)))


def listed(words: str) -> list[str]:
    """What stands between commas."""
    return [word.strip() for word in words.split(",") if word.strip()]


def typed_command() -> str:
    """The command that this process was started with, as a shell takes it."""
    return shlex.join(["headwater", *sys.argv[1:]])


def say_page(page: Path, began: float) -> None:
    """Where a page is, and what all took since `began`, a reading of `time.perf_counter`."""
    make_console().print(f"page: {page}   ({time.perf_counter() - began:.0f} s in all)", markup=False, soft_wrap=True)


def say_statement(store: str, statement: str) -> None:
    """The next step: SQL to ask the store."""
    line = f"next  headwater sql --store {shell_word(store)} {shell_word(statement)}"
    make_console().print(line, markup=False, soft_wrap=True)


def as_json(value: Any) -> str:
    """Records for another program."""
    return json.dumps(value, default=str, ensure_ascii=False, indent=1)


def shell_word(text: str) -> str:
    """`text` as one word of a POSIX shell that runs nothing; in double quotes, as SQL reads best, where those do."""
    if set(text) & set('"$`\\!'):
        return shlex.quote(text)
    return text if shlex.quote(text) == text else f'"{text}"'


def explained(errors: Sequence[Any], whole: str = "as a whole") -> str:
    """What pydantic found wrong with parameters, a line each; `whole` names all of them together."""
    places = [e["loc"] for e in errors]
    # A list whose items are wrong is too short besides, for pydantic.
    said = [
        e for e in errors if not any(len(p) > len(e["loc"]) and p[: len(e["loc"])] == e["loc"] != () for p in places)
    ]
    return "\n".join(f"parameter {'.'.join(map(str, e['loc'])) or whole}: {_complaint(e)}" for e in said)


def _complaint(error: Any) -> str:
    """A validator of ours says all itself; pydantic's own say what was expected."""
    said = error["msg"].removeprefix("Value error, ")
    if "expected" in said and "found" in said:
        return said
    said = re.sub("^(greater|less)", r"a number \1", said.removeprefix("Input should be "))
    return f"expected {said}, found {str(error.get('input'))[:80]!r}. Correct it."
