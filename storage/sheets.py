"""Sheets: tables of questions that people answer in a spreadsheet, and what comes back from it.

Out go CSV (UTF-8 with its mark, which Excel needs; RFC 4180) or Parquet. Back come CSV in UTF-8 or UTF-16 with commas,
semicolons or tabs, as spreadsheets save it, or Parquet. Rows come back by name alone: what a spreadsheet does to the
other columns is never read.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import InputError
from storage.pages import visible, write_whole
from storage.store import explain_write

Separator = Literal["comma", "semicolon", "tab"]
SEPARATORS: dict[Separator, str] = {"comma": ",", "semicolon": ";", "tab": "\t"}
LONGEST = 32_000  # characters of a cell; spreadsheets hold 32,767 and spill the rest into other cells
FORMULA = "=+-@"  # what a spreadsheet takes for the beginning of a formula
# Where a cell begins, or would if the file were opened with another separator, which splits cells at their own marks.
_BEGINNING = re.compile(rf"(^|[\n\t,;])(?=[{re.escape(FORMULA)}])")
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
SUFFIXES = (".csv", ".parquet")


@dataclass(frozen=True)
class Line:
    """One row as it came back: where it stood, and its cells by column."""

    where: str
    cells: dict[str, str]


def require_sheet_path(path: str | Path) -> Path:
    """The place of a new sheet; refuses another kind of file, and one that is there: it may hold answers."""
    final = Path(path).expanduser().absolute()
    if final.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"sheet {path}", expected="a name ending in .csv or .parquet", found=repr(final.suffix),
            remedy="Rename it; spreadsheets open CSV.",
        )  # fmt: skip
    if final.exists():
        raise InputError(
            f"sheet {path}",
            expected="a name that no file has",
            found="a file, which may hold somebody's answers",
            remedy="Name another, or remove it.",
        )
    return final


def write_sheet(path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]], separator: Separator) -> None:
    """Write a sheet in one step; `columns` are in their order, cells that a row lacks stay empty."""
    if path.suffix.lower() == ".parquet":
        buffer = io.BytesIO()
        pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in columns}), buffer)
        write_whole(path, buffer.getvalue(), "sheet")
        return
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=SEPARATORS[separator], lineterminator="\r\n")
    writer.writerow(columns)
    writer.writerows([_cell(row.get(name)) for name in columns] for row in rows)
    write_whole(path, text.getvalue().encode("utf-8-sig", "replace"), "sheet")


def write_beside(path: Path, ending: str, text: str) -> Path:
    """Write a text that goes with a sheet under the sheet's name and another ending."""
    final = path.with_name(f"{path.stem}{ending}")
    return write_whole(final, text.encode(), "sheet")


def _cell(value: Any) -> Any:
    """A cell that a spreadsheet shows and does not run: no formula, no unseen character, no more than it can hold."""
    if not isinstance(value, str):
        return value
    lines = re.split(r"\r\n|\r|\n", value)
    text = "\n".join("\t".join(map(visible, line.split("\t"))) for line in lines)
    if len(text) > LONGEST:
        text = text[:LONGEST] + " […]"
    return _BEGINNING.sub(r"\1'", text)


