"""Queries in several languages: how sentences are cut, and what is wrong with a file, by name."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.errors import InputError
from storage.translations import cut_in_two, read_translated


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("The sun rises here.", ("The sun", " rises here.")),  # white space at 3, 7 and 13 of 19
        ("太陽從這裡升起", ("太陽從這", "裡升起")),
        ("e\u0301" * 5, ("e\u0301" * 3, "e\u0301" * 2)),  # the fifth character of ten is a mark
        ("  شمس مشرقة  ", ("شمس", " مشرقة")),
        ("a incomprehensibilities", ("a incomprehe", "nsibilities")),  # its only space is too far from the middle
    ],
)
def test_a_sentence_is_cut_at_the_space_nearest_to_its_middle(text, parts):
    assert cut_in_two(text) == parts
    assert "".join(parts) == text.strip()


def test_joined_characters_are_not_cut_apart():
    family = "\u200d".join("👩👩👧")
    assert cut_in_two("ab" + family) == ("ab" + family, "")


@pytest.fixture
def table(tmp_path):
    rows = {
        "en": ["The sun rises.", "", "It rains.", "x" * 500, "It rains.", "Osterburg lies there."],
        "de": ["Die Sonne geht auf.", "leer", "Es regnet.", "y", "Es regnet.", "Osterburg liegt dort."],
        "zh": ["太陽升起。", "空", "下雨了。", "z", "下雨了。", None],
    }
    pq.write_table(pa.table(rows), tmp_path / "many.parquet")
    return str(tmp_path / "many.parquet")


def test_rows_that_lack_a_language_are_too_long_or_come_again_are_not_asked(table):
    one, two = read_translated(f"{table}:en:de:zh", 24)
    assert (one.name, two.name) == ("sentence 1", "sentence 3")
    assert list(one.prompts) == ["en", "de", "zh"]
    assert (one.prompts["de"].prompt, one.prompts["de"].completion) == ("Die Sonne", " geht auf.")
    assert one.prompts["zh"].query_id.endswith("-zh")
    assert json.loads(two.prompts["de"].metadata) == {"group": "sentence 3", "language": "de"}
    assert len(read_translated(f"{table}:de:en", 1)) == 1


def test_sentences_are_as_short_as_the_smallest_context_asks_in_bytes_of_every_language(table):
    assert [of.name for of in read_translated(f"{table}:en:de:zh", 24, 18)] == ["sentence 3"]  # 19 bytes of German
    assert [of.name for of in read_translated(f"{table}:en:zh", 24, 15)] == ["sentence 1", "sentence 3"]
    with pytest.raises(InputError, match="expected rows with a sentence of at most 8 bytes in each language"):
        read_translated(f"{table}:de:zh", 24, 8)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (":en:tr:ko", "no column 'tr', 'ko' among en, de, zh"),
        (":en", "two languages or more, each a column of it, found en of en, de, zh"),
        (":en:en", "found en of en, de, zh"),
        ("", "found none of en, de, zh"),
    ],
)
def test_languages_that_a_table_lacks_are_named(table, columns, said):
    with pytest.raises(InputError, match=said):
        read_translated(table + columns, 24)


def test_a_table_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="sentences .*none.parquet: expected a Parquet file"):
        read_translated(f"{tmp_path}/none.parquet:en:de", 24)


def lines(tmp_path, *records):
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": "p", "completion": " c", **r}) for r in records), encoding="utf-8")
    return str(path)


def test_queries_of_a_file_stand_together_by_group_in_the_order_of_its_languages(tmp_path):
    path = lines(
        tmp_path, {"query_id": "a", "group": "rain", "language": "en"}, {"query_id": "b", "group": 7, "language": "en"},
        {"query_id": "c", "group": 7, "language": "ar"}, {"query_id": "d", "group": "rain", "language": "ko"},
    )  # fmt: skip
    rain, seven = read_translated(path, 24)
    assert (rain.name, list(rain.prompts)) == ("rain", ["en", "ko"])
    assert [p.query_id for p in seven.prompts.values()] == ["b", "c"]


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([{"query_id": "a", "group": "x"}], "query a: expected its group and its language, found no language"),
        ([{"query_id": "a", "language": "en"}], "found no group"),
        ([{"query_id": k, "group": "x", "language": "en"} for k in "ab"], "group x: expected one query in each"),
        ([{"query_id": "a", "group": "x", "language": "en"}], "found en alone"),
        (
            [{"query_id": a, "group": b, "language": c} for a, b, c in (("a", "x", "en"), ("b", "y", "de"))],
            "found none in group y",
        ),
    ],
)
def test_what_is_wrong_with_a_file_of_queries_is_named(tmp_path, records, said):
    with pytest.raises(InputError, match=said):
        read_translated(lines(tmp_path, *records), 24)
