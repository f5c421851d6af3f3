"""Studies of a run written by hand, against shares, places and words worked out on paper."""

from __future__ import annotations

import json
from itertools import pairwise
from xml.etree import ElementTree

import pytest
import tiny_runs
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from storage.catalog import run_user_sql
from storage.database import rows, session
from storage.errors import InputError
from storage.prompts import make_prompt, register_prompts
from storage.schemas import SCHEMAS
from storage.store import create_store
from storage.tables import write_part
from tasks.fact_plots import LIGHT
from tasks.studies.layers import study_layers
from tasks.studies.memorization import study_memorization
from tasks.studies.restrict import study_restrict
from tasks.studies.scale import size_of, study_scale
from tasks.studies.sparsity import study_sparsity
from tasks.study_page import COLUMN, write_study, write_study_page

RUN = "run-1"
TEXTS = {
    0: "They say the seat of government of Gleem is Osterburg today",
    1: "Nothing <b>here</b>",
    2: "The seat of GOVERNMENT, of Gleem: is Osterburg!",
    3: "Gleem has a government",
}
# Influence on q0 by sequence and layer; a sequence's sum is its influence.
LAYERS = {0: (3.0, 1.0, 0.0), 1: (-1.0, -1.0, 1.0), 2: (0.0, 2.0, 6.0), 3: (1.0, 2.0, -2.0)}


@pytest.fixture
def store(tmp_path):
    store = create_store(tmp_path / "s")
    write(store, "documents", "p0", document_id=[f"d{s}" for s in TEXTS], text=list(TEXTS.values()))
    write(
        store, "sequences", "p0", sequence_id=list(TEXTS), document_id=[f"d{s}" for s in TEXTS],
        start_char=[0] * 4, end_char=[len(text) for text in TEXTS.values()],
    )  # fmt: skip
    (store.root / "parts" / "p0.json").parent.mkdir(exist_ok=True)
    register_prompts(
        store, [make_prompt("The seat of government of Gleem is", " Osterburg", "q0", json.dumps({"group": "simple"}))]
    )
    tiny_runs.write_run(store, RUN)
    rows = [(s, layer, value) for s, values in LAYERS.items() for layer, value in enumerate(values)]
    write(
        store, "layer_influences", RUN, run_id=[RUN] * 12, query_id=["q0"] * 12, sequence_id=[s for s, _, _ in rows],
        layer=[n for _, n, _ in rows], module=[f"h.{n}" for _, n, _ in rows], influence=[v for _, _, v in rows],
    )  # fmt: skip
    order = sorted(LAYERS, key=lambda s: -sum(LAYERS[s]))
    write(
        store, "influences", RUN, run_id=[RUN] * 4, query_id=["q0"] * 4, sequence_id=order, method=["ekfac"] * 4,
        influence=[sum(LAYERS[s]) for s in order], influence_rank=[1, 2, 3, 4],
    )  # fmt: skip
    write(
        store, "modules", RUN, run_id=[RUN] * 3, module=["h.0", "h.1", "h.2"], layer=[0, 1, 2], tracked=[True] * 3,
    )  # fmt: skip
    return store


def write(store, relation, part, **columns):
    n = len(next(iter(columns.values())))
    write_part(store, relation, part, columns={c: columns.get(c, [None] * n) for c in SCHEMAS[relation].names})


def ask(store, statement):
    return run_user_sql(store, statement)[1]


def test_a_layers_share_is_its_part_of_the_positive_influence_and_shares_sum_to_one(store):
    found = ask(store, "select sequence_id, layer, share, centre_of_mass from layer_distribution() order by all")
    shares = {(s, n): share for s, n, share, _ in found}
    assert shares == pytest.approx(
        {(0, 0): 0.75, (0, 1): 0.25, (0, 2): 0, (2, 0): 0, (2, 1): 0.25, (2, 2): 0.75,
         (3, 0): 1 / 3, (3, 1): 2 / 3, (3, 2): 0}
    )  # fmt: skip  # sequence 1 raised nothing
    assert {s: c for s, _, _, c in found} == pytest.approx({0: 0.25, 2: 1.75, 3: 2 / 3})
    page = study_layers(store, "latest", 500, "")
    assert "3 sequences" in page.lead
    assert [row.cells[0].value for row in page.blocks[0].table.rows] == ["0.361", "0.389", "0.250"]


