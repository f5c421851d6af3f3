"""Near-duplicates: families are those of explicit Jaccard indices; copies, edits, short texts, none."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from storage.database import session
from storage.store import Store, create_store
from storage.tables import write_part
from tasks.near_duplicates import near_duplicates


def make_store(path, sequences: list[list[int]]) -> Store:
    store, n = create_store(path), len(sequences)
    columns = {
        "sequence_id": list(range(n)), "document_id": ["d"] * n, "part": ["p"] * n, "start_char": [0] * n,
        "end_char": [1] * n, "token_ids": sequences, "n_tokens": list(map(len, sequences)),
    }  # fmt: skip
    write_part(store, "sequences", "p", columns=columns)
    return store


def families(path, sequences: list[list[int]]) -> dict[int, int]:
    with session(make_store(path, sequences)) as connection:
        return near_duplicates(connection, range(len(sequences)))


def jaccard(a: list[int], b: list[int]) -> float:
    """Of the distinct runs of five tokens, written with sets."""
    a_runs, b_runs = ({tuple(tokens[k : k + 5]) for k in range(max(len(tokens) - 4, 1))} for tokens in (a, b))
    return len(a_runs & b_runs) / len(a_runs | b_runs)


def edited(rng: np.random.Generator, tokens: list[int], n: int) -> list[int]:
    """The tokens with n of them replaced."""
    changed = list(tokens)
    for place in rng.choice(len(tokens), n, replace=False):
        changed[place] = int(rng.integers(10**6, 10**7))
    return changed


@pytest.fixture(scope="module")
def varied() -> list[list[int]]:
    """Ten texts of 60 to 300 tokens with 0 to 40 % of each copy's tokens replaced, some words common to all."""
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 50, int(rng.integers(60, 301))).tolist() for _ in range(10)]
    return [edited(rng, text, int(share * len(text))) for text in texts for share in (0, 0, 0.02, 0.05, 0.1, 0.4)]


def test_what_an_explicit_jaccard_index_finds_close_is_one_family_and_no_other(varied, tmp_path):
    found = families(tmp_path / "s", varied)
    sure = [pair for pair in combinations(range(len(varied)), 2) if jaccard(varied[pair[0]], varied[pair[1]]) >= 0.7]
    assert len(sure) > 30
    assert [pair for pair in sure if found.get(pair[0], pair[0]) != found.get(pair[1], -1)] == []
    # Whoever is in a family is close to at least one of it; nobody is joined to another text.
    for one, family in found.items():
        others = [k for k, of in found.items() if of == family and k != one]
        assert max(jaccard(varied[one], varied[k]) for k in others) >= 0.5
        assert {k // 6 for k in others} == {one // 6}


def test_a_family_is_named_after_its_smallest_id_and_loners_have_none(tmp_path):
    text, other = list(range(40)), list(range(100, 140))
    assert families(tmp_path / "s", [other, text, text, list(range(200, 240)), text]) == {1: 1, 2: 1, 4: 1}


def test_a_text_that_stands_there_five_hundred_times_is_one_family(tmp_path):
    assert families(tmp_path / "s", [list(range(60))] * 500) == dict.fromkeys(range(500), 0)


def test_texts_of_fewer_than_five_tokens_are_compared_whole(tmp_path):
    assert families(tmp_path / "s", [[7], [7, 8], [7, 8], [7, 8, 9, 10], [7], [8, 7]]) == {0: 0, 4: 0, 1: 1, 2: 1}


def test_likeness_is_passed_on_along_a_chain(tmp_path):
    rng = np.random.default_rng(1)
    chain = [rng.integers(0, 10**6, 200).tolist()]
    for _ in range(6):
        chain.append(chain[-1][20:] + rng.integers(0, 10**6, 20).tolist())  # neighbours share 176 of 216 runs
    assert jaccard(chain[0], chain[-1]) < 0.5
    assert families(tmp_path / "s", chain) == dict.fromkeys(range(7), 0)


def test_nothing_is_alike_where_nothing_is(tmp_path):
    assert families(tmp_path / "s", [list(range(k * 100, k * 100 + 30)) for k in range(20)]) == {}
