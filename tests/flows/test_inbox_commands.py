"""submit, status and retry as a user types them; no server is started."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from typer.testing import CliRunner

from flows.cli import app
from storage.errors import InputError, StoreError
from storage.inbox import record_failures
from storage.store import create_store, open_store


@pytest.fixture
def store(tmp_path) -> Path:
    return create_store(tmp_path / "s").root


def run(*arguments: object) -> str:
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False, env={"COLUMNS": "140"})
    assert done.exit_code == 0, done.output
    return done.output


def submit(store: Path, completion: str, query_id: str) -> str:
    return run("submit", "--store", store, "--prompt", "p", "--completion", completion, "--query-id", query_id)


def test_a_query_waits_fails_and_waits_again(store):
    assert "1 of 1 queries are new" in submit(store, " c", "one")
    assert "0 of 1 queries are new" in submit(store, " c", "one")
    assert "1 queries wait · 0 failed · 0 answered" in run("status", "--store", store)
    record_failures(open_store(store), {"one": "too long"})
    assert "0 queries wait · 1 failed · 0 answered" in (said := run("status", "--store", store))
    assert "too long" in said
    assert "headwater retry" in said
    assert "1 queries wait again" in run("retry", "--store", store, "one")
    found = json.loads(run("status", "--store", store, "--format", "json"))
    assert found["queries"] == {"waiting": 1, "failed": 0, "answered": 0}
    assert [(q["query_id"], q["state"], q["failures"]) for q in found["open"]] == [("one", "waiting", 1)]


def test_a_file_of_queries_comes_in_whole_or_is_refused(tmp_path, store):
    lines = [{"prompt": "p", "completion": f" {k}", "query_id": str(k)} for k in range(5)]
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    assert "5 of 5 queries are new" in run("submit", "--store", store, "--queries", path)
    path.write_text("\n".join(map(json.dumps, [{**lines[0], "query_id": "new"}, {**lines[1], "completion": " other"}])))
    with pytest.raises(Exception, match="another query_id"):
        run("submit", "--store", store, "--queries", path)
    assert "5 queries wait" in run("status", "--store", store)


@pytest.mark.parametrize(
    "arguments",
    [(), ("--prompt", "p"), ("--queries", "f", "--completion", "c"), ("--queries", "f", "--query-id", "x")],
)
def test_either_a_file_or_one_query(store, arguments):
    with pytest.raises(InputError, match="either --queries FILE or --prompt with --completion"):
        run("submit", "--store", store, *arguments)


def test_a_wrong_path_makes_no_store(tmp_path):
    with pytest.raises(StoreError, match="store.json"):
        submit(tmp_path / "typo", " c", "one")
    assert not (tmp_path / "typo").exists()


def test_what_others_submitted_cannot_drive_the_terminal(store):
    submit(store, " c", "\x1b[2Jgone[red]")
    record_failures(open_store(store), {"\x1b[2Jgone[red]": "\x1b]0;title\x07[bold]why"})
    said = run("status", "--store", store)
    assert "\x1b" not in said
    assert "\x07" not in said
    assert "<001b>[2Jgone[red]" in said
    assert "[bold]why" in said


def test_a_server_that_does_not_answer_is_named_and_hides_nothing(store):
    submit(store, " c", "one")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/api"
        with temporary_settings({PREFECT_API_URL: url}):
            said = CliRunner().invoke(app, ["status", "--store", str(store)], catch_exceptions=False).output
    assert "1 queries wait" in said
    assert f"Prefect at {url} does not answer" in said
