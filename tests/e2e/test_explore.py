"""The explorer, really started: a reader hands words in, watches their trace and reads the answer; then it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import worlds
from e2e.systems import ROOT, System, running_system, wait_for

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, which drives Chromium")
CHROMIUM = Path("/usr/bin/chromium")
HEADWATER = str(Path(sys.executable).parent / "headwater")
QUERY = {"query_id": "first", "prompt": "The otter went to the", "completion": " harbour."}
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Chromium at /usr/bin/chromium"),
]


@dataclass
class Running:
    """An explorer in a process of its own."""

    process: subprocess.Popen
    address: str
    log: Path

    def family(self) -> list[psutil.Process]:
        """It and everything that it started and that runs."""
        started = psutil.Process(self.process.pid).children(recursive=True)
        return [psutil.Process(self.process.pid), *(p for p in started if p.status() != psutil.STATUS_ZOMBIE)]


def environment(folder: Path) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "HEADWATER_"))}
    return clean | {"PREFECT_HOME": str(folder / "prefect")}


def start(folder: Path, *arguments: str, **settings: str) -> Running:
    log = folder / f"explore-{time.time_ns()}.log"
    with log.open("wb") as said:
        process = subprocess.Popen(
            [HEADWATER, "explore", "--store", str(folder / "store"), "--port", "0", *arguments],
            env=environment(folder) | settings, stdout=said, stderr=subprocess.STDOUT, cwd=folder,
        )  # fmt: skip
    found = wait_for(lambda: re.search(r"http://127\.0\.0\.1:\d+", log.read_text()) or process.poll(), 240, "start")
    assert isinstance(found, re.Match), log.read_text()
    return Running(process, found.group(), log)


def gone(family: list[psutil.Process]) -> bool:
    return not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, gpt2, corpus) -> Path:
    """A place with a store in which one query was traced, and a model of its own, which may be spoilt."""
    folder = tmp_path_factory.mktemp("explore")
    worlds.save_gpt2(folder / "model")
    queries = worlds.write_jsonl(folder / "q.jsonl", [QUERY])
    subprocess.run(
        [HEADWATER, "trace", "--store", "store", "--model", "model", "--corpus", str(corpus), "--queries", str(queries),
         "--rescore", "10", "--cluster", "none", "--precision", "float32"],
        cwd=folder, env=environment(folder), check=True, capture_output=True,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def explorer(folder) -> Iterator[Running]:
    running = start(folder)
    yield running
    if running.process.poll() is None:
        running.process.send_signal(signal.SIGINT)
        running.process.wait(timeout=120)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as chrome:
        browser = chrome.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=["light", "dark"])
def scheme(request) -> str:
    return request.param


def open_page(browser, explorer: Running, scheme: str = "light", path: str = "/"):
    page = browser.new_page(viewport={"width": 1300, "height": 900}, color_scheme=scheme)
    page.set_default_timeout(60_000)
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("request", lambda asked: asked.url.startswith(explorer.address) or page.faults.append(asked.url))
    page.goto(explorer.address + path)
    return page


def keep_picture(page, name: str) -> None:
    pictures = ROOT / "build" / "screenshots"
    pictures.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=pictures / f"explorer-{name}.png")


def hand_in(page, prompt: str, completion: str) -> None:
    page.locator("#ask > summary").click()
    page.locator("#prompt").fill(prompt)
    page.locator("#completion").fill(completion)
    page.get_by_role("button", name="Trace it").click()


def ask(folder: Path, statement: str) -> list[dict]:
    """The tables as another process sees them."""
    done = subprocess.run(
        [HEADWATER, "sql", "--store", "store", statement, "--format", "json"],
        cwd=folder, env=environment(folder), check=True, capture_output=True, text=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_a_query_is_read_from_the_tables_when_it_is_opened(browser, explorer, folder, scheme):
    page = open_page(browser, explorer, scheme)
    keep_picture(page, f"list-{scheme}")
    page.locator("#queries tbody a").first.click()
    page.locator(".rank button").first.click()
    page.locator(".panel").wait_for()
    keep_picture(page, f"query-{scheme}")
    labels = page.locator(".rank button").evaluate_all("all => all.map(one => one.getAttribute('aria-label'))")
    (top,) = ask(folder, "select sequence_id from top_influences('first', k := 1)")
    assert labels[0] == f"Rank 1, sequence {top['sequence_id']}"
    assert page.faults == []
    page.close()


def test_words_are_traced_while_the_page_shows_the_stages_and_then_the_answer_opens(browser, explorer, folder):
    page = open_page(browser, explorer)
    hand_in(page, "The heron went to the", "orchard <b>x</b>.")
    trace = page.locator("#asked-traces .trace")
    trace.wait_for()
    assert page.locator("#seam").is_hidden()  # the words were taken and the field is empty
    trace.locator(".stages .running").first.wait_for(timeout=300_000)
    keep_picture(page, "progress")
    assert "orchard <b>x</b>." in trace.inner_text()
    page.wait_for_url(re.compile(r"\?run=run-\w+#q=q-"), timeout=300_000)
    page.locator(".rank button").first.wait_for()
    keep_picture(page, "answer")
    assert page.locator("#asked .completion").inner_text() == " orchard <b>x</b>."
    (made,) = ask(folder, "select run_id, query_id from run_queries where query_id <> 'first'")
    assert f"run={made['run_id']}#q={made['query_id']}" in page.url
    assert page.locator("#runs").input_value() == made["run_id"]
    first = page.locator(".rank button").first.get_attribute("aria-label")
    (top,) = ask(folder, f"select sequence_id from top_influences('{made['query_id']}', k := 1)")
    assert first == f"Rank 1, sequence {top['sequence_id']}"
    # The other run is one choice away.
    page.locator("#runs").select_option(index=1)
    page.locator("#queries tbody a", has_text="first").wait_for()
    assert page.faults == []
    page.close()


def test_nothing_is_wider_than_a_phone(browser, explorer):
    page = open_page(browser, explorer)
    page.set_viewport_size({"width": 390, "height": 800})
    for details in page.locator("details").all():
        details.evaluate("one => { one.open = true; }")
    page.locator("#completion").fill("dog")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


def test_what_the_tokenizer_refuses_is_told_in_the_form(browser, explorer):
    page = open_page(browser, explorer)
    hand_in(page, "word " * 300, "x")
    refused = page.locator("#refused")
    refused.wait_for()
    assert "expected at most 48 tokens, the model's context" in refused.inner_text()
    assert page.locator("#asked-traces .trace").count() == 0
    page.close()


def test_axe_finds_nothing_wrong_and_a_row_reads_sensibly(browser, explorer, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python").Axe()
    page = open_page(browser, explorer, scheme, "/?run=latest")
    for details in page.locator("details").all():
        details.evaluate("one => { one.open = true; }")
    page.locator("#completion").fill("dog")
    assert axe.run(page).generate_snapshot() == ""
    page.locator("#queries tbody a").first.click()
    page.locator(".rank button").first.click()
    page.locator(".panel").wait_for()
    assert axe.run(page).generate_snapshot() == ""
    read = page.locator("tr.row").first.aria_snapshot()
    assert re.match(r"""- '?row "Rank 1, sequence \d+ [−\d]""", read), read
    assert 'cell "Rank 1, sequence' in read
    page.close()


