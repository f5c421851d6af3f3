"""Tables of a study whose figures are written by hand."""

from __future__ import annotations

from dataclasses import replace

import fact_studies
import pytest

from tasks.fact_scores import TAUGHT
from tasks.fact_tables import figure, form_tables, label_of, method_table, tables, times

FIRST = fact_studies.run_scores(
    "run-1",
    {
        "tracin": {"a": 1.0, "b": 1.0, "c": 0.5, "d": 0.0},
        "bm25plus": {"a": 0.5, "b": 0.5, "c": 0.5, "d": 1.0},
        "tracin[chosen]": {"a": 0.0, "b": 0.5, "c": 0.0, "d": 0.0},
    },
)
SECOND = replace(FIRST, run_id="run-2", methods=FIRST.methods | {"tracin": {"mrr": dict.fromkeys("abcd", 0.5)}})


def cells(table, method: str) -> dict[str, str | None]:
    row = next(row for row in table.rows if row.name == method)
    return {name: cell and cell.value for name, cell in zip(table.columns, row.cells, strict=True)}


def test_methods_stand_by_falling_mrr_of_the_slice_with_their_difference_to_bm25():
    study = fact_studies.study(FIRST, SECOND)
    table = method_table(study, "learned")
    assert [row.name for row in table.rows] == ["TracIn", "BM25+", "TracIn, chosen"]
    # TracIn on b and c: (1 + .5) / 2 under the first seed, .5 under the second.
    assert cells(table, "TracIn")["MRR"] == ".625"
    assert cells(table, "TracIn")["MRR − BM25+"] == "+.125"
    assert cells(table, "BM25+")["MRR − BM25+"] is None
    deviation = next(row for row in table.rows if row.name == "TracIn").cells[0].deviation
    assert deviation == ".18"  # √(2 · .125²)
    assert [row.cells[0].best for row in table.rows] == [True, False, False]
    assert table.title == "2 queries that were learned"


def test_what_was_chosen_is_said_with_how_often():
    table = method_table(fact_studies.study(FIRST, SECOND), "all")
    kind = next(row.kind for row in table.rows if row.name == "TracIn, chosen")
    assert kind == "on the other half of the queries: embedding (2 of 4), all (2 of 4)"


def test_the_lessons_of_the_true_documents_stand_last_and_are_no_method_to_beat():
    taught = {name: metrics | {TAUGHT["nats"]: {"a": 0.01}} for name, metrics in FIRST.methods.items()}
    truth = {"truth": {TAUGHT["nats"]: {"a": 0.5}}}
    table = method_table(fact_studies.study(replace(FIRST, methods=taught | truth)), "all")
    assert table.rows[-1].name == "the true documents"
    assert [row.cells[-1].best for row in table.rows] == [True, True, True, False]
    assert table.rows[-1].cells[-1].value == "+.500"


def test_only_slices_that_figures_can_speak_of_have_a_table():
    names = [f"q{k}" for k in range(30)]
    slices = {name: "learned" if k < 22 else "known" if k < 29 else "never" for k, name in enumerate(names)}
    shared = fact_studies.run_scores("r", {"tracin": dict.fromkeys(names, 1.0)}, slices)
    titles = [table.title for table in tables(fact_studies.study(shared))]
    assert titles == ["22 queries that were learned", "All 30 queries", "7 queries that were known"]
    never = fact_studies.run_scores("r", {"tracin": dict.fromkeys(names, 1.0)}, dict.fromkeys(names, "never"))
    assert [table.title for table in tables(fact_studies.study(never))] == ["All 30 queries"]


def test_forms_stand_by_group_by_checkpoint_and_by_layer():
    groups, checkpoints, layers = form_tables(fact_studies.study(FIRST), "all")
    assert (groups.columns, [row.name for row in groups.rows]) == (("cosine", "dot product"), ["all", "embedding"])
    assert [row.name for row in checkpoints.rows] == [
        "mean of the checkpoints", "sum by learning rates", "step 0 alone", "step 5 alone", "step 10 alone",
    ]  # fmt: skip
    assert checkpoints.rows[2].cells[0].value == ".312"  # half of 2.5 / 4
    assert [row.name for row in layers.rows] == ["layer 0"]


def test_methods_that_share_a_pass_share_its_time():
    run = fact_studies.run_scores("r", {name: {"a": 1.0} for name in ("ekfac relative", "identity", "tracin[chosen]")})
    found = {cost.stage: (cost.methods, cost.seconds.mean) for cost in times(fact_studies.study(run))}
    assert found["scores"] == ("EK-FAC, gradient dot", 1.0)
    assert found["checkpoints"] == ("TracIn, EK-FAC, gradient dot", 2.0)
    assert "texts" not in found


@pytest.mark.parametrize(
    ("value", "digits", "signed", "text"),
    [(0.5721, 3, False, ".572"), (1.0, 3, False, "1.000"), (-0.031, 2, True, "−.031"), (0.1251, 2, True, "+.13"),
     (-0.25, 2, True, "−.25"), (0.0, 3, True, ".000"), (0.00043, 3, True, "+.00043"), (0.000012, 3, True, "+1.2e-05")],
)  # fmt: skip
def test_a_figure_is_written_as_tables_have_it(value, digits, signed, text):
    assert figure(value, digits, signed) == text


def test_a_method_has_a_name_for_people():
    assert label_of("ekfac relative") == "EK-FAC, relative"
    assert label_of("tracin+embedding[chosen]") == "TracIn + EMBED, chosen"
    assert label_of("new one") == "new, one"
