"""The report: hostile text stays text, the page's numbers are the tables' numbers, and absences are said."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import pytest
from numpy.testing import assert_allclose
from report_stores import HOSTILE, LAYERS, PAIRS, TOKENS, Page, make_store, write_rows

import tasks.report as report
import tasks.report_page as report_page
from storage.catalog import run_user_sql
from storage.errors import InputError
from storage.pages import markdown, number, presentable, size, visible, write_page
from storage.store import Store, create_store
from tasks.audit import audit_filter

TEMPLATES = Path(report.__file__).parent / "templates"
OUR_TAGS = """
    html head meta title style body a header span nav main noscript p section h1 h2 h3 div
    table thead tbody tr th td bdi dl dt dd details summary script
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return make_store(tmp_path_factory.mktemp("report") / "store")


@pytest.fixture(scope="module")
def page(store, tmp_path_factory) -> Page:
    return Page(report.render_report(store, "latest", tmp_path_factory.mktemp("page") / "deep" / "report.html"))


def test_no_corpus_text_becomes_markup(page):
    tags = [tag for tag, _ in page.tags]
    # One script for the corpus, one per query, one of our own; none of them from a document.
    assert tags.count("script") == 1 + 2 + 1
    assert set(tags) <= set(OUR_TAGS.split())
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.html.count("</script") == tags.count("script")


def test_hostile_text_reaches_the_reader_whole(page):
    block = page.blocks[0]
    words = [block["vocabulary"][word] for word in block["tokens"]["0"]["words"]]
    shown = ["</script>", "<b>", "|", "↵\n", "⟨U+202E⟩", "`", "␛[31m", " plain", " שלום", "e", "\u0301"]
    assert words == shown
    assert block["query"]["prompt"] == visible(HOSTILE)
    assert visible(HOSTILE) in page.text


def test_no_control_character_is_in_the_page(page):
    assert re.findall("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069]", page.html) == []


def test_joiners_stay_because_scripts_are_spelt_with_them():
    assert visible("می\u200cخواهم 👩\u200d🔬") == "می\u200cخواهم 👩\u200d🔬"


def test_the_policy_allows_exactly_the_page_s_own_script_and_style(page):
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    for about, text in page.scripts:
        if about["tag"] == "style" or about.get("type") == "module":
            assert "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_nothing_is_fetched(page):
    links = [a.get("src") or a.get("href") for _, a in page.tags if "src" in a or "href" in a]
    assert links
    assert all(link.startswith("#") for link in links)