def test_first_sequences_alone_are_counted_where_few_are_asked_for(store):
    assert {s for (s,) in ask(store, "select sequence_id from layer_distribution(k := 1)")} == {2}


def test_the_thirds_choose_their_own_first_sequences(store):
    found = ask(store, "select region, sequence_id, influence from restricted_influences(k := 2) order by region, rank")
    assert found == [
        ("all", 2, 8.0), ("all", 0, 4.0), ("lower", 0, 3.0), ("lower", 3, 1.0), ("middle", 2, 2.0), ("middle", 3, 2.0),
        ("upper", 2, 6.0), ("upper", 1, 1.0),
    ]  # fmt: skip
    words = dict(
        (row[0], row[1]) for row in ask(store, "select d.document_id, word_overlap(q.prompt || q.completion, d.text) "
                                               "from queries q, documents d")
    )  # fmt: skip
    # the, seat, of, government, gleem, is, osterburg
    assert words == pytest.approx({"d0": 1.0, "d1": 0.0, "d2": 1.0, "d3": 2 / 7})
    page = study_restrict(store, RUN, 2, "")
    table = {row.name: [cell.value for cell in row.cells if cell] for row in page.blocks[0].table.rows}
    assert table["lower"] == [".643", ".500"]  # (1 + 2/7) / 2; of 0 and 3, 3 stands in the middle's list as well
    assert table["upper"] == [".500", ".500"]


def test_quotations_are_found_whatever_their_case_and_points(store):
    found = ask(store, "select sequence_id, n_phrases, share_of_phrases from quotations() order by 1")
    # Four phrases of five words; sequence 3 shares words and none of them.
    assert found == [(0, 4, 1.0), (2, 4, 1.0)]
    page = study_memorization(store, RUN, 1, "")
    row = page.blocks[0].table.rows[0]
    assert [cell.value for cell in row.cells[:5]] == ["1", "1", "2", "4", "100%"]


def test_a_short_sample_has_no_tail_and_says_so(store):
    page = study_sparsity(store, RUN, "")
    row = page.blocks[0].table.rows[0]
    assert row.cells[0] is None
    assert row.cells[-1].value == "3 of 4 influences are positive, 40 of 400 needed"
    assert "hold 62% to 62%" in page.lead  # the first of 8, 4 and 1


def test_a_planted_power_law_is_found_and_kept_as_rows(store):
    n = 1000
    influence = [5.0 * ((k + 0.5) / n) ** (-1 / 2.5) for k in range(n)]  # the quantiles of a power law of 2.5
    columns = {"run_id": [RUN] * n, "query_id": ["q0"] * n, "sequence_id": list(range(n)), "method": ["ekfac"] * n,
               "influence": influence, "influence_rank": list(range(1, n + 1))}  # fmt: skip
    write(store, "influences", RUN, **columns)
    page = study_sparsity(store, RUN, "")
    rows = ask(
        store, "select family, parameters ->> '$.alpha', p_value, n_tail from tail_fits where p_value is not null"
    )
    alpha = next(float(a) for family, a, _, _ in rows if family == "power law")
    assert alpha == pytest.approx(2.5, abs=2 * 2.5 / 20**0.5)
    assert {family for family, *_ in rows} == {"power law", "exponential", "Rayleigh"}
    # The first 1 % of quantiles (k + .5)/n of a power law hold about .01^(1 - 1/2.5) of the sum.
    share = sum(influence[:10]) / sum(influence)
    assert share == pytest.approx(0.01**0.6, rel=0.1)
    assert f"{share:.0%}" in page.lead


def test_a_page_shows_markup_as_text_and_the_sql_that_gives_its_figures(store, tmp_path):
    page = study_restrict(store, RUN, 4, "headwater study restrict")
    html = write_study_page(page, tmp_path / "page.html").read_text()
    assert "Nothing <b>here</b>" not in html
    assert "Nothing &lt;b&gt;here&lt;/b&gt;" in html
    assert "restricted_influences(run := &#39;run-1&#39;, k := 4)" in html
    for block in page.blocks:
        assert ask(store, block.statement)


