"""Every study over texts and names that try to be more than text, a query that nothing raised, a run without tokens."""

from __future__ import annotations

import json
import re
from html import unescape

import pytest
import tiny_runs
from report_stores import HOSTILE, TOKENS, Page
from rich.console import Console

from flows import study_commands
from storage.catalog import run_user_sql
from storage.errors import InputError
from storage.prompts import make_prompt, register_prompts
from storage.schemas import SCHEMAS
from storage.store import create_store
from storage.tables import part_names, read_part, write_part
from tasks import report, study_page
from tasks.studies.layers import study_layers
from tasks.studies.memorization import study_memorization
from tasks.studies.restrict import study_restrict
from tasks.studies.scale import study_scale
from tasks.studies.sparsity import study_sparsity
from tasks.studies.themes import study_themes
from tasks.studies.tokens import study_tokens
from tasks.studies.word_order import study_word_order

RAISED, LOWERED = "q\x1b[31m<u>'\u202eשלום e\u0301 $x$ \u0301", "q lowered"
GROUP = "<i>\x07group\u2067"
N = 420  # sequences: enough for a tail
UNSEEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069]")
WHOLE = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(2)>"
STUDIES = {
    "layers": lambda store: study_layers(store, "run-1", 20, HOSTILE),
    "themes": lambda store: study_themes(store, "run-1", 3, HOSTILE),
    "restrict": lambda store: study_restrict(store, "run-1", 3, HOSTILE),
    "sparsity": lambda store: study_sparsity(store, "run-1", HOSTILE),
    "memorization": lambda store: study_memorization(store, "run-1", 3, HOSTILE),
    "scale": lambda store: study_scale(store, 3, HOSTILE),
    "word-order": lambda store: study_word_order(store, {"<i>tiny\x1b[0m": "probing-1"}, HOSTILE),
    "tokens": lambda store: study_tokens(store, "run-1", [RAISED, LOWERED], 2, HOSTILE),
}
OF_ONE_RUN = [name for name in STUDIES if name not in ("scale", "word-order")]


def write(store, relation, part, **columns):
    n = len(next(iter(columns.values())))
    write_part(store, relation, part, columns={c: columns.get(c, [None] * n) for c in SCHEMAS[relation].names})


def influences() -> dict[tuple[str, int], float]:
    """A heavy tail on one query; nothing raises the other."""
    raised = {(RAISED, s): 9.0 * ((s + 0.5) / N) ** -0.5 for s in range(N)}
    return raised | {(LOWERED, s): -1.0 - s for s in range(3)}


