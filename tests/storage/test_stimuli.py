"""Files of stimuli: ours, the published ones, and what is wrong with others, by name."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.errors import InputError
from storage.stimuli import SETS, read_stimuli, read_translations
from tasks.demo.stimuli import planted_stimuli, unknown_stimuli


def written(tmp_path, value):
    path = tmp_path / "stimuli.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return str(path)


def test_a_file_of_ours_is_read_in_its_order(tmp_path):
    given = {
        "fact": {"prompt": "The seat is", "completion": " Osterburg", "order kept": ["a b", "c d"], "mine": ["e f"]}
    }
    (found,) = read_stimuli(written(tmp_path, given))
    assert (found.name, found.prompt, found.completion) == ("fact", "The seat is", " Osterburg")
    assert found.sets == {"order kept": ("a b", "c d"), "mine": ("e f",)}


def test_the_published_sets_are_read_with_the_questions_that_the_paper_asked(shared_data):
    astrobia, gleem = read_stimuli(str(shared_data / "queries" / "grosse_queries.json"))
    assert (astrobia.prompt, astrobia.completion) == (
        "The first President of the Republic of Astrobia was", " Zorald Pfaff",
    )  # fmt: skip
    assert astrobia.sets["order kept"][0] == astrobia.prompt + astrobia.completion
    assert gleem.sets["order kept"][0] == gleem.prompt + gleem.completion
    assert list(astrobia.sets) == list(gleem.sets) == list(SETS.values())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{", "Expecting property name"),
        ([1], "found something else"),
        ({"a": {"order kept": ["x"], "mine": ["y"]}}, "a: expected a prompt and a completion"),
        ({"a": {"prompt": "p", "completion": "c", "order kept": ["x"]}}, "one other set"),
        (
            {"a": {"prompt": "p", "completion": "c", "order kept": ["x"], "mine": []}},
            "a, mine: expected a list of texts",
        ),
        ({"a": {"prompt": "p", "completion": "c", "order kept": ["x"], "mine": [" "]}}, "none of them empty"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, given, said):
    with pytest.raises(InputError, match=said):
        read_stimuli(written(tmp_path, given))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_stimuli(str(tmp_path / "none.json"))


@pytest.mark.parametrize("stimuli", [planted_stimuli(), unknown_stimuli()], ids=["planted", "unknown"])
def test_texts_of_ours_are_what_their_kind_says(stimuli):
    assert len(stimuli) == 24
    for stimulus in stimuli:
        answer = stimulus.completion.strip()
        for text in stimulus.sets["order kept"]:
            assert answer in text
        assert not any(answer in text for text in stimulus.sets["completion removed"])
        assert not any(answer in text for text in stimulus.sets["unrelated"])
        for text, cut in zip(stimulus.sets["flipped"], stimulus.sets["flipped, prompt removed"], strict=True):
            assert text.startswith(cut)
            assert answer in cut
        assert min(map(len, stimulus.sets.values())) >= 2


def test_translations_stand_in_both_orders(tmp_path):
    rows = {
        "en": ["The sun rises.", "x" * 150, "", "It rains."],
        "de": ["Die Sonne geht auf.", "y" * 50, "leer", "Es regnet."],
    }
    pq.write_table(pa.table(rows), tmp_path / "pairs.parquet")
    one, two = read_translations(str(tmp_path / "pairs.parquet"), "en", "de")
    assert (one.prompt, one.completion) == ("The sun rises.", " Die Sonne geht auf.")
    assert two.sets == {
        "order kept": ("It rains. Es regnet.",), "flipped": ("Es regnet. It rains.",), "answer alone": ("Es regnet.",),
        "question alone": ("It rains.",), "another question": ("The sun rises. Es regnet.",),
    }  # fmt: skip
    assert one.sets["another question"] == ("It rains. Die Sonne geht auf.",)
    with pytest.raises(InputError, match="columns 'en' and 'tr'"):
        read_translations(str(tmp_path / "pairs.parquet"), "en", "tr")
    with pytest.raises(InputError, match="expected a Parquet file with texts"):
        read_translations(str(tmp_path / "none.parquet"), "en", "de")
