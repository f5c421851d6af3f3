"""A store of one run over hostile text, written by hand, and its page as a parser sees it: for tests of the report."""

from __future__ import annotations

import base64
import gzip
import json
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path

from storage.schemas import SCHEMAS
from storage.store import Store, create_store
from storage.tables import write_part

HOSTILE = (
    "</script><script>alert(1)</script><!-- <img src=x onerror=alert(2)> | `code` ```\n"
    "[x](javascript:alert(3)) www.example.com "
    "\x1b[31mred\x07 \u202eright to left\u2066 \u200bשלום & 'quoted' \"twice\" $x$ 日本"
)
TOKENS = ["</script>", "<b>", "|", "\n", "\u202e", "`", "\x1b[31m", " plain", " שלום", "e", "\u0301"]
LAYERS, SEQUENCES = range(4), range(12)
START, END = 10, 90  # characters of each document that its sequence is
SPARSE = 2  # the sequence whose influence stands on one token
ALIKE = (3, 4, 5)  # 3 and 4 are the same; 5 shares 6 of its 7 five-token runs with them, a Jaccard index of 6/8
QUERIES = ["q0'<u>", "q1'<u>"]
PAIRS = [(q, name, s) for q, name in enumerate(QUERIES) for s in SEQUENCES]
NOW = datetime(2026, 1, 2, 3, 4)


def influence(query: int, sequence: int) -> float:
    """Falls with the sequence's id, from positive to negative."""
    return (10.5 - 2 * sequence) * (query + 1) / 3


def shares(total: float, sequence: int) -> list[list[float]]:
    """[layer][position] numbers of both signs that sum to `total`; of one sequence all stand on one token."""
    if sequence == SPARSE:
        return [[total * (layer == 1 and t == 2) for t in range(len(TOKENS))] for layer in LAYERS]
    parts = [[(-1) ** t * (1 + t + 10 * layer) / 7 for t in range(len(TOKENS))] for layer in LAYERS]
    parts[1][2] += total - sum(map(sum, parts))
    return parts


def write_rows(store: Store, relation: str, *rows: tuple) -> None:
    """Write rows whose values stand in the order of the relation's columns."""
    columns = zip(*rows, strict=True) if rows else [[] for _ in SCHEMAS[relation]]
    write_part(store, relation, "r1", columns=dict(zip(SCHEMAS[relation].names, map(list, columns), strict=True)))


def token_ids(sequence: int) -> list[int]:
    """Tokens of its own for each sequence, but for those that are alike."""
    if sequence not in ALIKE:
        return [100 * sequence + t for t in range(len(TOKENS))]
    return [300 + t for t in range(len(TOKENS) - 1)] + [399 if sequence == ALIKE[-1] else 310]


def make_store(path: Path, exact: int = 3, beside: bool = False, lowered: bool = False) -> Store:
    """One complete run over hostile text, in which each query's first `exact` sequences have tokens; or none raises."""
    store = create_store(path)
    write_rows(store, "documents", *((f"d{s}|<i>", f"{s} {HOSTILE}", HOSTILE, "{}") for s in SEQUENCES))
    write_rows(store, "sequences", *((s, f"d{s}|<i>", "p", START, END, token_ids(s), len(TOKENS)) for s in SEQUENCES))
    write_rows(store, "queries", *((name, HOSTILE, HOSTILE, NOW, "{}") for name in QUERIES))
    write_scores(store, exact, beside, down=20 if lowered else 0)
    write_description(store)
    return store


