from __future__ import annotations

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