def test_a_trace_that_fails_says_why_and_what_to_do(browser, explorer, folder):
    weights = folder / "model" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(b"spoilt")
    try:
        page = open_page(browser, explorer)
        hand_in(page, "The viper went to the", "market.")
        page.locator(".trace.failed", has_text="market.").wait_for(timeout=300_000)
        keep_picture(page, "failed")
        said = page.locator(".trace.failed").inner_text()
        assert "could not be traced" in said
        assert f"model {folder / 'model'}: expected a causal language model that transformers loads" in said
        assert "Check that config.json and the weights belong together." in said
        page.close()
    finally:
        weights.write_bytes(whole)


def test_ctrl_c_ends_the_trace_and_the_server_and_says_so(explorer, browser):
    page = open_page(browser, explorer)
    hand_in(page, "The raven went to the", "chapel.")
    page.locator(".trace.running", has_text="chapel.").wait_for(timeout=300_000)
    family = explorer.family()
    assert len([p for p in family if "flows.tethered" in " ".join(p.cmdline())]) >= 2  # a server and a trace
    addresses = {c.laddr.ip for p in family for c in p.net_connections() if c.status == psutil.CONN_LISTEN}
    assert addresses == {"127.0.0.1"}
    explorer.process.send_signal(signal.SIGINT)
    assert explorer.process.wait(timeout=120) == 0
    said = explorer.log.read_text()
    assert re.search(r'the trace of "The raven went to the" → " chapel\." was ended; what was finished is kept', said)
    assert said.rstrip().endswith("the explorer is ended")
    assert gone(family)
    page.locator("#gone").wait_for()
    assert "was ended. Start it again" in page.locator("#gone").inner_text()
    page.close()


def test_an_explorer_that_is_killed_leaves_no_server_and_no_trace_behind(folder, browser):
    running = start(folder)
    page = open_page(browser, running)
    hand_in(page, "The toad went to the", "bridge.")
    page.locator(".trace.running").wait_for(timeout=300_000)
    family = running.family()
    assert len(family) >= 3
    running.process.kill()
    running.process.wait()
    page.close()
    wait_for(lambda: gone(family), 60, "end of its children")


@pytest.fixture
def own_system(tmp_path, gpt2) -> Iterator[System]:
    """One beside the package's, whose runs other tests count."""
    with running_system(tmp_path, gpt2) as system:
        yield system


def test_a_worker_of_a_server_carries_traces_out_and_the_page_says_what_it_waits_for(browser, own_system):
    system = own_system
    running = start(system.root, "--model", str(system.model), PREFECT_API_URL=f"{system.site}/api")
    try:
        page = open_page(browser, running)
        if page.locator("#ask > summary").count():  # else nothing was traced yet, and the form is the page
            page.locator("#ask > summary").click()
        page.locator("#prompt").fill("The otter went to the")
        page.locator("#completion").fill("harbour.")
        page.get_by_role("button", name="Trace it").click()
        trace = page.locator("#asked-traces .trace.running")
        trace.wait_for(timeout=120_000)
        link = trace.get_by_role("link", name="Prefect UI").get_attribute("href")
        assert link.startswith(system.site)
        run = system.run(link.rpartition("/")[2])
        assert run["deployment_id"] == system.deployment("trace/on-demand")["id"]
        page.wait_for_url(re.compile(r"\?run=run-\w+#q=q-"), timeout=300_000)
        page.locator(".rank button").first.wait_for()
        assert len(running.family()) == 1  # nothing was started here
        page.close()
    finally:
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(timeout=60) == 0
