"""Sheets as spreadsheets save them: written so that they survive one, read back whatever it did, or refused by name."""

from __future__ import annotations

import csv
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.errors import InputError
from storage.sheets import LONGEST, SEPARATORS, read_sheet, require_sheet_path, write_sheet

NEEDED, KNOWN = ("item", "description", "relationship"), ("annotator",)
ROWS = [
    {"item": "item-1", "description": "a “letter”, to a landlord; angry", "relationship": "irrelevant",
     "annotator": "Zoë"},
    {"item": "item-2", "description": "two\nlines", "relationship": "both say 日本", "annotator": "بن"},
]  # fmt: skip


def save(path, rows, delimiter=",", ending="\r\n", encoding="utf-8-sig", header=(*NEEDED, *KNOWN)):
    """A file as a spreadsheet would write it, made by Python's own csv module."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=ending)
    writer.writerow(header)
    writer.writerows([row.get(name, "") for name in header] for row in rows)
    path.write_bytes(text.getvalue().encode(encoding))
    return path


def read(path, encoding=None):
    return [line.cells for line in read_sheet(path, NEEDED, KNOWN, encoding)]


@pytest.mark.parametrize(
    ("delimiter", "ending", "encoding"),
    [
        (",", "\r\n", "utf-8-sig"),  # Excel, CSV UTF-8
        (";", "\r\n", "utf-8-sig"),  # the same where a comma is in every number
        ("\t", "\r\n", "utf-16"),  # Excel, Unicode text
        (",", "\n", "utf-8"),  # LibreOffice
        (";", "\n", "utf-8"),
    ],
)
def test_what_spreadsheets_save_is_read(tmp_path, delimiter, ending, encoding):
    assert read(save(tmp_path / "s.csv", ROWS, delimiter, ending, encoding)) == ROWS


@pytest.mark.parametrize("separator", list(SEPARATORS))
def test_a_sheet_comes_back_as_it_was_written(tmp_path, separator):
    write_sheet(tmp_path / "s.csv", [*NEEDED, *KNOWN], ROWS, separator)
    assert (tmp_path / "s.csv").read_bytes().startswith(b"\xef\xbb\xbfitem")
    assert read(tmp_path / "s.csv") == ROWS


def test_parquet_comes_back_whatever_kind_of_text_it_holds(tmp_path):
    write_sheet(tmp_path / "s.parquet", [*NEEDED, *KNOWN], ROWS, "comma")
    assert read(tmp_path / "s.parquet") == ROWS
    table = pa.table(
        {"item": pa.array(["item-1"], pa.large_string()), "description": ["a"], "relationship": pa.nulls(1),
         "annotator": [7]}
    )  # fmt: skip
    pq.write_table(table, tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet") == [
        {"item": "item-1", "description": "a", "relationship": "", "annotator": "7"}
    ]


def test_no_cell_is_a_formula_or_holds_what_a_spreadsheet_cannot(tmp_path):
    hostile = ["=HYPERLINK(1)", "+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "a\x00b\x1b[2J", "x" * 40_000, "a = b - c"]
    write_sheet(tmp_path / "s.csv", ["target"], [{"target": text} for text in hostile], "comma")
    raw = (tmp_path / "s.csv").read_text(encoding="utf-8-sig")
    cells = [row[0] for row in csv.reader(io.StringIO(raw, newline=""))][1:]
    assert cells[:6] == ["'=HYPERLINK(1)", "'+1", "'-2+3", "'@SUM(A1)", "\t'=1", "\n'=1"]
    assert cells[6] == "a␀b␛[2J"
    assert len(cells[7]) < 32_767 < 40_000
    assert cells[7] == "x" * LONGEST + " […]"
    assert cells[8] == "a = b - c"


@pytest.mark.parametrize("opened_with", [",", ";", "\t"])
@pytest.mark.parametrize("separator", list(SEPARATORS))
def test_no_cell_is_a_formula_where_the_file_is_opened_with_another_separator(tmp_path, separator, opened_with):
    text = 'a "quoted" word;=cmd|1,=cmd|2\t=cmd|3\n=cmd|4\n-cmd|5'
    write_sheet(tmp_path / "s.csv", ["item", "target"], [{"item": "item-1", "target": text}], separator)
    raw = (tmp_path / "s.csv").read_text(encoding="utf-8-sig")
    cells = [cell for row in csv.reader(io.StringIO(raw, newline=""), delimiter=opened_with) for cell in row]
    assert [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))] == []
    # As a spreadsheet without any notion of quotes would split it.
    assert [cell for line in raw.splitlines() for cell in line.split(opened_with) if cell[:1] in ("=", "-")] == []


def test_numbers_stay_numbers_and_negative_ones_too(tmp_path):
    write_sheet(tmp_path / "s.csv", ["score"], [{"score": -1.5}, {"score": 3}], "comma")
    assert (tmp_path / "s.csv").read_bytes().decode("utf-8-sig") == "score\r\n-1.5\r\n3\r\n"


def test_columns_may_move_be_added_and_be_written_large(tmp_path):
    header = ("Remarks", "RELATIONSHIP", "item ", "Description")
    rows = [{"RELATIONSHIP": "irrelevant", "item ": "item-1", "Description": "a poem", "Remarks": "?"}]
    assert read(save(tmp_path / "s.csv", rows, header=header)) == [
        {"item": "item-1", "description": "a poem", "relationship": "irrelevant"}
    ]


def test_rows_without_a_cell_are_no_rows_and_lines_are_counted_as_an_editor_does(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text('sep=;\nitem;description;relationship\nitem-1;"a\nb";c\n;;\n\nitem-2;d\n', encoding="utf-8")
    found = read_sheet(path, NEEDED, KNOWN, None)
    assert [line.cells["description"] for line in found] == ["a\nb", "d"]
    assert [line.where for line in found] == ["line 3", "line 7"]
    assert found[1].cells["relationship"] == ""


def test_the_encoding_of_a_system_is_refused_unless_it_is_named(tmp_path):
    path = save(tmp_path / "s.csv", ROWS[:1], encoding="cp1252")
    with pytest.raises(InputError, match="line 2: expected UTF-8, found the byte 0x93.*--encoding cp1252"):
        read(path)
    assert read(path, "cp1252") == ROWS[:1]
    with pytest.raises(InputError, match="a name such as cp1252, found 'latin-99'"):
        read(path, "latin-99")
    unmarked = save(tmp_path / "u.csv", ROWS[:1], encoding="utf-16-le")
    with pytest.raises(InputError, match=r"expected UTF-8, found (zero bytes|the byte)"):
        read(unmarked)
    assert read(unmarked, "utf-16-le") == ROWS[:1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("item,description\nitem-1,a\n", "found no relationship among item, description. Bring back the first line"),
        ("", "found no item, description, relationship among nothing"),
        ("item,description,relationship,item\n", "found item twice"),
        ("item,description,relationship\nitem-1,a,b,c\n", "line 2: expected 3 cells, found 4, the last 'c'"),
        ('item,description,relationship\nitem-1,"a,b\n', "expected CSV with texts in quotes"),
    ],
)
def test_what_is_no_sheet_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "s.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read(path)


def test_other_kinds_of_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="expected a file, found none"):
        read(tmp_path / "none.csv")
    (tmp_path / "s.xlsx").write_bytes(b"PK")
    with pytest.raises(InputError, match="Save it as CSV UTF-8 from the spreadsheet"):
        read(tmp_path / "s.xlsx")
    (tmp_path / "s.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="expected a Parquet file"):
        read(tmp_path / "s.parquet")
    with pytest.raises(InputError, match="a name ending in .csv or .parquet, found '.xlsx'"):
        require_sheet_path(tmp_path / "new.xlsx")


def test_a_sheet_that_may_hold_answers_is_not_written_over(tmp_path):
    (tmp_path / "s.csv").write_text("answers")
    with pytest.raises(InputError, match="which may hold somebody's answers"):
        require_sheet_path(tmp_path / "s.csv")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected a path that can be written"):
        write_sheet(tmp_path / "file" / "s.csv", ["item"], [], "comma")
