"""How large a report is, how soon a browser has it open, and whether scrolling stays smooth.

    python tests/benchmarks/report_page.py --queries 50 --top 500 --work DIR

The store is synthetic but for its text, which is Python source of this installation, cut at 256 to 512 tokens.
Influences have heavy tails; tokens of the exactly scored head are there for 12 layers, as of a GPT-2.
Needs Chromium at /usr/bin/chromium and playwright.
"""

from __future__ import annotations

import argparse
import json
import re
import sysconfig
import time
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

from storage.schemas import SCHEMAS
from storage.store import Store, create_store
from storage.tables import write_part, writing
from tasks.report import render_report

RUN, LAYERS, MODULES = "run-size", 12, ("mlp.c_fc", "mlp.c_proj")
CHROMIUM = "/usr/bin/chromium"
# Milliseconds from a click on one element to another's appearance; the longest frame of 400 steps of scrolling.
CLICKED = """async ([clicked, awaited]) => {
  const start = performance.now();
  document.querySelector(clicked).click();
  while (!document.querySelector(awaited)) await new Promise(requestAnimationFrame);
  return performance.now() - start;
}"""
SCROLLED = """async () => {
  let [last, longest] = [performance.now(), 0];
  for (let k = 0; k < 400; k++) {
    window.scrollBy(0, 150);
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    longest = Math.max(longest, now - last);
    last = now;
  }
  return longest;
}"""
TOKEN = re.compile(r" ?\w{1,6}|\s+|[^\w\s]{1,2}")