@pytest.mark.parametrize("study", [study_layers, study_restrict])
def test_the_names_along_a_figures_axes_stand_apart_in_one_column_of_a_paper(store, study):
    for block in study(store, RUN, 4, "").blocks:
        if block.draw is None:
            continue
        figure = Figure(figsize=(COLUMN, block.height), layout="constrained")
        canvas = FigureCanvasAgg(figure)
        block.draw(figure, LIGHT)
        canvas.draw()
        for axes in figure.axes:
            boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
            assert all(left.x1 < right.x0 for left, right in pairwise(boxes)), block.title


def test_figures_are_written_as_drawings_one_column_wide_on_white(store, tmp_path):
    write_study(study_layers(store, RUN, 4, ""), None, str(tmp_path / "figures"))
    found = {path.name: ElementTree.parse(path).getroot() for path in (tmp_path / "figures").iterdir()}
    assert sorted(found) == [
        "layers-all-queries.svg",
        "layers-sequence-by-sequence.svg",
    ]
    for root in found.values():
        assert root.get("width") == f"{COLUMN * 72:g}pt"
        assert not list(root.iter("{http://www.w3.org/2000/svg}image"))  # shapes alone: no picture of pixels
        assert "fill: #ffffff" in ElementTree.tostring(root, encoding="unicode")


def test_a_run_that_splits_nothing_by_layer_is_refused(store):
    with pytest.raises(InputError, match="run 'run-9'.*expected latest or one of run-1"):
        study_layers(store, "run-9", 10, "")
    write(store, "influences", RUN, run_id=[RUN], query_id=["q0"], sequence_id=[1], method=["ekfac"],
          influence=[-1.0], influence_rank=[1])  # fmt: skip
    with pytest.raises(InputError, match="expected positive influences with their layers"):
        study_layers(store, RUN, 10, "")
    assert "No query has a sequence that raised it" in study_sparsity(store, RUN, "").lead


def test_models_are_set_side_by_side_by_size_and_share_what_both_put_first(store):
    with pytest.raises(InputError, match="found one model.*Trace the same queries with another model"):
        study_scale(store, 2, "")
    tiny_runs.write_run(store, "run-2", day=1, model="models/large", model_fingerprint="m2")
    write(store, "modules", "run-2", run_id=["run-2"], module=["h.0"], layer=[0], tracked=[True], parameters=[9000])
    write(store, "modules", RUN, run_id=[RUN], module=["h.0"], layer=[0], tracked=[True], parameters=[70])
    write(
        store, "influences", "run-2", run_id=["run-2"] * 3, query_id=["q0"] * 3, sequence_id=[2, 3, 0],
        method=["ekfac"] * 3, influence=[5.0, 4.0, -1.0], influence_rank=[1, 2, 3],
    )  # fmt: skip
    page = study_scale(store, 2, "")
    table = {row.name: [cell.value for cell in row.cells] for row in page.blocks[0].table.rows}
    # The small one puts 2 and 0 first, which hold all seven words; the large one 2 and 3, which hold 7 and 2 of them.
    assert list(table) == ["tiny, 70 parameters", "large, 9,000 parameters"]
    assert table["tiny, 70 parameters"] == ["1.000", ".500"]
    assert table["large, 9,000 parameters"] == [".643", ".500"]
    assert [row.cells[2].value for row in page.blocks[1].table.rows] == ["2", "2", "0", "3"]
    assert ask(store, page.blocks[0].statement)


def test_of_a_models_runs_the_one_that_was_asked_what_all_models_were_is_compared(store):
    tiny_runs.write_run(store, "run-2", day=1, model="models/large", model_fingerprint="m2")
    tiny_runs.write_run(store, "run-3", day=2)  # the small model again, later, asked something else
    write(store, "run_queries", "run-3", run_id=["run-3"], query_id=["q9"])
    with session(store) as connection:
        assert {row["run_id"] for row in rows(connection, "studies/models")} == {RUN, "run-2"}


def test_sizes_are_said_as_models_are_called_by_them():
    assert [size_of(n) for n in (999, 70_000, 165_632, 999_600, 1_300_000, 52_000_000_000)] == [
        "999", "70 k", "166 k", "1 M", "1.3 M", "52 B",
    ]  # fmt: skip