def write_run(store, run: str, day: int = 0, **row) -> None:
    """One run over the hostile texts; tokens of each query's first two sequences."""
    tiny_runs.write_run(store, run, n=1, day=day, method="ekfac", model=f"/models/{HOSTILE[:60]}", **row)
    of = influences()
    ranks = {pair: 1 + [p for p in of if p[0] == pair[0]].index(pair) for pair in of}
    common = {"run_id": [run] * len(of), "query_id": [q for q, _ in of], "sequence_id": [s for _, s in of]}
    write(
        store, "influences", run, **common, method=["ekfac"] * len(of), influence=list(of.values()),
        exact=[ranks[pair] < 3 for pair in of], influence_rank=[ranks[pair] for pair in of],
    )  # fmt: skip
    halves = [(q, s, layer, value / 2) for (q, s), value in of.items() for layer in (0, 1)]
    write(
        store, "layer_influences", run, run_id=[run] * len(halves), query_id=[q for q, *_ in halves],
        sequence_id=[s for _, s, *_ in halves], layer=[layer for *_, layer, _ in halves],
        module=[f"h.{layer}" for *_, layer, _ in halves], influence=[value for *_, value in halves],
    )  # fmt: skip
    tokens = [(q, s, t) for q, s in of if ranks[q, s] < 3 for t in range(len(TOKENS))]
    n, places = len(tokens), [t for *_, t in tokens]
    common = {"run_id": [run] * n, "query_id": [q for q, *_ in tokens], "sequence_id": [s for _, s, _ in tokens],
              "position": places, "token_id": places}  # fmt: skip
    write(
        store, "token_influences", run, **common, layer=[0] * n, token=[TOKENS[t] for t in places],
        influence=[(-1.0) ** t * t for t in places],
    )  # fmt: skip
    write(
        store, "token_responses", run, **common, rise=[0.0] * n, alpha=[0.0] * n,
        input_influence=[float(t % 3) for t in places], output_influence=[t - 4.0 if t else None for t in places],
    )  # fmt: skip
    write(
        store, "modules", run, run_id=[run] * 2, module=["h.0", "h.1"], layer=[0, 1], tracked=[True] * 2,
        parameters=[10, 10 + day],
    )  # fmt: skip
    write(store, "run_queries", run, run_id=[run] * 2, query_id=[RAISED, LOWERED])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = create_store(tmp_path_factory.mktemp("bad") / "s")
    ids = list(range(N))
    write(store, "documents", "p0", document_id=[f"d{s}|<i>" for s in ids], text=[f"{s} {HOSTILE}" for s in ids])
    write(
        store, "sequences", "p0", sequence_id=ids, document_id=[f"d{s}|<i>" for s in ids], start_char=[0] * N,
        end_char=[90] * N, token_ids=[[1, 2, 3]] * N, n_tokens=[3] * N,
    )  # fmt: skip
    metadata = json.dumps({"group": GROUP})
    register_prompts(
        store, [make_prompt(HOSTILE, HOSTILE, RAISED, metadata), make_prompt("It fell", " down.", LOWERED, metadata)]
    )
    write_run(store, "run-1")
    write_run(store, "run-2", day=1, model_fingerprint="m2")
    write(
        store, "probe_influences", "probing-1", probing_id=["probing-1"] * 2, model=["m"] * 2, probe_set=[GROUP] * 2,
        query_id=[RAISED] * 2, probe=[0, 1], probe_group=["order kept", "<b>\x1bflipped\u202e"], text=[HOSTILE] * 2,
        n_tokens=[3] * 2, layer=[0] * 2, influence=[2.0, 1.0],
    )  # fmt: skip
    return store


@pytest.fixture(scope="module")
def pages(store):
    """Each study once, when it is first asked for."""
    found = {}

    def page(name: str):
        if name not in found:
            found[name] = STUDIES[name](store)
        return found[name]

    return page


@pytest.mark.filterwarnings("error")  # matplotlib warns of letters that its font lacks
@pytest.mark.parametrize("name", STUDIES)
def test_what_stands_in_texts_and_names_is_text_on_the_page(pages, name, tmp_path):
    html = Page(study_page.write_study_page(pages(name), tmp_path / "page.html"))
    tags = [tag for tag, _ in html.tags]
    assert {"script", "u"}.isdisjoint(tags)
    assert not [attributes for tag, attributes in html.tags if tag == "img" and "onerror" in attributes]
    assert not [name for _, attributes in html.tags for name in attributes if name.startswith("on")]
    assert not UNSEEN.search(html.html)
    assert WHOLE in html.text  # the command, at least, is shown whole


@pytest.mark.parametrize("name", STUDIES)
def test_the_statement_under_a_figure_runs_as_it_is_copied(store, pages, name, tmp_path):
    html = study_page.write_study_page(pages(name), tmp_path / "page.html").read_text()
    statements = [unescape(found) for found in re.findall(r'<pre dir="ltr">(.*?)</pre>', html, re.DOTALL)]
    assert len(statements) == sum(bool(block.statement) for block in pages(name).blocks) > 0
    assert all(run_user_sql(store, text)[0] for text in statements)


