"""The report in headless Chromium: what a reader clicks, types and prints does what the page says, offline."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from report_stores import ALIKE, SPARSE, TOKENS, make_plain_store, make_store

from storage.catalog import run_user_sql
from storage.store import Store
from tasks.report import render_report

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, which drives Chromium")
CHROMIUM = Path("/usr/bin/chromium")
pytestmark = [  # a browser takes seconds to start, and as much processor time as a hundred other tests
    pytest.mark.e2e,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Chromium at /usr/bin/chromium"),
]


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as chrome:
        browser = chrome.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Store:
    return make_store(tmp_path_factory.mktemp("clicks") / "store", exact=6)


@pytest.fixture(scope="module")
def report(stored) -> str:
    return render_report(stored, "latest", stored.root.with_name("report.html")).as_uri()


@pytest.fixture(scope="module")
def tab(browser) -> Iterator:
    """One tab for all tests; whatever a page complains of or asks the network for fails the test that caused it."""
    context = browser.new_context(viewport={"width": 1300, "height": 900}, offline=True)
    tab = context.new_page()
    tab.set_default_timeout(10_000)
    yield tab
    context.close()


@pytest.fixture
def page(tab, report) -> Iterator:
    faults: list[str] = []
    listeners = {
        "pageerror": lambda error: faults.append(str(error)),
        "console": lambda message: faults.append(message.text) if message.type == "error" else None,
        "dialog": lambda dialog: faults.append(dialog.message),
        "request": lambda asked: faults.append(asked.url) if not asked.url.startswith("file:") else None,
    }
    for event, listener in listeners.items():
        tab.on(event, listener)
    tab.goto("about:blank")
    tab.goto(report)
    yield tab
    for event, listener in listeners.items():
        tab.remove_listener(event, listener)
    assert faults == []


def open_query(page, place: int = 0) -> None:
    page.locator("#queries tbody a").nth(place).click()
    page.locator(".rank button").first.wait_for()


def ranks(page) -> list[str]:
    """Rank and sequence of every row, as they are read aloud."""
    return page.locator(".rank button").evaluate_all("all => all.map(one => one.getAttribute('aria-label'))")


def sequences(page) -> list[int]:
    return [int(label.split()[-1]) for label in ranks(page)]


def colours(page) -> list[str]:
    return page.locator(".text span").evaluate_all("all => all.map(one => getComputedStyle(one).backgroundColor)")


def open_sequence(page, sequence: int) -> None:
    page.locator(f"#rank-{sequence}").click()
    page.locator(".panel").wait_for()


def test_the_page_opens_on_the_queries_and_a_click_shows_one_with_its_ranking(page):
    assert page.locator("h1").inner_text() == "What the model said, and what taught it to"
    assert page.locator("#query").is_hidden()
    open_query(page)
    assert page.locator("#queries").is_hidden()
    assert page.evaluate("document.activeElement.id") == "asked"
    assert "candidates scored 12" in page.locator(".line").first.inner_text()
    page.go_back()
    page.locator("#queries").wait_for()


def test_near_duplicates_stand_under_the_first_of_them_until_they_are_asked_for(page):
    open_query(page)
    assert sequences(page) == [s for s in range(12) if s not in ALIKE[1:]]
    page.get_by_role("button", name="Show 2 near-duplicates").click()
    assert sequences(page) == list(range(12))
    assert page.locator("tr.alike").count() == 2
    page.get_by_role("button", name="Hide 2 near-duplicates").click()
    page.locator("#group").click()
    assert sequences(page) == list(range(12))
    assert page.locator("tr.alike").count() == 0
    assert "apart=1" in page.url


def test_a_sequence_opens_with_its_tokens_what_the_colours_mean_and_the_text_around(page):
    open_query(page)
    open_sequence(page, 0)
    panel = page.locator(".panel")
    assert "Credit stands on the position before the predicted token" in panel.inner_text()
    assert "Red raised" in panel.inner_text()
    assert page.locator(".text span").count() == len(TOKENS)
    assert page.locator(".neighbour").count() == 2
    # The largest token of sequence 0: its colour, and the scale that says what it stands for.
    marks = page.locator(".legend span").all_inner_texts()
    assert (marks[0][0], marks[2], marks[4][0], marks[0][1:]) == ("−", "0", "+", marks[4][1:])
    assert page.locator(".readout").inner_text().startswith(("+", "−"))
    page.locator("#rank-0").click()
    assert panel.count() == 0


def test_red_raises_and_teal_lowers(page):
    open_query(page)
    open_sequence(page, 0)
    shown = page.locator(".text span").evaluate_all("all => all.map(one => one.className)")
    for position, kind in enumerate(shown[: TOKENS.index("\u0301")]):  # a lone accent has no width to point at
        page.locator(".text span").nth(position).hover()
        value = page.locator(".readout b").inner_text()
        assert kind == ("lowered" if value.startswith("−") else "raised"), position
    red, _, blue = (int(part) for part in re.findall(r"\d+", colours(page)[shown.index("raised")])[:3])
    assert red > blue
    red, _, blue = (int(part) for part in re.findall(r"\d+", colours(page)[shown.index("lowered")])[:3])
    assert red < blue


def test_a_layer_of_the_matrix_recolours_the_text_and_the_readout_names_it(page):
    open_query(page)
    open_sequence(page, 0)
    before = colours(page)
    rows = page.locator(".layers button")
    names = ["all layers", "lower third", "middle third", "upper third", *(f"layer {k}" for k in range(4))]
    assert [name.split(":")[0].split(" (")[0] for name in rows.evaluate_all(
        "all => all.map(one => one.getAttribute('aria-label'))")] == names  # fmt: skip
    rows.nth(names.index("layer 3")).click()
    assert rows.nth(names.index("layer 3")).get_attribute("aria-pressed") == "true"
    assert colours(page) != before
    assert "in layer 3 at position" in page.locator(".readout").inner_text()
    # A click into the matrix goes to the token of that column.
    strip = page.locator(".layers canvas").nth(names.index("layer 2"))
    box = strip.bounding_box()
    strip.click(position={"x": box["width"] * 7.5 / len(TOKENS), "y": box["height"] / 2})
    assert "in layer 2 at position 7:" in page.locator(".readout").inner_text()
    # … and a line through all layers marks the column.
    line = page.locator(".layers .marker i").bounding_box()
    assert line["x"] == pytest.approx(box["x"] + box["width"] * 7.5 / len(TOKENS), abs=2)
    assert line["height"] > 8 * box["height"]


def test_the_keyboard_reads_tokens_and_layers(page):
    open_query(page)
    page.locator("#rank-0").focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.id") == "rank-1"
    page.keyboard.press("Enter")
    page.locator(".text span[tabindex='0']").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert "position 1:" in page.locator(".readout").inner_text()
    page.keyboard.press("ArrowDown")
    assert "in lower third at position 1:" in page.locator(".readout").inner_text()
    page.keyboard.press("Escape")
    page.locator(".panel").wait_for(state="detached")
    page.keyboard.press("Escape")
    page.locator("#queries").wait_for()


def test_choosing_a_third_ranks_by_its_part_and_colours_by_it(page):
    open_query(page)
    page.get_by_role("button", name="middle third").click()
    shown = page.locator("td.amount").all_inner_texts()
    values = [float(text.replace("−", "-").replace(",", "")) for text in shown]
    assert values == sorted(values, reverse=True)
    assert "What counts: middle third (layers 1–2)" in page.locator("#ordering").inner_text()
    assert "layer between 1 and 2" in page.locator("#ordering code").inner_text()
    first = page.locator("tr.row").first
    first.locator("button").first.click()
    pressed = page.locator(".layers button[aria-pressed='true']")
    assert pressed.get_attribute("aria-label").startswith("middle third")
    assert pressed.locator(".value").inner_text().lstrip("+") == shown[0]
    page.locator("#single-layer").select_option("3")
    page.get_by_text("What counts: layer 3.").wait_for()


def test_the_statement_gives_the_ranking_that_is_shown(page, stored):
    open_query(page)
    page.locator("#group").click()
    for order in ("influence", "relative influence", "lowered most"):
        for region in ("all layers", "middle third"):
            page.locator(".choice", has_text=re.compile(f"^{order}$")).click()
            page.get_by_role("button", name=region, exact=True).first.click()
            columns, rows = run_user_sql(stored, page.locator("#ordering code").inner_text())
            found = [row[columns.index("sequence_id")] for row in rows]
            assert found == sequences(page)[:10], (order, region)
            assert found or order == "lowered most"


def test_a_sparse_sequence_is_grey_and_says_why(page):
    open_query(page)
    row = page.locator("tr.sparse")
    assert row.count() == 1
    assert "Sparse: 100 % of it stands on one token." in row.inner_text()
    muted = page.locator("tr.sparse td.amount").evaluate("cell => getComputedStyle(cell).color")
    assert muted != page.locator("tr.row:not(.sparse) td.amount").first.evaluate("c => getComputedStyle(c).color")
    open_sequence(page, SPARSE)
    assert re.search(r"‖a‖₂ / ‖a‖₁ over its tokens is 1, above 0\.66", page.locator(".panel").inner_text())


def test_orders_change_the_ranking(page):
    open_query(page)
    page.locator("#by-relative").click()
    assert sequences(page)[0] == 6
    page.locator("#by-lowering").click()
    assert sequences(page)[0] == 11
    assert "What lowered the completion most" in page.locator("#ordering").inner_text()


def test_hostile_text_is_read_and_does_nothing(page):
    open_query(page)
    open_sequence(page, 0)
    words = page.locator(".text span").all_inner_texts()
    assert words[0] == "</script>"
    assert words[4] == "⟨U+202E⟩"
    assert page.locator("img, iframe, object").count() == 0
    assert page.title().startswith("q0'<u>")


def test_right_to_left_text_keeps_its_neighbours_in_place_and_a_lone_accent_stands_on_a_circle(page):
    open_query(page)
    open_sequence(page, 0)
    span = page.locator(".text span")
    hebrew = TOKENS.index(" שלום")
    # The Hebrew token runs right to left inside; what the reader sees around it stays in the order of the text.
    span.nth(hebrew - 1).hover()
    assert page.locator(".readout bdi").last.inner_text().strip() == "שלום"
    span.nth(TOKENS.index("e")).hover()
    assert page.locator(".readout bdi").last.inner_text() == "◌\u0301"
    # The accent itself has no width: a bar below its letter takes the pointer in its place.
    x, y = span.nth(TOKENS.index("\u0301")).evaluate(
        "one => {const {left, bottom} = one.getBoundingClientRect(); return [left - 4, bottom]}"
    )
    page.mouse.move(x, y)
    assert f"position {TOKENS.index(chr(0x301))}: nothing follows" in page.locator(".readout").inner_text()


def test_a_page_is_printed_with_every_token_and_without_its_controls(page):
    open_query(page)
    open_sequence(page, 0)
    page.emulate_media(media="print")
    assert page.locator(".choices").first.is_hidden()
    assert page.locator(".copy").first.is_hidden()
    assert page.locator(".text").evaluate("text => text.scrollHeight <= text.clientHeight + 1")
    page.emulate_media(media="screen")


def test_dark_and_light_differ_and_nothing_is_wider_than_a_phone(page):
    def paper() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = paper()
    page.emulate_media(color_scheme="dark")
    assert paper() != light
    page.set_viewport_size({"width": 390, "height": 800})
    open_query(page)
    open_sequence(page, 0)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.set_viewport_size({"width": 1300, "height": 900})
    page.emulate_media(color_scheme="light")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_wrong_with_the_page(page, scheme):
    """axe-core's rules for WCAG 2 and good practice, over each view with everything open."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python").Axe()
    page.emulate_media(color_scheme=scheme)
    for details in page.locator("details").all():
        details.evaluate("one => { one.open = true; }")
    assert axe.run(page).generate_snapshot() == ""
    open_query(page)
    assert axe.run(page).generate_snapshot() == ""
    open_sequence(page, 0)
    open_sequence(page, SPARSE)
    page.get_by_role("button", name="Show 2 near-duplicates").click()
    assert axe.run(page).generate_snapshot() == ""
    page.emulate_media(color_scheme="light")