def write_scores(store: Store, exact: int, beside: bool, down: float) -> None:
    """Influence falls with the sequence's id, BM25 rises with it, relative influence peaks at 6."""
    total = {(q, s): influence(q, s) - down for q, _, s in PAIRS}
    own = [
        (
            "r1",
            name,
            s,
            "ekfac",
            total[q, s],
            total[q, s] / 7,
            1 / (1 + abs(s - 6)),
            s < exact,
            s + 1,
            12 - s,
        )
        for q, name, s in PAIRS
    ]
    opposite = [("r1", name, s, "identity", float(s), None, None, False, 12 - s, 12 - s) for _, name, s in PAIRS]
    write_rows(store, "influences", *own, *(opposite if beside else []))
    write_rows(store, "candidates", *(("r1", name, s, "bm25", float(s), 12 - s) for _, name, s in PAIRS))
    by_layer = [
        ("r1", name, s, layer, f"h.{layer}", sum(part))
        for q, name, s in PAIRS
        for layer, part in enumerate(shares(total[q, s], s))
    ]
    write_rows(store, "layer_influences", *by_layer)
    by_token = [
        ("r1", name, s, layer, position, position, TOKENS[position], value)
        for q, name, s in PAIRS
        if s < exact
        for layer, part in enumerate(shares(total[q, s], s))
        for position, value in enumerate(part)
    ]
    write_rows(store, "token_influences", *by_token)


def write_description(store: Store) -> None:
    tracked = ("r1", "h.0", 0, "Linear", 1200, True, "matches 'mlp'", 0.123456)
    write_rows(store, "modules", tracked, ("r1", "<wte>", -1, "Embedding", 800, False, "<not linear>", None))
    write_rows(store, "query_compressions", ("r1", QUERIES[0], "h.0", 32, 0.0321))
    write_rows(store, "run_queries", *(("r1", name, 3, 1, -1.2345678, 12, 0.98765432) for name in QUERIES))
    run = {"run_id": "r1", "status": "completed", "method": "ekfac", "started_at": NOW, "finished_at": NOW}
    made = {
        "parameters": json.dumps({"queries": [["q", "p", "c"]], "candidates": {"filter": "bm25"}, "x": HOSTILE}),
        "model": "/models/<b>tiny</b>",
        "model_fingerprint": "ab12",
        "corpus_fingerprint": "cd34",
        "factors_id": "ek-1",
        "n_sequences": 12,
        "code_revision": "ef56",
        "library_versions": '{"torch": "2.13.0"}',
        "device": "cpu",
        "precision": "float32",
        "stages": '{"scores": {"seconds": 1.5, "bytes": 2500000}}',
    }
    write_rows(store, "runs", tuple((run | made).values()))


def make_plain_store(path: Path, n_queries: int, n_sequences: int) -> Store:
    """One complete run of a method without layers: the first query has every sequence, the others have none."""
    store, names = create_store(path), [f"q{k}" for k in range(n_queries)]
    write_rows(store, "documents", *((f"d{s}", f"text {s}", "s", "{}") for s in range(n_sequences)))
    write_rows(store, "sequences", *((s, f"d{s}", "p", 0, 9, [s] * 3, 3) for s in range(n_sequences)))
    write_rows(store, "queries", *((name, f"prompt {k}", " b", NOW, "{}") for k, name in enumerate(names)))
    ranked = ((s, float(-s), -s / n_sequences, None, False, s + 1, s + 1) for s in range(n_sequences))
    write_rows(store, "influences", *(("r1", "q0", s, "embedding", *numbers) for s, *numbers in ranked))
    write_rows(store, "run_queries", *(("r1", name, 1, 1, -1.0, 1, None) for name in names))
    about = ("{}", "m", "", "", "", n_sequences, "", "{}", "cpu", "float32", "{}")
    write_rows(store, "runs", ("r1", "completed", "embedding", NOW, NOW, *about))
    return store


class Page(HTMLParser):
    """A page as a parser sees it: its elements, the data in its scripts and the text outside them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict]] = []
        self.scripts: list[tuple[dict, str]] = []
        self.text = ""
        self.feed(self.html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.scripts.append((dict(attrs) | {"tag": tag}, ""))

    def handle_data(self, data):
        if self.tags[-1:] and self.tags[-1][0] in ("script", "style") and self.cdata_elem:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        else:
            self.text += data

    @property
    def about(self) -> dict:
        return next(json.loads(text) for about, text in self.scripts if about.get("id") == "about")

    @property
    def blocks(self) -> list[dict]:
        packed = [text for about, text in self.scripts if about.get("class") == "query-data"]
        return [json.loads(gzip.decompress(base64.b64decode(text))) for text in packed]
