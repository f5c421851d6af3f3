"""The study of tokens, on rows written by hand: positions, rank correlations, distances to the limit, hostile text."""

from __future__ import annotations

import numpy as np
import pytest
from report_stores import QUERIES, TOKENS, Page, make_store, write_rows
from scipy.stats import spearmanr

from storage.catalog import run_user_sql
from storage.pages import visible
from tasks.studies.tokens import study_tokens
from tasks.study_page import write_study_page

T = len(TOKENS)
SEQUENCES = (0, 1)


def responses(query: int, sequence: int) -> tuple[np.ndarray, np.ndarray]:
    """Input influences by token, output influences from the second token on; with equal values among them."""
    random = np.random.default_rng(10 * query + sequence)
    return random.integers(-4, 5, T).astype(float), random.integers(-4, 5, T - 1).astype(float)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The run of the report's tests, whose tokens have answered at the limit and at one step."""
    store = make_store(tmp_path_factory.mktemp("tokens") / "s", exact=2)
    rows = []
    for q, name in enumerate(QUERIES):
        for s in SEQUENCES:
            inputs, outputs = responses(q, s)
            for rise, alpha, factor in ((0.0, 0.0, 1.0), (0.1, 0.02, 1.2)):
                rows += [
                    ("r1", name, s, rise, alpha, t, t, inputs[t] * factor**2, outputs[t - 1] * factor if t else None)
                    for t in range(T)
                ]
    write_rows(store, "token_responses", *rows)
    return store


def ask(store, statement: str) -> list[tuple]:
    return run_user_sql(store, statement)[1]


def updates(store, query: str, sequence: int) -> np.ndarray:
    found = ask(
        store,
        f"select sum(influence) from token_influences where query_id = '{query.replace(chr(39), chr(39) * 2)}' "
        f"and sequence_id = {sequence} group by position order by position",
    )
    return np.array([value for (value,) in found])


def test_the_update_of_a_token_stands_one_position_before_it(store):
    rows = ask(store, "select query_id, sequence_id, position, token, update_influence, read_influence, "
                      "output_influence, input_influence from token_forms() order by 1, 2, 3")  # fmt: skip
    assert len(rows) == len(QUERIES) * len(SEQUENCES) * T
    for q, name in enumerate(QUERIES):
        for s in SEQUENCES:
            own = [row[2:] for row in rows if row[:2] == (name, s)]
            at = updates(store, name, s)
            inputs, outputs = responses(q, s)
            assert [row[1] for row in own] == TOKENS
            assert [row[2] for row in own] == [None, *at[:-1]]
            assert [row[3] for row in own] == list(at)
            assert [row[4] for row in own] == [None, *outputs]
            assert [row[5] for row in own] == list(inputs)


def test_the_correlations_are_those_of_scipy_with_ties(store):
    page = study_tokens(store, "latest", QUERIES, 2, "")
    expected = {"update and output": [], "update and input": [], "output and input": []}
    read = []
    for q, name in enumerate(QUERIES):
        for s in SEQUENCES:
            at, (inputs, outputs) = updates(store, name, s), responses(q, s)
            expected["update and output"].append(spearmanr(at[:-1], outputs).statistic)
            expected["update and input"].append(spearmanr(at[:-1], inputs[1:]).statistic)
            expected["output and input"].append(spearmanr(outputs, inputs[1:]).statistic)
            read.append(spearmanr(at[1:], inputs[1:]).statistic)
    expected["update where the token is read, and input"] = read
    table = {row.name: float(row.cells[0].value.replace("−", "-")) for row in page.blocks[1].table.rows}
    assert table == pytest.approx({name: np.mean(values) for name, values in expected.items()}, abs=6e-4)


def test_a_steps_distance_to_the_limit_is_relative_to_the_limits_length(store):
    page = study_tokens(store, "latest", QUERIES, 2, "")
    [row] = page.blocks[2].table.rows
    assert row.name == "0.1 nats"
    assert [cell.value for cell in row.cells] == [".200", ".440"]  # 1.2 − 1, and 1.2² − 1
    sums = ask(store, page.blocks[2].statement)
    outputs = responses(0, 0)[1].sum()
    [(influence,)] = ask(store, "select influence from influences where query_id = 'q0''<u>' and sequence_id = 0")
    assert sums[0][-1] == pytest.approx(abs(outputs - influence) / abs(influence))


def test_one_query_alone_is_shown_where_it_alone_is_asked_for(store):
    page = study_tokens(store, "r1", QUERIES[1:], 1, "")
    assert [passage.title for passage in page.blocks[0].passages] == ["q1'<u> · sequence 0 · rank 1 · influence 7"]
    assert {row[0] for block in page.blocks for row in ask(store, block.statement)} == {QUERIES[1]}


def test_hostile_tokens_are_shown_as_text_in_their_places(store, tmp_path):
    page = study_tokens(store, "latest", QUERIES, 2, "headwater study tokens")
    html = Page(write_study_page(page, tmp_path / "page.html"))
    assert {tag for tag, _ in html.tags}.isdisjoint({"script", "u"})
    assert all(attributes["src"].startswith("data:image/svg") for tag, attributes in html.tags if tag == "img")
    assert not [name for _, attributes in html.tags for name in attributes if name.startswith("on") or name == "style"]
    shown = "".join(map(visible, TOKENS))
    assert html.text.count(shown) == 3 * 4  # three forms of four sequences
    assert "\u202e" not in html.html
    assert "\x1b" not in html.html
    joined = [attributes for tag, attributes in html.tags if tag == "span" and "joined" in attributes.get("class", "")]
    assert len(joined) == 3 * 4  # the accent that stands alone