def test_a_row_reads_as_its_rank_and_its_numbers(page):
    """As a screen reader is told: the table's name, its columns in order, then a row that begins with its rank."""
    open_query(page)
    read = page.locator("table.ranking").aria_snapshot().splitlines()
    assert read[0] == '- table "Ranked by influence, all layers. Enter on a rank opens the sequence.":'
    heads = [re.search('"(.*?)"', line)[1] for line in read if "- columnheader" in line]
    assert heads == ["#", "influence nats", "relative influence", "per copy nats", "scored", "filter rank",
                     "strongest layer", "document", "text"]  # fmt: skip
    row = page.locator("tr.row").nth(1).aria_snapshot().splitlines()
    cells = [re.search(r"cell ['\"](.*?)['\"]", line)[1] for line in row if "- cell" in line]
    assert cells[:7] == ["Rank 2, sequence 1", "2.833", "0.1667", "0.4048", "exactly", "11", "3 h.3"]
    assert '- button "Rank 2, sequence 1": "2"' in row[2].strip()


def test_a_query_that_nothing_raised_says_so(browser, tmp_path):
    path = render_report(make_store(tmp_path / "s", lowered=True), "latest", tmp_path / "r.html")
    page = browser.new_page()
    page.goto(path.as_uri())
    open_query(page)
    text = page.locator("#query").inner_text()
    assert "No sequence that was scored raised this completion" in text
    assert "There is no positive influence to be concentrated" in text
    assert "No exactly scored sequence raised this completion" in text
    assert sequences(page)[:3] == [0, 1, 2]
    page.close()