def read_sheet(path: str | Path, needed: Sequence[str], known: Sequence[str], encoding: str | None) -> list[Line]:
    """The rows of a sheet that came back; `needed` columns must be there, of the others `known` ones are read.

    Rows without any cell are no rows. `encoding` is for CSV that is neither UTF-8 nor marked as UTF-16.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise _refused(path, "a file", "none", "Check the path.")
    if file.suffix.lower() == ".parquet":
        header, rows = _parquet(file, [*needed, *known])
    elif file.suffix.lower() in (".xlsx", ".xls", ".ods", ".numbers"):
        raise _refused(path, "CSV or Parquet", f"a {file.suffix} file", "Save it as CSV UTF-8 from the spreadsheet.")
    else:
        header, rows = _csv(file, needed, encoding)
    _require_columns(file, header, needed)
    places = {name: header.index(name) for name in (*needed, *known) if name in header}
    lines = []
    for where, cells in rows:
        if any(cells[len(header) :]):
            found = f"{len(cells)}, the last {cells[-1][:40]!r}"
            raise _refused(
                f"{path}, {where}", f"{len(header)} cells", found, "Save it as CSV again, with texts in quotes."
            )
        if any(cells):
            padded = [*cells, *[""] * (len(header) - len(cells))]
            lines.append(Line(where, {name: padded[place].strip() for name, place in places.items()}))
    return lines


def _parquet(file: Path, columns: Sequence[str]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    try:
        header = pq.read_schema(file).names
        present = [name for name in columns if name in header]
        table = pq.read_table(file, columns=present, partitioning=None).cast(
            pa.schema([(n, pa.string()) for n in present])
        )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _refused(file, "a Parquet file with columns of text", _first(error), "Write it again.") from error
    rows = [list(map(_text, row.values())) for row in table.to_pylist()]
    return present, [(f"row {number}", cells) for number, cells in enumerate(rows, start=1)]


def _text(value: str | None) -> str:
    return value or ""


def _csv(file: Path, needed: Sequence[str], encoding: str | None) -> tuple[list[str], list[tuple[str, list[str]]]]:
    with explain_write(file):
        text = _decoded(file, file.read_bytes(), encoding)
    before = 0
    if re.match(r"sep=.\r?\n", text):  # a line for Excel that is no row
        text, before = text.partition("\n")[2], 1
    first = text.splitlines()[0] if text else ""
    # The one that finds most of the columns; of equals the first.
    separator = max(SEPARATORS.values(), key=lambda mark: len(set(needed) & set(_header(first.split(mark)))))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[tuple[str, list[str]]] = []
    try:
        header = _header(next(reader, []))
        began = reader.line_num + before + 1
        for cells in reader:
            rows.append((f"line {began}", cells))
            began = reader.line_num + before + 1
    except csv.Error as error:
        raise _refused(
            f"{file}, line {reader.line_num + before}",
            "CSV with texts in quotes",
            _first(error),
            "Save it as CSV UTF-8 again.",
        ) from error
    return header, rows


def _header(cells: Sequence[str]) -> list[str]:
    return [cell.strip().strip('"').strip().lower() for cell in cells]


def _decoded(file: Path, content: bytes, encoding: str | None) -> str:
    marked = next((name for mark, name in MARKS.items() if content.startswith(mark)), None)
    try:
        text = content.decode(encoding or marked or "utf-8")
    except LookupError as error:
        raise _refused(f"{file}, --encoding", "a name such as cp1252", repr(encoding), "Correct it.") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _refused(
            f"{file}, line {line}",
            encoding or "UTF-8",
            f"the byte {content[error.start]:#04x}, as in a file that was saved in the encoding of a system",
            "Save it as CSV UTF-8, or say what it is: --encoding cp1252 (Windows, western Europe).",
        ) from error
    if "\0" in text:
        raise _refused(
            file, encoding or "UTF-8", "zero bytes", "Save it as CSV UTF-8, or say what it is: --encoding utf-16-le."
        )
    return text


def _require_columns(file: Path, header: list[str], needed: Sequence[str]) -> None:
    expected, remedy = f"columns {', '.join(needed)}", "Bring back the first line as it was exported."
    missing = [name for name in needed if name not in header]
    if missing:
        among = ", ".join(cell[:20] for cell in header[:12]) or "nothing"
        raise _refused(file, expected, f"no {', '.join(missing)} among {among}", remedy)
    doubled = [name for name in needed if header.count(name) > 1]
    if doubled:
        raise _refused(file, expected, f"{', '.join(doubled)} twice", remedy)


def _first(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _refused(subject: str | Path, expected: str, found: str, remedy: str) -> InputError:
    return InputError(f"sheet {subject}", expected=expected, found=found, remedy=remedy)
