"""The report's data: bands and thirds of layers, parts of influence, sparse and alike sequences, text around."""

from __future__ import annotations

import pytest
from numpy.testing import assert_allclose
from report_stores import ALIKE, END, HOSTILE, LAYERS, SPARSE, START, TOKENS, Page, make_plain_store, make_store, shares

import tasks.report_page as report_page
from storage.catalog import run_user_sql
from storage.database import session
from storage.pages import visible
from storage.schemas import SCHEMAS
from storage.store import Store, create_store
from storage.tables import write_part
from tasks.report import render_report


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("page") / "store", exact=6)


@pytest.fixture(scope="module")
def page(store, tmp_path_factory):
    return Page(render_report(store, "latest", tmp_path_factory.mktemp("page") / "report.html"))


@pytest.fixture(scope="module")
def bands(tmp_path_factory) -> dict[str, list[tuple]]:
    """`layer_bands` of runs named after the layers that they attribute, and how many their model has."""
    attributed = {f"all-{n}": (range(n), n) for n in (1, 2, 3, 4, 5, 6, 12, 24)}
    attributed |= {"first-three-of-12": (range(3), 12), "other-modules-too": (range(-1, 3), 3)}
    store = create_store(tmp_path_factory.mktemp("bands") / "s")
    for run, (layers, n_layers) in attributed.items():
        write_run(store, run, "layer_influences", *((run, "q", 1, layer, f"h.{layer}", 1.0) for layer in layers))
        modules = ((run, f"h.{k}", k, "Linear", 1, True, "", 0.1) for k in range(n_layers))
        write_run(store, run, "modules", *modules)
        write_run(store, run, "runs", (run, *RUN))
    with session(store) as connection:
        asked = "select layer, band, third from layer_bands(run := $run) order by layer"
        return {run: connection.sql(asked, params={"run": run}).fetchall() for run in attributed}


RUN = ("completed", "embedding", None, None, "{}", "m", "", "", "", 1, "", "{}", "cpu", "float32", "{}")


def write_run(store: Store, run: str, relation: str, *rows: tuple) -> None:
    columns = map(list, zip(*rows, strict=True))
    write_part(store, relation, run, columns=dict(zip(SCHEMAS[relation].names, columns, strict=True)))


def test_thirds_are_those_of_the_depth_in_which_a_layer_s_middle_lies(bands):
    expected = {1: "m", 2: "lu", 3: "lmu", 4: "lmmu", 5: "llmuu", 6: "llmmuu", 12: "llllmmmmuuuu"}
    assert {n: "".join(third[0] for _, _, third in bands[f"all-{n}"]) for n in expected} == expected


def test_a_third_is_one_of_the_network_s_depth_not_of_the_attributed_layers(bands):
    assert [third for _, _, third in bands["first-three-of-12"]] == ["lower"] * 3


def test_past_sixteen_layers_twelve_bands_stand_for_them_four_to_a_third(bands):
    assert [band for _, band, _ in bands["all-24"]] == [layer // 2 for layer in range(24)]
    assert [third for _, _, third in bands["all-24"]] == ["lower"] * 8 + ["middle"] * 8 + ["upper"] * 8


def test_other_modules_are_a_band_of_their_own_outside_of_thirds(bands):
    assert bands["other-modules-too"][0] == (-1, -1, None)


def test_parts_of_a_row_are_its_layers_in_sql(store, page):
    _, stored = run_user_sql(
        store, "select sequence_id, list(influence order by layer) from layer_influences "
        "where query_id = 'q1''<u>' group by sequence_id"
    )  # fmt: skip
    shown = page.blocks[1]["sequences"]
    found = {
        sequence: [unit * part for part in parts]
        for sequence, unit, parts in zip(shown["sequence_id"], shown["unit"], shown["parts"], strict=True)
    }
    assert len(stored) == 12
    for sequence, layers in stored:
        assert_allclose(found[sequence], layers, rtol=0, atol=max(map(abs, layers)) / 1990)


def test_a_sequence_whose_influence_stands_on_one_token_is_told_from_the_others(page):
    assert page.about["sparse"] == pytest.approx(2 / 3, rel=1e-3)
    shown = page.blocks[0]["sequences"]
    sparsity = dict(zip(shown["sequence_id"], shown["sparsity"], strict=True))
    assert sparsity[SPARSE] == 1
    # By hand from the numbers that the store was written with.
    summed = [sum(layer[t] for layer in shares(3.5, 0)) for t in range(len(TOKENS))]
    assert sparsity[0] == pytest.approx(sum(v * v for v in summed) ** 0.5 / sum(map(abs, summed)), rel=1e-3)
    assert [sequence for sequence, value in sparsity.items() if value is not None and value > 2 / 3] == [SPARSE]
    assert {sequence for sequence, value in sparsity.items() if value is None} == set(range(6, 12))


def test_alike_sequences_are_one_family_on_the_page(page):
    shown = page.blocks[0]["sequences"]
    family = dict(zip(shown["sequence_id"], shown["family"], strict=True))
    assert {sequence for sequence, of in family.items() if of is not None} == set(ALIKE)
    assert {family[sequence] for sequence in ALIKE} == {ALIKE[0]}


def test_the_text_around_a_sequence_is_that_of_its_document(page):
    tokens = page.blocks[0]["tokens"]["0"]
    document = f"0 {HOSTILE}"
    assert (tokens["before"], tokens["begins_earlier"]) == (visible(document[:START]), False)
    assert (tokens["after"], tokens["goes_on"]) == (visible(document[END:]), False)


def test_the_text_around_is_cut_where_it_is_long(store, tmp_path, monkeypatch):
    monkeypatch.setattr(report_page, "AROUND", 4)
    tokens = Page(render_report(store, "r1", tmp_path / "r.html")).blocks[0]["tokens"]["0"]
    document = f"0 {HOSTILE}"
    assert (tokens["before"], tokens["begins_earlier"]) == (visible(document[START - 4 : START]), True)
    assert (tokens["after"], tokens["goes_on"]) == (visible(document[END : END + 4]), True)


def test_tokens_are_grouped_by_band_in_the_order_of_the_page_s_bands(page):
    assert [band["first_layer"] for band in page.about["bands"]] == list(LAYERS)
    assert len(page.blocks[0]["tokens"]["0"]["cells"]) == len(LAYERS)


def test_a_run_without_layers_has_no_bands_and_a_query_without_candidates_no_rows(tmp_path):
    page = Page(render_report(make_plain_store(tmp_path / "s", 2, 3), "latest", tmp_path / "r.html"))
    assert page.about["bands"] == []
    shown = page.blocks[0]["sequences"]
    assert (shown["influence"], shown["parts"]) == ([0.0, -1.0, -2.0], [None] * 3)
    assert shown["text"] == ["text 0", "text 1", "text 2"]
    assert page.blocks[1]["sequences"] == {"family": [], "unit": [], "parts": []}
