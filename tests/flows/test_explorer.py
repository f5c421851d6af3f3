"""The explorer: the report's numbers over SQL, requests that no page of its own sent, words that cannot be traced."""

from __future__ import annotations

import json
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import duckdb
import pytest
from fastapi.testclient import TestClient
from report_stores import HOSTILE, QUERIES, Page, make_store
from tiny_runs import write_run

from flows.asked_traces import AskedTraces
from flows.explore_command import _listen, _require_local
from flows.explorer import Explored, make_explorer
from flows.following import Seen
from flows.outcome import AGAIN
from flows.parameters import ModelParameters, QueryParameters, TraceParameters
from flows.trace_words import TraceWords, compose
from storage.errors import InputError
from storage.pages import visible
from storage.store import Store, create_store, open_store
from tasks.candidates import CandidateParameters
from tasks.corpus import CorpusParameters, ingest
from tasks.fanout import Workers
from tasks.report import render_report

ADDRESS = "http://127.0.0.1:4300"
TOKEN = secrets.token_urlsafe(8)
OURS = {"origin": ADDRESS, "x-headwater-token": TOKEN, "content-type": "application/json"}
WORDS = {"prompt": "The otter went to the", "completion": " harbour."}


class Script:
    """A system that carries out nothing: each look at a flow run gives what the script says next."""

    goes_on = False

    def __init__(self, *seen: Seen) -> None:
        self.seen, self.begun, self.stopped, self.is_closed = list(seen), [], [], False
        self.may_go_on = threading.Event()

    def begin(self, parameters: TraceParameters) -> UUID:
        self.begun.append(parameters)
        return uuid4()

    def look(self, flow_run: UUID) -> Seen:
        if self.stopped:
            return Seen("Cancelled", "", is_over=True, is_done=False)
        if not self.may_go_on.is_set():
            return Seen("Running", "", is_over=False, is_done=False)
        return self.seen.pop(0)

    def link(self, flow_run: UUID) -> None:
        return None

    def stop(self, flow_run: UUID) -> None:
        self.stopped.append(flow_run)

    def close(self) -> None:
        self.is_closed = True


