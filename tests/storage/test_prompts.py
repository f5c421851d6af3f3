from __future__ import annotations

import json

import pytest

from storage.database import session
from storage.errors import InputError, MismatchError
from storage.prompts import make_prompt, read_prompts, register_prompts
from storage.store import create_store


def write(path, *lines):
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_query_keeps_its_fields_and_the_rest_becomes_metadata(tmp_path):
    (prompt,) = read_prompts(
        write(tmp_path / "q.jsonl", '{"query_id": "a", "prompt": "p", "completion": " c", "x": 1}')
    )
    assert (prompt.query_id, prompt.prompt, prompt.completion, prompt.metadata) == ("a", "p", " c", '{"x": 1}')


def test_a_query_without_id_is_named_by_its_text():
    assert make_prompt("p", " c").query_id == make_prompt("p", " c").query_id
    assert make_prompt("p", " c").query_id != make_prompt("p", " d").query_id


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "p"}', "no completion"),
        ('{"completion": "c"}', "no prompt"),
        ('{"prompt": "p", "completion": "  "}', "completion that is not empty"),
        ('{"prompt": "p", "completion"', "Correct the line"),
        ('["p", "c"]', "Correct the line"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, said):
    with pytest.raises(InputError, match=said):
        read_prompts(write(tmp_path / "q.jsonl", line))


def test_a_query_id_that_occurs_twice_is_refused(tmp_path):
    line = '{"query_id": "a", "prompt": "p", "completion": "c"}'
    with pytest.raises(InputError, match="'a' twice"):
        read_prompts(write(tmp_path / "q.jsonl", line, line))


def test_a_known_id_with_other_words_is_refused_and_nothing_changes(tmp_path):
    store = create_store(tmp_path / "s")
    register_prompts(store, [make_prompt("p", " c", "a")])
    register_prompts(store, [make_prompt("p", " c", "a")])
    with pytest.raises(MismatchError, match="another query_id"):
        register_prompts(store, [make_prompt("p", " d", "a"), make_prompt("x", " y", "b")])
    with session(store) as connection:
        assert connection.execute("select query_id, completion from queries").fetchall() == [("a", " c")]


def test_a_document_of_queries_is_read_like_lines(tmp_path):
    given = [{"prompt": "p", "completion": "c", "query_id": "a"}, {"prompt": "", "completion": " d", "group": "maths"}]
    one, two = read_prompts(write(tmp_path / "q.json", json.dumps(given, indent=1)))
    assert (one.query_id, one.prompt, one.completion) == ("a", "p", "c")
    assert (two.query_id, two.metadata) == (make_prompt("", " d").query_id, '{"group": "maths"}')


def test_a_published_collection_is_joined_by_spaces_and_its_pointers_are_left_out(tmp_path, caplog):
    given = {
        "source": "somebody",
        "queries": [
            {"name": "water", "group": "simple", "prompt": "Water is made of", "completion": "hydrogen."},
            {"name": "spaced", "prompt": "Water is ", "completion": "wet."},
            {"name": "speech", "prompt": None, "completion": None, "note": "two passages"},
        ],
    }
    found = read_prompts(write(tmp_path / "q.json", json.dumps(given)))
    assert [(p.query_id, p.prompt + p.completion) for p in found] == [
        ("water", "Water is made of hydrogen."), ("spaced", "Water is wet."),
    ]  # fmt: skip
    assert json.loads(found[0].metadata)["group"] == "simple"
    assert "speech left out: without prompt or completion" in caplog.text
    assert "a space put between prompt and completion of 1 of 2" in caplog.text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"queries": [{"name": "a", "prompt": None, "completion": None}]}, "found 1 that only point to a text"),
        ([{"prompt": "p"}], "number 1.*no completion"),
        ({"queries": []}, "line 1.*no prompt"),
        ([{"prompt": "p", "completion": 3}], "completion that is not empty"),
        ({"queries": [{"name": "a", "prompt": "p", "completion": "c"}] * 2}, "'a' twice"),
    ],
)
def test_what_is_wrong_with_a_document_is_named(tmp_path, given, said):
    with pytest.raises(InputError, match=said):
        read_prompts(write(tmp_path / "q.json", json.dumps(given)))


def test_the_published_queries_are_read_with_their_groups(shared_data, caplog):
    found = read_prompts(shared_data / "queries" / "grosse_queries.json")
    assert len(found) == 29
    assert {json.loads(p.metadata)["group"] for p in found} >= {"simple", "math_code_physics", "memorization",
                                                                "role_play", "translation"}  # fmt: skip
    assert "king, neurosemantic_facutitious left out" in caplog.text
    assert found[0].completion == " Justin Trudeau."
