"""Sheets for people, their answers, and what they say: a store written by hand, edited as a spreadsheet would."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil

import pyarrow.parquet as pq
import pytest
import tiny_runs
from typer.testing import CliRunner

from flows.annotate_commands import annotate_app
from storage.catalog import run_user_sql
from storage.errors import InputError, MismatchError
from storage.prompts import make_prompt, register_prompts
from storage.retention import delete_runs
from storage.schemas import SCHEMAS
from storage.store import create_store, open_store
from storage.tables import write_part
from storage.verification import verify
from tasks.annotation_answers import import_sheets
from tasks.annotation_sheets import SheetParameters, export_sheet, marked
from tasks.evaluate import evaluate_retrieval, runs_to_evaluate
from tasks.studies.annotations import study_annotations
from tasks.study_page import write_study_page

TEXTS = ["=1+1 is what she wrote", "Two dogs;=3 <b>and</b>\na cat", "Nothing here", "\x1b[2J odd \u202etfel"]
# Influence of the four sequences by run and query, falling; what is not above 0 is no item.
INFLUENCE = {
    "run-1": {"q0": {0: 9.0, 1: 6.0, 2: 3.0, 3: -1.0}, "q1": {3: 2.0, 2: 1.0, 0: -1.0, 1: -2.0}},
    "run-2": {"q0": {2: 4.0, 0: 3.0, 1: -1.0, 3: -2.0}, "q1": {0: -1.0, 1: -2.0, 2: -3.0, 3: -4.0}},
}
# Of run-1: tokens of each pair; (q0, 1) has nine tenths on one, ‖a‖₂ / ‖a‖₁ = √(.81 + 3/900) ≈ .90; (q0, 0) is even.
TOKENS = {
    ("q0", 0): [2.25] * 4, ("q0", 1): [5.4, 0.2, 0.2, 0.2], ("q0", 2): [1.0, 1.0, 0.5, 0.5],
    ("q1", 3): [0.5] * 4, ("q1", 2): [1.0, 0.0, 0.0, 0.0],
}  # fmt: skip


def write(store, relation, part, **columns):
    n = len(next(iter(columns.values())))
    write_part(store, relation, part, columns={c: columns.get(c, [None] * n) for c in SCHEMAS[relation].names})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store and two sheets of it, made once: a.csv of run-1, both.csv of the first two of both runs, twice."""
    folder = tmp_path_factory.mktemp("annotations")
    store = make_store(folder / "s")
    export(store, folder / "a.csv", runs=("run-1",))
    export(store, folder / "both.csv", runs=("run-1", "run-2"), first=2, annotators=2)
    return folder


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / "s")


