"""Groups of queries of a run written by hand, against centres, words and shares worked out on paper."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import tiny_runs
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from storage.catalog import run_user_sql
from storage.prompts import make_prompt, register_prompts
from storage.schemas import SCHEMAS
from storage.store import create_store
from storage.tables import write_part
from tasks.fact_plots import LIGHT
from tasks.studies.labels import in_figures, in_tables
from tasks.studies.themes import study_themes
from tasks.study_page import COLUMN, write_study_page

RUN = "run-1"
TEXTS = ["the seat of Gleem", "two and two", "<b>four\x07 أربعة</b>"]
# By query: its group, its words, and the influence of each sequence in each of the two layers.
QUERIES = {
    "q0": ("simple", "the seat", " of Gleem", {0: (0, 4), 1: (1, 0), 2: (-1, 0)}),
    "q1": ("数学", "two and two are", " four", {0: (1, 0), 1: (3, 1), 2: (2, 2)}),
    "q2": ("数学", "four", " two", {0: (-1, -1), 1: (2, 0), 2: (-3, 1)}),
    "q3": ("lost", "nothing", " here", {0: (-1, 0), 1: (0, -1), 2: (-1, -1)}),
}


@pytest.fixture
def store(tmp_path):
    store = create_store(tmp_path / "s")
    write(store, "documents", "p0", document_id=["d0", "d1", "d2"], text=TEXTS)
    write(store, "sequences", "p0", sequence_id=[0, 1, 2], document_id=["d0", "d1", "d2"], start_char=[0] * 3,
          end_char=list(map(len, TEXTS)))  # fmt: skip
    register_prompts(store, [make_prompt(p, c, q, json.dumps({"group": g})) for q, (g, p, c, _) in QUERIES.items()])
    tiny_runs.write_run(store, RUN)
    layers = [(q, s, n, v) for q, (*_, of) in QUERIES.items() for s, vs in of.items() for n, v in enumerate(vs)]
    write(store, "layer_influences", RUN, run_id=[RUN] * len(layers), query_id=[r[0] for r in layers],
          sequence_id=[r[1] for r in layers], layer=[r[2] for r in layers], module=[f"h.{r[2]}" for r in layers],
          influence=[float(r[3]) for r in layers])  # fmt: skip
    ranked = [
        (q, s, float(sum(of[s])), rank)
        for q, (*_, of) in QUERIES.items()
        for rank, s in enumerate(sorted(of, key=lambda s: -sum(of[s])), start=1)
    ]
    write(store, "influences", RUN, run_id=[RUN] * len(ranked), query_id=[r[0] for r in ranked],
          sequence_id=[r[1] for r in ranked], method=["ekfac"] * len(ranked), influence=[r[2] for r in ranked],
          influence_rank=[r[3] for r in ranked])  # fmt: skip
    write(store, "modules", RUN, run_id=[RUN] * 2, module=["h.0", "h.1"], layer=[0, 1], tracked=[True] * 2)
    return store


def write(store, relation, part, **columns):
    n = len(next(iter(columns.values())))
    write_part(store, relation, part, columns={c: columns.get(c, [None] * n) for c in SCHEMAS[relation].names})


def tables(page) -> list[dict]:
    return [{row.name: [cell and cell.value for cell in row.cells] for row in b.table.rows} for b in page.blocks]


def test_a_groups_centre_words_and_first_sequences_are_those_worked_out_on_paper(store):
    page = study_themes(store, "latest", 50, "")
    figures, profiles, shared, _ = tables(page)
    # q0: sequence 0 acts in layer 1, sequence 1 in layer 0: centre 1/2; they hold 4 and 0 of its four words; the first
    # of three sequences, which is its first 1 %, has 4 of 5. q1: 1 acts at 1/4, 2 at 1/2 and 0 at 0: 1/4; of its words
    # (two, and, are, four) they hold 2, 1 and 0: 1/4; the first has 4 of 9.
    # q2: sequence 1 alone, at 0, with one of (four, two).
    assert figures["simple, 1 query"] == [".500", ".500", ".800"]
    assert figures["group 2: 数学, 2 queries"] == [".125", ".375", "." + f"{(4 / 9 + 1) / 2:.3f}"[2:]]
    assert profiles == {"simple": ["0.500", "0.500"], "group 2: 数学": ["0.875", "0.125"]}
    # q0 and q1 share 0 and 1 of 2, q0 and q2 share 1 of 1; q1 and q2 share 1 of 1.
    assert shared == {"simple": [None, "1.000"], "group 2: 数学": ["1.000", "1.000"]}
    assert "Left out, because no sequence raised them: q3." in page.blocks[0].notes
    assert page.numbers[0] == ("queries", "3", "of 4")
    assert [row.cells[2].value for row in page.blocks[3].table.rows] == ["0", "1", "1", "2", "0"]
    assert all(run_user_sql(store, block.statement)[1] for block in page.blocks)


def test_one_query_has_no_interval_and_two_have(store):
    (simple, maths) = study_themes(store, RUN, 50, "").blocks[0].table.rows
    assert simple.cells[0].interval == ""
    assert maths.cells[0].interval == "[.000, .250]"


def test_fewer_first_sequences_share_fewer(store):
    shared = tables(study_themes(store, RUN, 1, ""))[2]
    # Now 0 stands alone for q0, 1 for q1 and q2.
    assert shared == {"simple": [None, "0.000"], "group 2: 数学": ["0.000", "1.000"]}


@pytest.mark.filterwarnings("error:Glyph")
def test_names_that_the_figures_cannot_draw_stand_in_the_tables(store, tmp_path):
    html = write_study_page(study_themes(store, RUN, 50, ""), tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<bdi>group 2: 数学</bdi>" in html
    assert "<b>four" not in html
    assert "&lt;b&gt;four&lt;0007&gt; أربعة" in html


def test_a_name_is_drawn_where_the_font_has_its_letters_in_their_order():
    names = ["en", "русский", "e\u0301te\u0301", "中文", "عربي", "हिन्दी", "a\x07b", "x" * 60]
    labels = in_figures(names, "language")
    assert list(labels.values()) == [
        "en", "русский", "\u00e9t\u00e9", "language 4", "language 5", "language 6", "language 7", "language 8",
    ]  # fmt: skip
    assert [in_tables(labels)[name] for name in names[:4]] == [*names[:3], "language 4: 中文"]


def test_the_names_along_a_figures_axes_stand_apart_in_one_column_of_a_paper(store):
    for block in study_themes(store, RUN, 50, "").blocks:
        if block.draw is None:
            continue
        figure = Figure(figsize=(COLUMN, block.height), layout="constrained")
        canvas = FigureCanvasAgg(figure)
        block.draw(figure, LIGHT)
        canvas.draw()
        for axes in figure.axes:
            boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
            assert all(left.x1 < right.x0 for left, right in pairwise(boxes)), block.title