def test_scripts_make_text_nodes_and_never_markup():
    for path in TEMPLATES.glob("*.js"):
        found = re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|eval\(", path.read_text())
        assert found == [], path.name


def test_numbers_of_the_page_are_those_of_sql(store, page):
    for block in page.blocks:
        name = block["query"]["query_id"].replace("'", "''")
        columns = "sequence_id, influence, relative_influence, filter_rank"
        _, rows = run_user_sql(store, f"select {columns} from top_influences('{name}', 100)")
        shown = block["sequences"]
        assert shown["sequence_id"] == [row[0] for row in rows]
        assert_allclose(shown["influence"], [row[1] for row in rows], rtol=5e-4)
        assert_allclose(shown["relative_influence"], [row[2] for row in rows], rtol=5e-4)
        assert shown["filter_rank"] == [row[3] for row in rows]


def test_tokens_of_the_page_are_those_of_sql(store, page):
    block = page.blocks[1]
    assert sorted(block["tokens"]) == ["0", "1", "2"]
    for sequence, tokens in block["tokens"].items():
        _, rows = run_user_sql(
            store, "select layer, influence from token_influences where query_id = 'q1''<u>' "
            f"and sequence_id = {sequence} order by layer, position"
        )  # fmt: skip
        stored = [[value for layer, value in rows if layer == one] for one in LAYERS]
        largest = max(abs(value) for _, value in rows)
        shown = [[tokens["unit"] * cell for cell in row] for row in tokens["cells"]]
        assert_allclose(shown, stored, rtol=0, atol=largest / 1998)
        assert_allclose(tokens["sums"], [sum(row) for row in stored], rtol=5e-4)


def test_profile_and_coverage_of_the_page_are_those_of_the_macros(store, page):
    _, profile = run_user_sql(store, "select share from layer_profile('q0''<u>') order by layer")
    _, coverage = run_user_sql(store, "select share_of_positive_influence from coverage('q0''<u>') order by top_share")
    assert_allclose([row["share"] for row in page.blocks[0]["profile"]], [row[0] for row in profile], rtol=5e-4)
    shown = [row["share_of_positive_influence"] for row in page.blocks[0]["coverage"]]
    assert_allclose(shown, [row[0] for row in coverage], rtol=5e-4)


def test_each_ranking_has_its_own_head(store, tmp_path):
    shown = Page(report.render_report(store, "r1", tmp_path / "r.html", top=2)).blocks[0]["sequences"]
    ranks = zip(shown["influence_rank"], shown["relative_rank"], strict=True)
    by_id = dict(zip(shown["sequence_id"], ranks, strict=True))
    # Two by influence, two by relative influence, and the two that lowered the completion most.
    assert by_id == {0: (1, 12), 1: (2, 10), 6: (7, 1), 5: (6, 2), 10: (11, 9), 11: (12, 11)}


def test_the_strongest_module_pulls_the_way_the_sequence_does(store, page):
    _, rows = run_user_sql(
        store,
        "select l.sequence_id, max_by(l.module, l.influence * sign(i.influence)) from layer_influences l "
        "join influences i using (query_id, sequence_id) where query_id = 'q0''<u>' group by all",
    )
    shown = page.blocks[0]["sequences"]
    assert dict(zip(shown["sequence_id"], shown["strongest_module"], strict=True)) == dict(rows)
    assert len(set(shown["strongest_module"])) == 2


def test_the_filter_stands_beside_the_run_s_method_unasked(page):
    (bm25,) = page.blocks[0]["methods"]
    # BM25 scores rise with the id and influences fall: the opposite order.
    assert (bm25["method"], bm25["spearman"], bm25["own_rank_of_best"]) == ("bm25", -1.0, 12)
    assert bm25["shared_top_10"] == 8


def test_methods_of_the_run_are_compared(tmp_path):
    store = make_store(tmp_path / "s", beside=True)
    methods = Page(report.render_report(store, "r1", tmp_path / "r.html")).blocks[0]["methods"]
    assert [(row["method"], row["spearman"]) for row in methods] == [("bm25", -1.0), ("identity", -1.0)]


def test_a_run_without_a_sample_has_no_audit_of_its_filter(page):
    assert [block["audit"] for block in page.blocks] == [None, None]


@pytest.fixture
def audited(tmp_path) -> Store:
    """Every sequence is sampled; BM25 has all but the two with the largest influence."""
    store = make_store(tmp_path / "audited")
    found = [("r1", name, s, "bm25", float(s), 12 - s) for _, name, s in PAIRS if s >= 2]
    write_rows(store, "candidates", *found, *(("r1", name, s, "uniform", None, None) for _, name, s in PAIRS))
    audit_filter.fn(store, "r1", "ekfac")
    return store


def test_the_page_tells_what_the_filter_missed(audited, tmp_path):
    page = Page(report.render_report(audited, "r1", tmp_path / "r.html"))
    audit = page.blocks[1]["audit"]
    # Positive influences are those of 0 … 5. The filter's tenth is its last, which all twelve of the sample reach.
    assert (audit["n_sample"], audit["n_top"], audit["n_missed"], audit["missed_share"]) == (12, 6, 2, 0.3333)
    assert (audit["scan_budget"], audit["tail_alpha"]) == (10.0, None)
    assert audit["reason"].startswith("empirical share: 12 of the sample reach the threshold; no tail: 6 of 12")


def test_the_summary_tells_what_the_filter_missed(audited, monkeypatch):
    sent: dict = {}
    monkeypatch.setattr(report, "get_run_context", lambda: None)
    monkeypatch.setattr(report, "create_markdown_artifact", lambda text, **about: sent.update(text=text))
    report.summarise.fn(audited, "r1")
    assert sent["text"].count("sample of 12 sequences the filter missed 2: a share of 0.3333") == 2


def test_tokens_stop_where_the_page_is_full(store, tmp_path, monkeypatch):
    cells = len(LAYERS) * len(TOKENS)
    monkeypatch.setattr(report_page, "TOKEN_CELLS", 3 * cells)
    blocks = Page(report.render_report(store, "r1", tmp_path / "r.html")).blocks
    # By rank before query: both first sequences, then the second of the first query.
    assert [sorted(block["tokens"]) for block in blocks] == [["0", "1"], ["0"]]


def test_the_making_of_the_run_is_told(page):
    for part in (
        "ab12",
        "cd34",
        "ek-1",
        "float32 on cpu",
        "2.5 MB",
        "2.13.0",
        "0.1235",
        "0.0321",
        "matches 'mlp'",
    ):
        assert part in page.text, part
    assert "1 of 2 modules are attributed: 1,200 of 2,000 parameters" in " ".join(page.text.split())


def test_a_run_without_tokens_says_so(tmp_path):
    page = Page(report.render_report(make_store(tmp_path / "s", exact=0), "latest", tmp_path / "r.html"))
    assert all(block["tokens"] == {} for block in page.blocks)
    assert "No sequence of this run was scored exactly" in page.text


def test_a_run_with_tokens_does_not_say_that_it_has_none(page):
    assert "No sequence of this run was scored exactly" not in page.text


def test_an_unknown_run_is_named_beside_the_known_ones(store, tmp_path):
    with pytest.raises(InputError, match=r"run 'r9'.*expected latest or one of r1, found no run of that name"):
        report.render_report(store, "r9", tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_a_store_without_runs_says_how_to_make_one(tmp_path):
    with pytest.raises(InputError, match=r"expected a complete run, found none. Make one: headwater trace"):
        report.render_report(create_store(tmp_path / "empty"), "latest", tmp_path / "r.html")


def test_an_output_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("kept")
    for path in (tmp_path / "taken", tmp_path / "file" / "r.html"):
        with pytest.raises(InputError, match="expected a path that can be written"):
            write_page(path, "text")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "taken"]


def test_the_same_run_gives_the_same_page(store, page, tmp_path):
    assert report.render_report(store, "latest", tmp_path / "again.html").read_text(encoding="utf-8") == page.html


@pytest.fixture
def summary(store, monkeypatch) -> dict:
    """What `summarise` hands to Prefect inside a run."""
    sent: dict = {}
    monkeypatch.setattr(report, "get_run_context", lambda: None)
    monkeypatch.setattr(report, "create_markdown_artifact", lambda text, **about: sent.update(about, text=text))
    report.summarise.fn(store, "r1")
    return sent


def test_outside_prefect_no_summary_is_made(store, monkeypatch):
    monkeypatch.setattr(report, "create_markdown_artifact", lambda *a, **k: pytest.fail("an artifact was made"))
    assert report.summarise.fn(store, "r1") is None


def test_the_summary_s_key_is_one_that_prefect_takes(summary):
    assert re.fullmatch(r"[a-z0-9-]+", summary["key"])


def test_hostile_text_stays_text_in_the_summary(summary):
    outside = re.sub(r"(?ms)^```sql$.*?^```$", "", summary["text"])
    assert "<" not in outside
    assert "`" not in outside
    assert "www.example" not in outside
    assert "](" not in re.sub(r"!\[[^]]*\]\(data:image/png;base64,[A-Za-z0-9+/=]+\)", "", outside)
    assert re.findall("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069]", summary["text"]) == []


def test_the_summary_has_five_sequences_per_query_in_whole_rows(summary):
    rows = re.findall(r"(?m)^\| \d+ \|.*$", summary["text"])
    assert len(rows) == 2 * 5
    assert {row.count("|") for row in rows} == {7}


def test_the_summary_s_statements_run(store, summary):
    fences = re.findall(r"(?ms)^```sql$(.*?)^```$", summary["text"])
    statements = [line for fence in fences for line in fence.strip().splitlines()]
    assert len(statements) == 4
    assert all(run_user_sql(store, text)[1] for text in statements)


def test_the_picture_of_the_summary_is_a_png(summary):
    (encoded,) = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", summary["text"])
    assert base64.b64decode(encoded).startswith(b"\x89PNG")


def test_numbers_are_written_for_people():
    assert [number(value) for value in (None, 11008, -0.07659, 1.0, True, -15662.5, 1300.6)] == [
        "–",
        "11,008",
        "−0.07659",
        "1",
        "True",
        "−15,660",
        "1,301",
    ]
    assert [size(value) for value in (0, 999, 4_769_853)] == ["0 B", "999 B", "4.77 MB"]
    assert presentable({"x": [float("nan"), 1.23456]}) == {"x": [None, 1.235]}
    assert markdown("a|b\n\x1b`<") == "a¦b ˋ‹"