@pytest.fixture
def exported(made, tmp_path):
    """A copy of that store, with the sheets beside it."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return open_store(tmp_path / "s")


def make_store(path, runs=tuple(INFLUENCE)):
    store = create_store(path)
    write(
        store, "documents", "p0", document_id=[f"d{s}" for s in range(4)], text=[f"{text} tail" for text in TEXTS],
        metadata=[json.dumps({"about": s}) for s in range(4)],
    )  # fmt: skip
    write(
        store, "sequences", "p0", sequence_id=list(range(4)), document_id=[f"d{s}" for s in range(4)],
        start_char=[0] * 4, end_char=[len(text) for text in TEXTS],
    )  # fmt: skip
    true = json.dumps({"about": 1})
    register_prompts(store, [make_prompt("A cat", " sat.", "q0", true), make_prompt("-He ran", " <i>off</i>.", "q1")])
    for day, run in enumerate(runs):
        tiny_runs.write_run(store, run, day=day, model=f"models/{'small' if run == 'run-1' else 'large'}")
        rows = [(q, s, v, k + 1) for q, of in INFLUENCE[run].items() for k, (s, v) in enumerate(of.items())]
        write(
            store, "influences", run, run_id=[run] * 8, query_id=[q for q, *_ in rows],
            sequence_id=[s for _, s, *_ in rows], method=["ekfac"] * 8, influence=[v for *_, v, _ in rows],
            influence_rank=[k for *_, k in rows],
        )  # fmt: skip
        write(store, "run_queries", run, run_id=[run] * 2, query_id=["q0", "q1"])
        cells = [(q, s, t, v) for (q, s), of in TOKENS.items() for t, v in enumerate(of)] if run == "run-1" else []
        write(
            store, "token_influences", run, run_id=[run] * len(cells), query_id=[q for q, *_ in cells],
            sequence_id=[s for _, s, *_ in cells], layer=[0] * len(cells), position=[t for *_, t, _ in cells],
            token=["ab"[t % 2] for *_, t, _ in cells], influence=[v for *_, v in cells],
        )  # fmt: skip
    return store


def ask(store, statement):
    return run_user_sql(store, statement)[1]


def rows_of(path):
    text = path.read_bytes().decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=text[len("item")]))


def answer(path, said, out=None, delimiter=";", encoding="utf-8-sig"):
    """Fill in a sheet as a spreadsheet would: said(row) gives description, relationship and annotator, or nothing."""
    rows = rows_of(path)
    for row in rows:
        row.update(zip(("description", "relationship", "annotator"), said(row) or ("", "", ""), strict=True))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    (out or path).write_bytes(text.getvalue().encode(encoding))
    return out or path


def export(store, path, **asked):
    return export_sheet(store, SheetParameters(**asked), path)


# Sheets


def test_a_sheet_has_the_first_sequences_that_raised_each_query(store, tmp_path):
    sheet = export(store, tmp_path / "a.csv", runs=("run-1",), first=2)
    rows = rows_of(sheet.path)
    assert [(r["query"], r["rank"], r["score"], r["spurious"]) for r in rows] == [
        ("q0", "1", "9.0", "no"), ("q0", "2", "6.0", "yes"), ("q1", "1", "2.0", "no"), ("q1", "2", "1.0", "yes"),
    ]  # fmt: skip
    assert [r["target"] for r in rows] == [
        "'=1+1 is what she wrote", "Two dogs;'=3 <b>and</b>\na cat", "␛[2J odd ⟨U+202E⟩tfel", "Nothing here",
    ]  # fmt: skip
    assert {r["reference"] for r in rows} == {"A cat sat.", "'-He ran <i>off</i>."}
    assert {(r["description"], r["relationship"], r["annotator"]) for r in rows} == {("", "", "")}
    assert (sheet.n_items, sheet.n_spurious, sheet.without) == (4, 2, ())
    said = sheet.instructions.read_text()
    assert "irrelevant" in said
    assert "Brackets" not in said
    assert ask(store, "select query_id, sequence_id, is_spurious from annotation_items order by all") == [
        ("q0", 0, False), ("q0", 1, True), ("q1", 2, True), ("q1", 3, False),
    ]  # fmt: skip


def test_several_models_stand_in_one_sheet_and_a_query_that_nothing_raised_is_named(store, tmp_path):
    sheet = export(store, tmp_path / "a.csv", runs=("run-1", "run-2", "latest"))
    rows = rows_of(sheet.path)
    assert [(r["query"], r["model"], r["rank"]) for r in rows] == [
        ("q0", "small", "1"), ("q0", "small", "2"), ("q0", "small", "3"), ("q0", "large", "1"), ("q0", "large", "2"),
        ("q1", "small", "1"), ("q1", "small", "2"),
    ]  # fmt: skip
    assert {r["spurious"] for r in rows if r["model"] == "large"} == {""}  # that run has no tokens
    assert sheet.without == ("q1",)
    with pytest.raises(InputError, match="run-2 .*expected sequences that raised a query, found none for any of 1"):
        export(store, tmp_path / "b.csv", runs=("run-2",), queries=("q1",))
    with pytest.raises(InputError, match="query 'q9' of run run-1.*expected one of q0, q1"):
        export(store, tmp_path / "b.csv", runs=("run-1",), queries=("q9",))


def test_a_blind_sheet_says_nothing_of_models_and_ranks_and_every_place_has_an_order_of_its_own(store, tmp_path):
    sheet = export(store, tmp_path / "a.csv", runs=("run-1", "run-2"), blind=True, annotators=2, seed=3)
    rows = rows_of(sheet.path)
    assert list(rows[0]) == ["item", "place", "reference", "target", "description", "relationship", "annotator"]
    assert {row["reference"] for row in rows} == {"A cat sat.", "'-He ran <i>off</i>."}
    assert all(re.fullmatch("item-[0-9a-f]{12}", row["item"]) for row in rows)
    items = [[row["item"] for row in rows if row["place"] == place] for place in "12"]
    assert (
        sorted(items[0]) == sorted(items[1]) == sorted(i for (i,) in ask(store, "select item_id from annotation_items"))
    )
    assert items[0] != items[1]
    again = export(store, tmp_path / "b.csv", runs=("run-1", "run-2"), blind=True, annotators=2, seed=3)
    assert again.path.read_bytes() == sheet.path.read_bytes()
    other = export(store, tmp_path / "c.csv", runs=("run-1", "run-2"), blind=True, annotators=2, seed=4)
    assert sorted(rows_of(other.path), key=str) == sorted(rows, key=str) != rows_of(other.path)
    assert "take all rows of one number under `place`" in sheet.instructions.read_text()


def test_tokens_that_raised_it_most_are_marked(store, tmp_path):
    assert marked("abcd", ["a", "b", "c", "d"], [3.0, 2.0, -9.0, 1.0], 3) == "⟦ab⟧c⟦d⟧"
    assert marked("ab", ["a", "b"], [-1.0, 0.0], 2) == "ab"
    # What is no text of the document is not shown, nor a space that the tokenizer put before its first word.
    assert marked("a b", ["<s>", " a", " b", "</s>"], [9.0, 0.0, 1.0, 8.0], 3) == "a⟦ b⟧"
    assert marked("é!", ["\ufffd", "\ufffd", "!"], [0.0, 0.0, 1.0], 1) == "é⟦!⟧"
    assert marked("x日本!", ["<s>", "x", *["\ufffd"] * 6, "!"], [0, 0, 0, 0, 0, 0, 1.0, 0, 0], 1) == "x⟦日本⟧!"
    assert marked("of another text", ["a", "b"], [0.0, 1.0], 1) == "a⟦b⟧"
    sheet = export(store, tmp_path / "a.csv", runs=("run-1",), queries=("q0",), mark=1)
    assert [r["target"] for r in rows_of(sheet.path)] == ["⟦a⟧bab", "⟦a⟧bab", "⟦a⟧bab"]
    with pytest.raises(InputError, match="run run-2.*expected influences of its tokens.*none, and of 2 of 2"):
        export(store, tmp_path / "b.csv", runs=("run-2",), mark=1)


def test_a_sheet_in_parquet_has_the_texts_as_they_are(store, tmp_path):
    sheet = export(store, tmp_path / "a.parquet", runs=("run-1",), first=1)
    assert [row["target"] for row in pq.read_table(sheet.path).to_pylist()] == [TEXTS[0], TEXTS[3]]


# Answers


def test_answers_come_back_once_however_often_they_are_handed_in(exported, tmp_path):
    path = tmp_path / "a.csv"
    answer(path, lambda row: ("a sum; =1", "IRRELEVANT.", " Zoë  B") if row["rank"] == "1" else None)
    found, recorded = import_sheets(exported, [path])
    assert (found.n_rows, found.n_empty, found.annotators) == (5, 3, {"Zoë B": 2})
    assert (recorded.new, recorded.known, recorded.replaced) == (2, 0, 0)
    assert import_sheets(exported, [path, path])[1].known == 2
    statement = "select description, relationship, annotator, is_relevant from annotations"
    assert ask(exported, statement) == [("a sum; =1", "IRRELEVANT.", "Zoë B", False)] * 2
    assert ask(exported, "select count(*) from stored.annotations") == [(2,)]
    answer(path, lambda row: ("a sum", "both are short", "Zoë B") if row["rank"] == "1" else None)
    with pytest.raises(InputError, match="found 2 that somebody gave otherwise before: item-.* by Zoë B.*--replace"):
        import_sheets(exported, [path])
    assert import_sheets(exported, [path], replace=True)[1].replaced == 2
    assert ask(exported, statement) == [("a sum", "both are short", "Zoë B", True)] * 2
    assert ask(exported, "select count(*) from stored.annotations") == [(4,)]  # what was said before is kept


def test_half_an_answer_is_left_out_and_one_that_may_mean_irrelevant_is_named(exported, tmp_path):
    path = tmp_path / "a.csv"
    said = {
        ("q0", "1"): ("a sum", "", "ann"), ("q0", "2"): ("", "irrelevant", "ann"),
        ("q0", "3"): ("a line", "Seems unrelated to it", "ann"), ("q1", "1"): ("a line", " (irrelevant) ", "ann"),
    }  # fmt: skip
    answer(path, lambda row: said.get((row["query"], row["rank"])))
    found, recorded = import_sheets(exported, [path])
    assert [text.rpartition(", ")[2] for text in found.incomplete] == [
        "line 2: no relationship",
        "line 3: no description",
    ]
    assert [text.rpartition(": ")[2] for text in found.doubtful] == ["Seems unrelated to it"]
    assert recorded.new == 2
    assert ask(exported, "select is_relevant from annotations order by 1") == [(False,), (True,)]


def test_a_row_without_a_name_is_refused_unless_it_is_said_whose_it_is(exported, tmp_path):
    path = tmp_path / "a.csv"
    answer(path, lambda row: ("a", "b", ""))
    with pytest.raises(InputError, match="sheet .*a.csv, line 2: expected a name under 'annotator'.*--annotator NAME"):
        import_sheets(exported, [path])
    assert import_sheets(exported, [path], annotator="ben")[0].annotators == {"ben": 5}


def test_one_person_answers_an_item_once_and_nothing_is_kept_of_an_import_that_is_refused(exported, tmp_path):
    path = tmp_path / "both.csv"
    answer(path, lambda row: ("a", f"b{row['place']}", "ann"))
    with pytest.raises(InputError, match="line 9: expected one answer of ann to item-.*found another than in .*line 2"):
        import_sheets(exported, [path])
    assert ask(exported, "select * from annotations") == []
    answer(path, lambda row: ("a", "b", "ann"))
    assert import_sheets(exported, [path])[0].n_repeated == 6


def test_a_sheet_of_another_store_is_refused_and_so_is_a_name_that_was_changed(exported, tmp_path):
    path = answer(tmp_path / "a.csv", lambda row: ("a", "b", "ann"))
    other = make_store(tmp_path / "other", runs=("run-2",))
    with pytest.raises(MismatchError, match="of which there are 0, found none of them, the first 'item-"):
        import_sheets(other, [path])
    path.write_text(path.read_text("utf-8-sig").replace("item-", "Item ", 1).replace("Item ", "item-", 0), "utf-8")
    with pytest.raises(
        InputError, match="1 of 5 rows to import: expected items as they were exported, found .*line 2: 'Item "
    ):
        import_sheets(exported, [path])


# What they say


@pytest.fixture
def answered(exported, tmp_path):
    """Two people on both runs' first two of q0 and on run-1's of q1: they differ on one sequence."""
    relevant = {("small", "q0", "1"): "11", ("small", "q0", "2"): "10", ("small", "q1", "1"): "00",
                ("large", "q0", "1"): "11", ("large", "q0", "2"): "00"}  # fmt: skip

    def said(row):
        place = int(row["place"])
        votes = relevant.get((row["model"], row["query"], row["rank"]))
        if votes is None:
            return None
        return "a <b>text</b>", "both = short" if votes[place - 1] == "1" else "irrelevant", ["ann", "ben"][place - 1]

    import_sheets(exported, [answer(tmp_path / "both.csv", said)])
    return exported


def test_shares_and_agreement_are_those_worked_out_on_paper(answered):
    page = study_annotations(answered, "headwater annotate agreement")
    table = {row.name: [cell and cell.value for cell in row.cells] for row in page.blocks[0].table.rows}
    # small: (1 + 1/2 + 0) / 3; without the spurious q0-2: (1 + 0) / 2; pairs agree on 2 of 3.
    # Counts (irrelevant, relevant) (0, 2), (1, 1), (2, 0): α = 1 − (6 − 1) · 2 / (2 · 3 · 3) = .444
    assert table["small, 3 of 5 answered"] == [".500", ".500", ".667", ".444"]
    # large has no tokens, so nothing is known to be spurious; (0, 2) and (2, 0): all agree.
    assert table["large, 2 of 2 answered"] == [".500", ".500", "1.000", "1.000"]
    people = {row.name: [cell.value for cell in row.cells] for row in page.blocks[1].table.rows}
    assert people == {"ann": ["5", "60%", "80%", "5"], "ben": ["5", "40%", "80%", "5"]}
    found = ask(
        answered, "select run_id, method, metric, value, n from evaluations where run_id = 'run-1' order by metric"
    )
    assert found == [
        ("run-1", "ekfac", "annotator_agreement", pytest.approx(2 / 3), 3),
        ("run-1", "ekfac", "krippendorff_alpha", pytest.approx(1 - 10 / 18), 3),
        ("run-1", "ekfac", "relevant", 0.5, 3),
        ("run-1", "ekfac", "relevant_without_spurious", 0.5, 2),
    ]


def test_the_table_by_model_greys_what_is_spurious_and_shows_markup_as_text(answered, tmp_path):
    page = study_annotations(answered, "headwater annotate agreement")
    first = page.blocks[2]
    assert first.title == "A cat sat."
    assert [(row.name, row.kind, row.set_aside, row.cells[0].value) for row in first.table.rows] == [
        ("large", "", False, "1"), ("large", "", False, "1"), ("large", "", False, "2"), ("large", "", False, "2"),
        ("small", "", False, "1"), ("small", "", False, "1"), ("small", "spurious", True, "2"),
        ("small", "spurious", True, "2"),
    ]  # fmt: skip
    html = write_study_page(page, tmp_path / "page.html").read_text()
    assert html.count('<tr class="aside">') == 2
    assert "a &lt;b&gt;text&lt;/b&gt;" in html
    assert "<b>text" not in html
    assert "<i>off" not in html
    for block in page.blocks:
        assert ask(answered, block.statement)


def test_answers_stay_when_a_run_is_deleted_and_a_store_with_them_is_sound(answered):
    delete_runs(answered, ["run-2"])
    page = study_annotations(answered, "")
    assert [row.name for row in page.blocks[0].table.rows] == ["large, 2 of 2 answered", "small, 3 of 5 answered"]
    assert ask(answered, "select distinct run_id from evaluations") == [("run-1",)]
    assert ask(answered, "select count(*) from annotated_sequences('run-2')") == [(4,)]
    wrong = [found.what for found in verify(answered)[1]]
    assert [what for what in wrong if "annotat" in what] == []


def test_what_people_said_stands_beside_the_nightly_evaluation_and_does_not_take_its_place(answered):
    study_annotations(answered, "")
    assert runs_to_evaluate(answered, 10) == ["run-2", "run-1"]
    for run in ("run-1", "run-2"):
        evaluate_retrieval.fn(answered, run)
    assert runs_to_evaluate(answered, 10) == []
    found = ask(
        answered, "select metric, value from evaluations where run_id = 'run-1' and metric in ('mrr', 'relevant')"
    )
    assert sorted(found) == [("mrr", 0.5), ("relevant", 0.5)]  # document 1 is the second sequence of q0


def test_a_store_without_answers_says_how_to_get_some(store, tmp_path):
    with pytest.raises(InputError, match="found none to 0 items that were exported. headwater annotate export"):
        study_annotations(store, "")
    export(store, tmp_path / "a.csv", runs=("run-1",))
    with pytest.raises(InputError, match="found none to 5 items"):
        study_annotations(store, "")


def test_the_commands_say_what_they_did_and_what_comes_next(store, tmp_path):
    def run(*words):
        done = CliRunner().invoke(annotate_app, [*map(str, words), "--store", str(store.root)])
        assert done.exit_code == 0, done.output
        return done.output

    sheet = tmp_path / "a.csv"
    said = run("export", "-o", sheet, "--run", "run-1", "--run", "run-2", "--first", 2)
    assert "6 rows about 6 sequences" in said
    assert "no sequence raised 1 queries: q1" in said
    assert "headwater annotate import" in said
    answer(sheet, lambda row: ("a", "b", "ann") if row["rank"] == "1" else ("a", "", "ann"))
    said = run("import", sheet)
    assert "6 rows: 3 answers, 3 of them new" in said
    assert "3 rows with one answer of two were left out" in said
    said = run("agreement", "-o", tmp_path / "page.html")
    assert "small, 2 of 4 answered" in said
    assert json.dumps("tail") not in (tmp_path / "page.html").read_text()