@pytest.mark.parametrize("name", STUDIES)
def test_what_stands_in_texts_and_names_commands_no_terminal(pages, name, monkeypatch, tmp_path):
    console = Console(width=140, record=True, force_terminal=False, highlight=False)
    monkeypatch.setattr(study_commands, "make_console", lambda: console)
    monkeypatch.setattr(study_commands, "say_page", lambda *_: None)
    study_commands._show(pages(name), tmp_path / "page.html", 0.0)
    assert not UNSEEN.search(console.export_text(styles=False))


@pytest.mark.parametrize("name", OF_ONE_RUN)
def test_a_query_that_nothing_raised_stands_beside_one_that_something_did(pages, name):
    page = pages(name)
    assert page.lead
    assert all("nan" not in word for word in re.findall(r"\w+", page.lead.lower()))
    cells = [cell for block in page.blocks if block.table for row in block.table.rows for cell in row.cells if cell]
    assert not [cell for cell in cells if "nan" in cell.value.lower()]


@pytest.mark.parametrize("name", ["layers", "restrict"])
def test_where_nothing_raised_any_query_the_study_says_that_it_needs_what_did(tmp_path, name):
    alone = create_store(tmp_path / "s")
    tiny_runs.write_run(alone, "run-1", n=1)
    write(alone, "influences", "run-1", run_id=["run-1"], query_id=["q0"], sequence_id=[0], method=["ekfac"],
          influence=[-1.0], influence_rank=[1], exact=[True])  # fmt: skip
    write(alone, "layer_influences", "run-1", run_id=["run-1"], query_id=["q0"], sequence_id=[0], layer=[0],
          module=["h.0"], influence=[-1.0])  # fmt: skip
    with pytest.raises(InputError, match="expected positive influences with their layers, found none"):
        STUDIES[name](alone)


def test_scores_that_are_no_influences_have_no_sparsity(tmp_path):
    alone = create_store(tmp_path / "s")
    tiny_runs.write_run(alone, "run-1", n=1, method="bm25")
    write(alone, "influences", "run-1", run_id=["run-1"], query_id=["q0"], sequence_id=[0], method=["bm25"],
          influence=[7.0], influence_rank=[1], exact=[False])  # fmt: skip
    with pytest.raises(InputError, match="expected influences in nats, found scores of its method bm25"):
        STUDIES["sparsity"](alone)


@pytest.mark.parametrize("name", ["layers", "restrict", "memorization", "scale"])
def test_studies_that_read_no_tokens_do_without_them(store, pages, name):
    untouched, kept = pages(name).lead, {}
    for run in ("run-1", "run-2"):
        path = store.file("token_influences", run)
        kept[path] = path.read_bytes()
        write(store, "token_influences", run, run_id=[])
    try:
        assert STUDIES[name](store).lead == untouched
    finally:
        for path, rows in kept.items():
            path.write_bytes(rows)


@pytest.mark.parametrize("name", ["restrict", "scale"])
def test_words_in_common_are_not_counted_where_no_query_holds_one(store, name):
    path = store.file("queries", next(iter(part_names(store, "queries"))))
    kept = path.read_bytes()
    rows = read_part(store, "queries", path.stem).to_pylist()
    wordless = [row | {"prompt": "…", "completion": " ?!"} for row in rows]
    try:
        write(store, "queries", path.stem, **{c: [row[c] for row in wordless] for c in wordless[0]})
        with pytest.raises(InputError, match="expected a query that holds a word.*found letters, digits and marks in"):
            STUDIES[name](store)
    finally:
        path.write_bytes(kept)


def test_the_report_has_a_query_that_nothing_raised(store, tmp_path):
    page = Page(report.render_report(store, "run-1", tmp_path / "report.html"))
    by_name = {block["query"]["query_id"]: block for block in page.blocks}
    assert all(value < 0 for value in by_name[LOWERED]["sequences"]["influence"])
    assert not UNSEEN.search(page.html)