def test_a_run_without_tokens_shows_texts_and_says_why_they_have_no_colours(browser, tmp_path):
    path = render_report(make_store(tmp_path / "s", exact=0), "latest", tmp_path / "r.html")
    page = browser.new_page()
    page.goto(path.as_uri())
    assert "No sequence of this run was scored exactly" in page.locator("#queries").inner_text()
    open_query(page)
    open_sequence(page, 0)
    assert "raise the parameter method.rescore" in page.locator(".panel").inner_text()
    assert page.locator(".layers").count() == 0
    page.close()


@pytest.fixture(scope="module")
def long_report(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("long")
    return render_report(make_plain_store(folder / "s", 12, 120), "latest", folder / "r.html", top=120).as_uri()


def test_rows_are_drawn_as_the_reader_comes_near_and_stay(page, long_report):
    page.goto(long_report)
    open_query(page)
    first = page.locator("tr.row").count()
    assert first < 120
    for _ in range(10):
        page.mouse.wheel(0, 4000)
        page.wait_for_timeout(30)
    page.locator("tr.row").nth(119).wait_for()
    assert page.locator("tr.row").count() == 120
    assert page.locator(".more").is_hidden()
    page.locator("#rank-90").click()
    page.locator(".panel").wait_for()
    assert page.locator("tr.row").count() == 120


def test_a_method_without_layers_offers_none_to_choose(page, long_report):
    page.goto(long_report)
    assert "embedding compares no gradients of one model" in page.locator("#queries").inner_text()
    open_query(page)
    assert page.locator(".choices[aria-label='Layers that count']").count() == 0
    assert "Where in the network" not in page.locator(".cards").inner_text()
    assert page.locator("td.scored").first.inner_text() == "–"
    open_sequence(page, 0)
    assert "its score has no shares of tokens" in page.locator(".panel").inner_text()


def test_queries_are_found_by_their_words(page, long_report):
    page.goto(long_report)
    page.get_by_label("Find").fill("prompt 11")
    assert page.locator("#queries tbody tr:visible").count() == 1
    assert page.locator("#found").inner_text() == "1 of 12"
    page.locator("#queries tbody tr:visible a").click()
    page.get_by_text("No sequence.").wait_for()
