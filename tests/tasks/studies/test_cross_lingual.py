"""A query in three languages, its sequences and others, written by hand, against parts worked out on paper."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import tiny_runs
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from storage.catalog import run_user_sql
from storage.errors import InputError
from storage.prompts import make_prompt
from storage.schemas import SCHEMAS
from storage.sequences import Part, write_manifest
from storage.store import create_store
from storage.tables import write_part
from storage.translations import Translated
from tasks.fact_plots import LIGHT
from tasks.studies.cross_lingual import as_probes, study_cross_lingual
from tasks.study_page import COLUMN, write_study_page

LANGUAGES = ("en", "de", "العربية")
ASKED = [
    Translated(
        name,
        {
            language: make_prompt("p", f" {name}", f"{name}-{k}", json.dumps({"language": language, "group": name}))
            for k, language in enumerate(LANGUAGES)
        },
    )
    for name in ("sun", "rain", "dark")
]
# Influence by query, language and sequence: the first two are those of the query's trace, the last was drawn at random.
INFLUENCES = {
    "sun": {"en": (6, 2, 1), "de": (3, 1, 2), "العربية": (0, -2, 0)},
    "rain": {"en": (3, 1, -1), "de": (0, 0, 0), "العربية": (2, 0, 1)},
}


@pytest.fixture
def store(tmp_path):
    store = create_store(tmp_path / "s")
    texts = ["Sun <i>up</i>", "\u202esun", "rain\x07", "Moon"]
    write(store, "documents", "p0", document_id=list("abcd"), text=texts)
    write(store, "sequences", "p0", sequence_id=[0, 1, 2, 3], document_id=list("abcd"), start_char=[0] * 4,
          end_char=list(map(len, texts)))  # fmt: skip
    write_manifest(store, Part("p0", "x", "c", "t", "document", 8, 4, 0, 4, 12, 0))
    return store


def write(store, relation, part, **columns):
    n = len(next(iter(columns.values())))
    write_part(store, relation, part, columns={c: columns.get(c, [None] * n) for c in SCHEMAS[relation].names})


def write_probing(store, probing: str, scale: float) -> None:
    """Two layers of one half each; log p is −4 over two tokens in every language."""
    rows = [
        (name, f"{name}-{LANGUAGES.index(language)}", probe, "random" if probe == 2 else "first", layer,
         scale * value / 2)
        for name, of in INFLUENCES.items() for language, values in of.items() for probe, value in enumerate(values)
        for layer in (0, 1)
    ]  # fmt: skip
    names = ("probe_set", "query_id", "probe", "probe_group", "layer", "influence")
    write(store, "probe_influences", probing, probing_id=[probing] * len(rows),
          **{name: [row[k] for row in rows] for k, name in enumerate(names)})  # fmt: skip
    sets = list(INFLUENCES)
    write(store, "probe_sequences", probing, probing_id=[probing] * 6, probe_set=[s for s in sets for _ in range(3)],
          probe=[0, 1, 2] * 2, sequence_id=[0, 1, 3, 2, 1, 0])  # fmt: skip
    prompts = [(of.name, p) for of in ASKED[:2] for p in of.prompts.values()]
    write(store, "probe_queries", probing, probing_id=[probing] * 6, probe_set=[s for s, _ in prompts],
          query_id=[p.query_id for _, p in prompts], prompt=["p"] * 6, completion=[" c"] * 6,
          metadata=[p.metadata for _, p in prompts], n_completion_tokens=[2] * 6,
          log_probability=[-4.0] * 6)  # fmt: skip


def table(page, block: int) -> dict[str, list]:
    return {row.name: [cell and cell.value for cell in row.cells] for row in page.blocks[block].table.rows}


def test_a_translations_part_is_the_mean_over_queries_of_ratios_of_means(store):
    write_probing(store, "probing-1", 1)
    write_probing(store, "probing-2", 0.5)
    page = study_cross_lingual(store, {"small": "probing-1", "large": "probing-2"}, ASKED, "")
    # sun: en (6 + 2)/2 = 4, de 2, ar −1, at random 1, 2, 0; rain: en 2, de 0, ar 1, at random −1, 0, 1.
    assert table(page, 0) == {
        "en": ["1.000", "−.125", "1.000", "−.125"],  # (1/4 − 1/2) / 2
        "de": [".250", ".250", ".250", ".250"],  # (2/4 + 0) / 2 and the same at random
        "language 3: العربية": [".125", ".250", ".125", ".250"],  # (−1/4 + 1/2) / 2; (0 + 1/2) / 2
    }
    assert page.numbers[0] == ("queries", "2", "of 3")
    assert "no sequence raised them: dark" in page.blocks[0].notes[1]
    rows = page.blocks[1].table.rows
    assert page.blocks[1].title.endswith("sun")
    assert [(row.name, *(cell.value for cell in row.cells[:5])) for row in rows] == [
        ("small", "1", "0", "6", "3", "0"), ("small", "2", "1", "2", "1", "-2"),
        ("large", "1", "0", "3", "1.5", "0"), ("large", "2", "1", "1", "0.5", "-1"),
    ]  # fmt: skip
    assert table(page, 3)["de"] == ["−2.000", "−2.000"]
    assert all(run_user_sql(store, block.statement)[1] for block in page.blocks if block.statement)


def test_a_language_that_a_query_lacks_is_left_out_of_its_means(store):
    write_probing(store, "probing-1", 1)
    asked = [ASKED[0], Translated("rain", {"en": ASKED[1].prompts["en"]})]
    keep = [
        k
        for k, (name, of) in enumerate((n, q) for n, by in INFLUENCES.items() for q in by)
        if name == "sun" or of == "en"
    ]
    prompts = [p for of in ASKED[:2] for p in of.prompts.values()]
    write(store, "probe_queries", "probing-1", probing_id=["probing-1"] * len(keep),
          probe_set=[json.loads(prompts[k].metadata)["group"] for k in keep],
          query_id=[prompts[k].query_id for k in keep], metadata=[prompts[k].metadata for k in keep],
          n_completion_tokens=[2] * len(keep), log_probability=[-4.0] * len(keep))  # fmt: skip
    page = study_cross_lingual(store, {"small": "probing-1"}, asked, "")
    assert table(page, 0)["de"] == [".500", ".500"]  # sun alone
    assert page.blocks[0].table.rows[1].cells[0].interval == ""


@pytest.mark.filterwarnings("error:Glyph")
def test_the_page_shows_any_script_and_none_of_it_commands_anything(store, tmp_path):
    write_probing(store, "probing-1", 1)
    page = study_cross_lingual(store, {"small": "probing-1"}, ASKED, "")
    html = write_study_page(page, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Sun &lt;i&gt;up&lt;/i&gt;" in html
    assert "\u202e" not in html
    assert "&lt;202e&gt;sun" in html
    assert "<bdi>language 3: العربية</bdi>" in html


def test_the_first_sequences_of_a_trace_and_others_at_random_become_probes(store):
    tiny_runs.write_run(store, "run-1")
    ranked = [("sun-0", 2, 5.0, 1), ("sun-0", 0, 1.0, 2), ("sun-0", 1, -1.0, 3), ("dark-0", 0, -1.0, 1)]
    write(store, "influences", "run-1", run_id=["run-1"] * 4, query_id=[r[0] for r in ranked],
          sequence_id=[r[1] for r in ranked], method=["ekfac"] * 4, influence=[r[2] for r in ranked],
          influence_rank=[r[3] for r in ranked])  # fmt: skip
    (sun,) = as_probes(store, "run-1", ASKED, 3, 5, 0)
    assert [p.query_id for p in sun.prompts] == ["sun-0", "sun-1", "sun-2"]
    assert [(p.group, p.sequence_id) for p in sun.probes] == [("first", 2), ("first", 0), ("random", 1), ("random", 3)]
    (one,) = as_probes(store, "run-1", ASKED, 1, 1, 0)
    assert [p.group for p in one.probes] == ["first", "random"]
    with pytest.raises(InputError, match="expected a query that some sequence raised in its first language"):
        as_probes(store, "run-1", ASKED[2:], 3, 5, 0)


def test_the_names_along_a_figures_axes_stand_apart_in_one_column_of_a_paper(store):
    write_probing(store, "probing-1", 1)
    for block in study_cross_lingual(store, {"small": "probing-1"}, ASKED, "").blocks:
        if block.draw is None:
            continue
        figure = Figure(figsize=(COLUMN, block.height), layout="constrained")
        canvas = FigureCanvasAgg(figure)
        block.draw(figure, LIGHT)
        canvas.draw()
        for axes in figure.axes:
            boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
            assert all(left.x1 < right.x0 for left, right in pairwise(boxes)), block.title