def texts() -> Iterator[tuple[str, str]]:
    """Name and source of one Python file after another."""
    for path in sorted(Path(sysconfig.get_paths()["purelib"]).rglob("*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        if len(text) > 2000:
            yield str(path.relative_to(sysconfig.get_paths()["purelib"])), text


def cut_texts(rng: np.random.Generator) -> Iterator[tuple[str, str, int, int, list[str]]]:
    """Document, its text, start and end, and tokens of one sequence after another."""
    for name, text in texts():
        places = [match.span() for match in TOKEN.finditer(text)]
        first = 0
        while first + 256 < len(places):
            last = min(first + int(rng.integers(256, 513)), len(places))
            tokens = [text[a:b] for a, b in places[first:last]]
            yield name, text, places[first][0], places[last - 1][1], tokens
            first = last


def write_store(path: Path, n_queries: int, n_candidates: int, n_exact: int, n_sequences: int) -> Store:
    """One complete run over `n_sequences`, each query with candidates of its own and an exact head with tokens."""
    rng = np.random.default_rng(0)
    store, vocabulary = create_store(path), {}
    cut = list(islice(cut_texts(rng), n_sequences))
    documents = {name: text for name, text, *_ in cut}
    fill(store, "documents", [*documents], [*documents.values()], ["python"] * len(documents), ["{}"] * len(documents))
    tokens = [[vocabulary.setdefault(token, len(vocabulary)) for token in found[4]] for found in cut]
    fill(
        store, "sequences", range(len(cut)), [c[0] for c in cut], ["p"] * len(cut), [c[2] for c in cut],
        [c[3] for c in cut], tokens, list(map(len, tokens)),
    )  # fmt: skip
    names = [f"q{k:03d}" for k in range(n_queries)]
    now = datetime(2026, 1, 2)
    asked = [(name, "def setUp(self):", " self.maxDiff = None", now, "{}") for name in names]
    fill(store, "queries", *zip(*asked, strict=True))
    words = pa.array(list(vocabulary))
    with writing(store, "influences", RUN) as pairs, writing(store, "layer_influences", RUN) as layers, \
            writing(store, "token_influences", RUN) as shares:  # fmt: skip
        for name in names:
            write_query(rng, name, min(n_candidates, len(cut)), n_exact, tokens, words, pairs, layers, shares)
    modules = [(f"h.{layer}.{m}", layer) for layer in range(LAYERS) for m in MODULES]
    described = [(RUN, *module, "Conv1D", 2_362_368, True, "matches 'mlp'", 1e-3) for module in modules]
    fill(store, "modules", *zip(*described, strict=True))
    fill(store, "run_queries", *zip(*((RUN, name, 5, 6, -3.2, n_candidates, 0.998) for name in names), strict=True))
    stages = json.dumps({"scores": {"seconds": 1.0, "bytes": 1, "memory_bytes": 1}})
    fill(store, "runs", *([value] for value in (
        RUN, "completed", "ekfac", now, now, json.dumps({"candidates": {"filters": ["bm25"]}}), "gpt2", "a", "b", "ek",
        len(cut), "c", json.dumps({"torch": "2"}), "cpu", "float32", stages,
    )))  # fmt: skip
    return store


def fill(store: Store, relation: str, *columns) -> None:
    """Write one part, its columns in the relation's order."""
    names = SCHEMAS[relation].names
    write_part(store, relation, RUN, columns=dict(zip(names, map(list, columns), strict=True)))


def write_query(rng, name: str, n: int, n_exact: int, tokens: list[list[int]], words: pa.Array, *parts) -> None:
    """Pareto-tailed influences of n sequences, their modules, and tokens of the first `n_exact`."""
    pairs, layers, shares = parts
    sequences = rng.choice(len(tokens), n, replace=False)
    sign = np.where(rng.random(n) < 0.6, 1.0, -1.0)
    by_module = rng.normal(size=(n, LAYERS * len(MODULES))) + 2 * sign[:, None]
    by_module *= (rng.pareto(2.5, n) * 3)[:, None]
    order = np.argsort(-by_module.sum(axis=1))
    sequences, by_module = sequences[order], by_module[order]
    influence = by_module.sum(axis=1)
    columns = (
        [RUN] * n, [name] * n, sequences, ["ekfac"] * n, influence, influence / len(tokens),
        influence / rng.lognormal(3, 0.5, n), np.arange(n) < n_exact, np.arange(1, n + 1), rng.permutation(n) + 1,
    )  # fmt: skip
    pairs.append(dict(zip(SCHEMAS["influences"].names, columns, strict=True)))
    width = by_module.shape[1]
    modules = [f"h.{layer}.{m}" for layer in range(LAYERS) for m in MODULES]
    columns = (
        [RUN] * (n * width), [name] * (n * width), np.repeat(sequences, width),
        np.tile(np.repeat(np.arange(LAYERS), len(MODULES)), n), modules * n, by_module.ravel(),
    )  # fmt: skip
    layers.append(dict(zip(SCHEMAS["layer_influences"].names, columns, strict=True)))
    for k in range(min(n_exact, n)):
        ids, by_layer = np.array(tokens[sequences[k]]), by_module[k].reshape(LAYERS, -1).sum(axis=1)
        cells = rng.normal(size=(LAYERS, len(ids))) * rng.lognormal(0, 1.5, len(ids))
        cells += ((by_layer - cells.sum(axis=1)) / len(ids))[:, None]
        size = cells.size
        columns = (
            [RUN] * size, [name] * size, np.full(size, sequences[k]), np.repeat(np.arange(LAYERS), len(ids)),
            np.tile(np.arange(len(ids)), LAYERS), np.tile(ids, LAYERS), words.take(pa.array(np.tile(ids, LAYERS))),
            cells.ravel(),
        )  # fmt: skip
        shares.append(dict(zip(SCHEMAS["token_influences"].names, columns, strict=True)))


def processor_seconds() -> float:
    """What Chromium's processes have computed, all together: unlike time by the clock, not other programs' doing."""
    times = (process.cpu_times() for process in psutil.Process().children(recursive=True))
    return sum(each.user + each.system for each in times)


def timed_in_browser(page: Path) -> dict[str, float]:
    """Milliseconds in headless Chromium: to open the page, a query, a sequence, and the longest frame of scrolling."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as chrome:
        browser = chrome.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 1300, "height": 900})
        view.goto("about:blank")
        started, worked = time.perf_counter(), processor_seconds()
        view.goto(page.as_uri(), wait_until="load")
        view.get_by_role("link", name="q000").wait_for()
        opened, worked = time.perf_counter() - started, processor_seconds() - worked
        query = view.evaluate(CLICKED, ["#queries tbody a", ".rank button"])
        sequence = view.evaluate(CLICKED, [".rank button", ".panel"])
        frames = view.evaluate(SCROLLED)
        drawn = view.locator("tr.row").count()
        browser.close()
    return {
        "open": 1000 * opened, "processor time of opening": 1000 * worked, "query": query, "sequence": sequence,
        "longest frame": frames, "rows after scrolling": drawn,
    }  # fmt: skip


def main() -> None:
    """Write the store where it is missing, render, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--top", type=int, default=500)
    parser.add_argument("--candidates", type=int, default=3000)
    parser.add_argument("--exact", type=int, default=100, help="sequences of each query that have tokens")
    parser.add_argument("--sequences", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, required=True)
    asked = parser.parse_args()
    store = write_store(asked.work / "store", asked.queries, asked.candidates, asked.exact, asked.sequences)
    started = time.perf_counter()
    page = render_report(store, "latest", asked.work / "report.html", asked.top)
    print(f"{asked.queries} × {asked.top}: {page.stat().st_size / 1e6:.1f} MB in {time.perf_counter() - started:.0f} s")
    for _ in range(asked.rounds):
        print({name: round(value) for name, value in timed_in_browser(page).items()})


if __name__ == "__main__":
    main()