def client_of(store: Store, system: Script | None = None, model: Path | None = None, said: list | None = None):
    named = None if model is None else ModelParameters(name=str(model), revision=None)
    traces = AskedTraces(lambda: system or Script())
    app = make_explorer(Explored(store, named, 100, TOKEN), traces, (said if said is not None else []).append)
    return TestClient(app, base_url=ADDRESS, raise_server_exceptions=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return make_store(tmp_path_factory.mktemp("explorer") / "store", exact=6, beside=True)


@pytest.fixture(scope="module")
def client(store) -> Iterator[TestClient]:
    with client_of(store) as client:
        yield client


@pytest.fixture
def corpus_store(tmp_path, gpt2, corpus) -> Store:
    """A store with training sequences and no run."""
    store = create_store(tmp_path / "s")
    ingest.fn(store, gpt2, CorpusParameters(inputs=(str(corpus),)), Workers())
    return store


def block(client: TestClient, query: str, run: str = "r1") -> dict:
    return client.get("/blocks", params={"run": run, "query": query}).json()


# What it shows


def test_a_block_is_the_one_that_the_report_holds(client, store, tmp_path):
    report = Page(render_report(store, "latest", tmp_path / "r.html"))
    assert [block(client, name) for name in QUERIES] == report.blocks


def test_a_block_s_numbers_are_those_of_the_tables(client, store):
    """Asked of the Parquet files themselves, in a DuckDB that knows nothing of headwater."""
    found = block(client, QUERIES[1])["sequences"]
    truth = duckdb.sql(
        f"select sequence_id, influence, filter_rank from '{store.root}/tables/influences/r1.parquet' "
        "where query_id = ? and method = 'ekfac' order by influence desc",
        params=[QUERIES[1]],
    ).fetchall()
    assert found["sequence_id"] == [row[0] for row in truth]
    assert found["influence"] == [pytest.approx(row[1], rel=1e-3) for row in truth]
    assert found["filter_rank"] == [row[2] for row in truth]


def test_the_page_is_the_report_s_without_its_blocks(client, store, tmp_path):
    (tmp_path / "e.html").write_text(client.get("/").text, encoding="utf-8")
    served, report = Page(tmp_path / "e.html"), Page(render_report(store, "latest", tmp_path / "r.html"))
    assert served.blocks == []
    assert served.about["query_ids"] == [one["query"]["query_id"] for one in report.blocks]
    assert {k: v for k, v in served.about.items() if k in report.about} == report.about
    for title in re.findall("<h[123].*?</h[123]>", report.html):
        assert title in served.html
    mine = next(text for about, text in served.scripts if about.get("type") == "module")
    theirs = next(text for about, text in report.scripts if about.get("type") == "module")
    shared = theirs[theirs.index("// The page: small helpers") :].rstrip()
    assert shared in mine  # the very same code draws both


def test_hostile_words_are_shown_and_never_markup(client, tmp_path):
    (tmp_path / "e.html").write_text(client.get("/").text, encoding="utf-8")
    page = Page(tmp_path / "e.html")
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 2
    assert page.html.count("</script") == 2
    assert not {"img", "iframe", "object", "i", "u"} & set(tags)
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert visible(HOSTILE) in page.text


def test_an_id_with_control_characters_is_found_by_what_the_page_shows(tmp_path):
    store = create_store(tmp_path / "s")
    write_run(store, "run-a")
    odd = "q0\u202e\x1b"
    for relation in ("run_queries", "influences"):
        file = store.file(relation, "run-a")
        rows = duckdb.sql(f"select * replace ('{odd}' as query_id) from read_parquet('{file}')").to_arrow_table()
        duckdb.from_arrow(rows).write_parquet(str(file))
    with client_of(store) as client:
        assert block(client, visible(odd), "run-a")["query"]["query_id"] == visible(odd)


def test_a_run_that_is_completed_meanwhile_can_be_chosen_at_once(tmp_path):
    store = create_store(tmp_path / "s")
    write_run(store, "run-a")
    with client_of(store) as client:
        assert [run["run_id"] for run in client.get("/runs").json()["runs"]] == ["run-a"]
        write_run(store, "run-b", n=3, day=1)
        assert [run["run_id"] for run in client.get("/runs").json()["runs"]] == ["run-b", "run-a"]
        assert "<title>headwater · run-b</title>" in client.get("/").text
        assert "<title>headwater · run-a</title>" in client.get("/", params={"run": "run-a"}).text
        assert len(block(client, "q0", "run-b")["sequences"]["sequence_id"]) == 3


def test_a_run_that_is_not_there_is_named_and_forms_no_path(client):
    said = client.get("/", params={"run": "../../etc/passwd<b>"})
    assert said.status_code == 404
    assert "../../etc/passwd&lt;b&gt;" in said.text
    assert client.get("/blocks", params={"run": "../x", "query": "q"}).status_code == 404


def test_a_store_without_runs_says_so_and_has_a_form_where_a_model_is_named(tmp_path, gpt2):
    store = create_store(tmp_path / "s")
    with client_of(store) as client:
        text = client.get("/").text
        assert "Nothing was traced yet" in text
        assert "headwater explore --model" in text
        assert "<form" not in text
    with client_of(store, model=gpt2) as client:
        text = client.get("/").text
        assert "<form" in text
        assert str(gpt2) in text


# What it refuses


GET = {"method": "GET", "url": "/"}
POST = {"method": "POST", "url": "/traces", "headers": OURS, "content": json.dumps(WORDS)}
REFUSED = {
    "another name for loopback": (GET | {"headers": {"host": "evil.example:4300"}}, 421),
    "a name that begins with ours": (GET | {"headers": {"host": "127.0.0.1.evil.example"}}, 421),
    "a name that is none": (GET | {"headers": {"host": "[::1"}}, 421),
    "two names": (GET | {"headers": [("host", "127.0.0.1"), ("host", "evil.example")]}, 421),
    "another site's script": ({"method": "GET", "url": "/runs", "headers": {"sec-fetch-site": "cross-site"}}, 403),
    "another port's script": ({"method": "GET", "url": "/runs", "headers": {"sec-fetch-site": "same-site"}}, 403),
    "a frame": (
        GET | {"headers": {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}},
        403,
    ),
    "a form without origin": (POST | {"headers": {k: v for k, v in OURS.items() if k != "origin"}}, 403),
    "a sandboxed form": (POST | {"headers": OURS | {"origin": "null"}}, 403),
    "another site's form": (POST | {"headers": OURS | {"origin": "http://evil.example"}}, 403),
    "another port's form": (POST | {"headers": OURS | {"origin": "http://127.0.0.1:8000"}}, 403),
    "an older page": (POST | {"headers": OURS | {"x-headwater-token": "x"}}, 403),
    "a form's own encoding": (POST | {"headers": OURS | {"content-type": "text/plain"}}, 415),
    "too much": (POST | {"content": "x" * 1_000_001}, 413),
    "another method": ({"method": "DELETE", "url": "/traces"}, 405),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_page_of_ours_sent_is_refused(client, case):
    asked, code = REFUSED[case]
    said = client.request(**asked)
    assert said.status_code == code
    assert said.json()["error"]
    assert client.get("/traces").json() == {"traces": []}


def test_a_followed_link_and_our_own_page_are_answered(client):
    followed = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert client.get("/", headers=followed).status_code == 200
    assert client.get("/", headers={"host": "localhost:1234"}).status_code == 200  # through a tunnel
    assert client.get("/runs", headers={"sec-fetch-site": "same-origin"}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/runs", "/blocks?run=r&query=q", "/nowhere", "/docs", "/openapi.json"])
def test_every_answer_forbids_frames_sniffing_and_keeping(client, path):
    said = client.get(path)
    assert "frame-ancestors 'none'" in said.headers["content-security-policy"]
    assert said.headers["x-content-type-options"] == "nosniff"
    assert said.headers["cache-control"] == "no-store"
    assert said.headers["cross-origin-resource-policy"] == "same-origin"
    assert "access-control-allow-origin" not in said.headers
    assert (said.status_code == 404) == (path not in ("/", "/runs"))


def test_the_page_s_own_policy_lets_it_ask_this_server_alone(client):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', client.get("/").text)[1]
    parts = dict(part.split(maxsplit=1) for part in policy.split(";"))
    assert (parts["default-src"], parts["connect-src"], parts["form-action"]) == ("'none'", "'self'", "'none'")
    assert "unsafe" not in policy


def test_an_address_that_others_reach_is_refused_unless_its_names_are_given():
    for host in ("127.0.0.1", "localhost", "::1"):
        _require_local(host, ())
    with pytest.raises(InputError, match="expected a loopback address"):
        _require_local("0.0.0.0", ())
    _require_local("0.0.0.0", ("lab.example",))


def test_a_port_in_use_is_told_at_once():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port}: expected one that is free, found .*in use.*--port 0"):
            _listen("127.0.0.1", port)
    _listen("127.0.0.1", port).close()


# What it takes


WRONG = {
    "no completion": ({"completion": ""}, "a completion that is not empty"),
    "blanks": ({"completion": " \n"}, "a completion that is not empty"),
    "too long": ({"prompt": "The otter slept there. " * 40}, "expected at most 48 tokens, the model's context"),
    "NUL": ({"prompt": "a\0b"}, "NUL"),
    "half a character": ({"prompt": "\ud800"}, "expected"),
    "an unknown field": ({"store": "/etc"}, "store"),
    "an unknown method": ({"method": "magic"}, "method"),
    "an unknown filter": ({"filter": "pool"}, "pool"),
    "no candidates": ({"candidates": 0}, "greater than or equal to 1"),
    "a run that is not there": ({"run": "run-x"}, "run 'run-x'"),
}


@pytest.fixture(scope="module")
def asked(tmp_path_factory, gpt2, corpus) -> Iterator[TestClient]:
    store = create_store(tmp_path_factory.mktemp("asked") / "s")
    ingest.fn(store, gpt2, CorpusParameters(inputs=(str(corpus),)), Workers())
    with client_of(store, model=gpt2) as client:
        yield client


def post(client: TestClient, path: str = "/traces", **words) -> tuple[int, dict]:
    said = client.post(path, headers=OURS, content=json.dumps(words))
    return said.status_code, said.json()


@pytest.mark.parametrize("case", WRONG)
def test_words_that_cannot_be_traced_are_refused_with_the_reason_before_anything_runs(asked, case):
    change, reason = WRONG[case]
    code, said = post(asked, **(WORDS | change))
    assert code == 422
    assert reason in said["error"]
    assert asked.get("/traces").json() == {"traces": []}


def test_a_store_without_a_corpus_and_a_model_that_nobody_named_are_told(tmp_path, corpus_store, gpt2):
    with client_of(create_store(tmp_path / "empty"), model=gpt2) as client:
        assert "expected training sequences" in post(client, **WORDS)[1]["error"]
    with client_of(corpus_store) as client:
        assert "headwater explore --store S --model M" in post(client, **WORDS)[1]["error"]


def test_a_prompt_may_be_empty_where_the_tokenizer_has_a_start_token(corpus_store, gpt2):
    model = ModelParameters(name=str(gpt2), revision=None)
    found = compose(corpus_store, TraceWords.model_validate(WORDS | {"prompt": ""}), None, model)
    assert found.queries[0].prompt == ""


def test_a_trace_has_the_shown_run_s_model_and_parameters_but_for_what_the_form_changes(corpus_store, gpt2):
    parameters = {
        "queries": [["q", "p", "c"]],
        "candidates": CandidateParameters(filters=("bm25", "embedding"), top_k=7, unfiltered=3).model_dump(),
        "fit": {"modules": "attention", "sequences": 40},
        "method": {"method": "kfac", "beside": ["identity"], "rescore": 9},
        "precision": "torch.float32",
    }
    run = {"run_id": "run-a", "model": str(gpt2), "parameters": json.dumps(parameters)}
    same = compose(corpus_store, TraceWords.model_validate(WORDS), run, None)
    assert same.model.name == str(gpt2)
    assert same.candidates == CandidateParameters(filters=("bm25", "embedding"), top_k=7, unfiltered=3)
    assert (same.fit.modules, same.fit.sequences) == ("attention", 40)
    assert (same.method.method, same.method.beside, same.method.rescore) == ("kfac", ("identity",), 9)
    assert same.compute.precision == "float32"
    assert same.queries == (QueryParameters(**WORDS, query_id=None),)

    words = TraceWords.model_validate(WORDS | {"method": "ekfac", "filter": "tfidf", "candidates": 5})
    other = compose(corpus_store, words, run, None)
    assert other.candidates == CandidateParameters(filters=("tfidf",), top_k=5, unfiltered=3)
    assert (other.method.method, other.method.rescore) == ("ekfac", 9)


def test_a_pool_is_left_behind_and_parameters_of_an_older_headwater_are_the_defaults(corpus_store, gpt2):
    pooled = {"candidates": {"filters": ["pool"], "pool": "p", "top_k": 3}, "fit": {"gone": 1}, "precision": "x"}
    run = {"run_id": "run-a", "model": str(gpt2), "parameters": json.dumps(pooled)}
    found = compose(corpus_store, TraceWords.model_validate(WORDS), run, None)
    assert found.candidates == CandidateParameters(filters=("bm25",), top_k=3)
    assert found.fit.modules == "mlp"
    assert found.compute.precision == "auto"


# What becomes of it


def until(client: TestClient, *states: str) -> list[dict]:
    """The traces, once their states are these."""
    for _ in range(200):
        traces = client.get("/traces").json()["traces"]
        if [trace["state"] for trace in traces] == list(states):
            return traces
        time.sleep(0.05)
    raise AssertionError([trace["state"] for trace in traces])


def test_traces_queue_and_each_tells_its_run_or_why_it_failed(corpus_store, gpt2):
    done = Seen("Completed", "", is_over=True, is_done=True, run_id="run-a")
    failed = Seen("Failed", "weights: expected <b>, found \x1b.", is_over=True, is_done=False, step=f"Do this. {AGAIN}")
    system = Script(done, failed)
    with client_of(corpus_store, system, gpt2) as client:
        assert post(client, **WORDS)[0] == 202
        post(client, prompt="The heron went to the", completion=" quarry\u202e.")
        until(client, "running", "waiting")
        assert len(system.begun) == 1
        system.may_go_on.set()
        first, second = until(client, "done", "failed")
        assert (first["run_id"], first["is_open"]) == ("run-a", False)
        assert second["error"] == "weights: expected <b>, found ␛."
        assert second["next"] == "Do this."
        assert second["completion"] == " quarry⟨U+202E⟩."
        assert [words.queries[0].completion for words in system.begun] == [" harbour.", " quarry\u202e."]


def test_a_trace_is_stopped_before_it_began_and_while_it_goes_on(corpus_store, gpt2):
    system = Script()
    with client_of(corpus_store, system, gpt2) as client:
        first, second = post(client, **WORDS)[1], post(client, **WORDS)[1]
        until(client, "running", "waiting")
        assert post(client, f"/traces/{second['name']}/stop")[0] == 202
        until(client, "running", "stopped")
        assert system.stopped == []
        post(client, f"/traces/{first['name']}/stop")
        until(client, "stopped", "stopped")
        assert len(system.stopped) == 1
        assert post(client, f"/traces/{first['name']}/stop")[0] == 409
        assert len(system.begun) == 1


def test_the_end_of_the_explorer_ends_what_goes_on_and_says_so(corpus_store, gpt2):
    system, said = Script(), []
    with client_of(corpus_store, system, gpt2, said) as client:
        post(client, **WORDS)
        post(client, prompt="The heron went to the", completion=" quarry.")
        until(client, "running", "waiting")
    assert system.is_closed
    assert len(said) == 2
    assert "was ended; what was finished is kept" in said[0]
    assert "had not begun" in said[1]


def test_a_full_queue_is_refused(corpus_store, gpt2, monkeypatch):
    monkeypatch.setattr("flows.asked_traces.MOST", 1)
    with client_of(corpus_store, Script(), gpt2) as client:
        post(client, **WORDS)
        until(client, "running")
        assert post(client, **WORDS)[0] == 202
        assert "at most 1 that wait" in post(client, **WORDS)[1]["error"]


def test_it_writes_nothing_into_the_store(corpus_store, gpt2):
    open_store(corpus_store.root)
    with client_of(corpus_store, Script(), gpt2) as client:  # makes the catalog, as any reader does
        before = {p: p.stat().st_mtime_ns for p in corpus_store.root.rglob("*") if "work" not in p.parts}
        client.get("/"), client.get("/runs"), post(client, **WORDS)
        until(client, "running")
        assert {p: p.stat().st_mtime_ns for p in corpus_store.root.rglob("*") if "work" not in p.parts} == before
