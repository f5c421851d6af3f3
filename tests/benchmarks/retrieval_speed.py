"""How long do building and searching the lexical index take, and how much memory, beside bm25s and rank_bm25?

    python tests/benchmarks/retrieval_speed.py                               10⁴, 10⁵ and 10⁶ synthetic sequences
    python tests/benchmarks/retrieval_speed.py --corpus FILE --model MODEL   a corpus, cut into 128 tokens by a model
    python tests/benchmarks/retrieval_speed.py --plot cost.svg               and the table of sizes as a picture

Both sides index the same token lists and answer the same queries, 100 of 30 terms in one batch, the best 10,000,
with Lucene's BM25. Each side runs in processes of its own, one after the other, in as
many rounds as asked for; memory is the largest sum of proportional set sizes over a side's processes.

headwater builds over a local Dask cluster of two processes, from the store's Parquet. It searches in two threads, with
the postings of all asked terms loaded, and as a trace does it, over the cluster; the first such search loads them.
bm25s builds from token lists that are in memory before the clock starts, and searches in two threads of its numba
back end, compiled.
rank_bm25 answers three queries at 50,000 sequences, which is what it can hold.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[2]))
from zipf_corpus import write_zipf_store

from storage.sequences import corpus_parts
from storage.store import Store, create_store, open_store

QUERIES, QUERY_TERMS, K, THREADS, REPEATS = 100, 30, 10_000, 2, 6
LARGEST_FOR_RANK_BM25 = 50_000
SIDES = ("headwater", "bm25s", "rank_bm25")


def queries_of(store: Store) -> list[tuple[int, ...]]:
    """Queries of 30 terms: those of a random place of the corpus' own distribution of terms."""
    tokens = np.concatenate(token_lists(store, limit=20_000))
    rng = np.random.default_rng(1)
    return [tuple(rng.choice(tokens, QUERY_TERMS).tolist()) for _ in range(QUERIES)]


def token_lists(store: Store, limit: int | None = None) -> list[list[int]]:
    """Token ids of every sequence, in the order of their ids."""
    found: list[list[int]] = []
    for part in corpus_parts(store):
        found.extend(pq.read_table(store.file("sequences", part.name), columns=["token_ids"])["token_ids"].to_pylist())
        if limit and len(found) >= limit:
            return found[:limit]
    return found


# The sides: each prints its figures as JSON, in a process of its own


def headwater(store: Store) -> dict[str, float]:
    """Build and search over a local cluster, and search in threads."""
    # Imported here: a worker starts by importing this file, and should hold no more than a build needs.
    from distributed import Client, LocalCluster

    from tasks.fanout import Workers
    from tasks.index import build_index

    figures = {}
    with LocalCluster(THREADS, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as cluster:
        workers = Workers(lambda: client)
        with Client(cluster) as client:
            client.run(_warm, store)
            _warm(store)
            start = time.perf_counter()
            build_index.fn(store, workers)
            figures["build"] = time.perf_counter() - start
            print("built", flush=True)
            figures |= distributed_searches(store, client, workers)
    return figures | threaded_searches(store)


def distributed_searches(store: Store, client: object, workers: object) -> dict[str, float]:
    """As a trace over a cluster does it; the first search loads the postings."""
    from tasks.lexical import open_index

    figures = {}
    queries, index = queries_of(store), open_index(store, "tokens")
    client.run(import_module, "tasks.lexical")
    for name in ("first search, as a trace", "search, as a trace"):
        start = time.perf_counter()
        index.search("lucene", queries, K, None, workers)
        figures[name] = time.perf_counter() - start
    return figures


def threaded_searches(store: Store) -> dict[str, float]:
    """In threads of this process, over loaded postings; the cluster, whose own threads would ask for turns, is gone."""
    from tasks.fanout import Workers
    from tasks.lexical import open_index, read_postings

    queries, index = queries_of(store), open_index(store, "tokens")
    start = time.perf_counter()
    weighted = index.weigh("lucene", queries)
    for part in index.parts:
        read_postings(store, "postings", part, weighted)
    figures = {"load": time.perf_counter() - start}
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        found = index.search("lucene", queries, K, None, Workers())
        times.append(time.perf_counter() - start)
    figures["search"] = statistics.median(times[1:])
    figures["checksum"] = float(np.mean([hits.scores.sum() for hits in found]))
    return figures


def _warm(store: Store) -> None:
    """Import, compile and open a first connection before the clock starts, as bm25s is imported and compiled before."""
    from storage.database import open_connection
    from tasks.index import invert

    invert(np.zeros(1, np.int32), np.ones(1, np.int64), 1)
    pa.array([0]).to_numpy()  # imports pandas
    with open_connection(store):
        pass


def bm25s(store: Store) -> dict[str, float]:
    """bm25s.BM25 with its numba back end."""
    import bm25s as library

    corpus, queries = token_lists(store), queries_of(store)
    n_terms = 1 + max(max(tokens) for tokens in corpus)  # it wants ids without a gap
    warm = library.BM25(method="lucene", backend="numba")
    warm.index([[0, 1], [1, 2]], show_progress=False)
    index = library.BM25(method="lucene", backend="numba")
    start = time.perf_counter()
    index.index((corpus, {term: term for term in range(n_terms)}), show_progress=False)
    figures = {"build": time.perf_counter() - start}
    print("built", flush=True)
    k = min(K, len(corpus))
    times = []
    for _ in range(REPEATS):  # the first compiles
        start = time.perf_counter()
        found = index.retrieve([list(q) for q in queries], k=k, n_threads=THREADS, show_progress=False)
        times.append(time.perf_counter() - start)
    figures["search"] = statistics.median(times[1:])
    figures["checksum"] = float(np.mean(found.scores.astype(np.float64).sum(1)))
    return figures


def rank_bm25(store: Store) -> dict[str, float]:
    """rank_bm25.BM25Okapi: scores of all sequences, sorted."""
    from rank_bm25 import BM25Okapi

    corpus, queries = token_lists(store), queries_of(store)[:3]
    start = time.perf_counter()
    index = BM25Okapi(corpus)
    figures = {"build": time.perf_counter() - start}
    print("built", flush=True)
    start = time.perf_counter()
    for query in queries:
        np.argsort(-index.get_scores(list(query)), kind="stable")[:K]
    figures["search"] = (time.perf_counter() - start) * QUERIES / len(queries)
    return figures


# Measurement


def measured(side: str, store: Path) -> dict[str, float]:
    """Run one side and watch its memory."""
    command = [sys.executable, __file__, "--side", side, "--store", str(store)]
    peak, built = 0, None
    with (
        tempfile.NamedTemporaryFile() as file,
        open(file.name) as output,
        subprocess.Popen(command, stdout=file) as process,
    ):
        while process.poll() is None:
            peak = max(peak, tree_memory(process.pid))
            if built is None and output.read():
                built = peak
            time.sleep(0.05)
        output.seek(0)
        lines = output.read().splitlines()
    if process.returncode:
        raise RuntimeError(f"{side}: expected figures, found that it ended with {process.returncode}")
    return json.loads(lines[-1]) | {"build GiB": (built or peak) / 2**30, "GiB": peak / 2**30}


def tree_memory(pid: int) -> int:
    """Proportional set sizes of a process and all that it started."""
    total = 0
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def compare(name: str, store: Store, rounds: int) -> list[dict]:
    """All sides on one corpus."""
    n = sum(part.n_sequences for part in corpus_parts(store))
    rows = []
    for side in SIDES:
        if side == "rank_bm25" and n > LARGEST_FOR_RANK_BM25:
            continue
        found = []
        for _ in range(rounds):
            drop_index(store)
            found.append(measured(side, store.root))
            print(f"{name}, {side}: {found[-1]}", file=sys.stderr, flush=True)
        rows.append({"corpus": name, "sequences": n, "side": side, **medians(found)})
    return rows


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Of each figure."""
    return {key: statistics.median(figures[key] for figures in rounds) for key in rounds[0]}


def drop_index(store: Store) -> None:
    """Remove the shards, so that a build has everything to do."""
    for relation in ("terms", "postings"):
        for part in corpus_parts(store):
            store.file(relation, part.name).unlink(missing_ok=True)


def report(rows: list[dict]) -> None:
    """A markdown table, ratios to headwater at each corpus."""
    columns = ("build", "build GiB", "load", "search", "first search, as a trace", "search, as a trace")
    print("| corpus | sequences | side | " + " | ".join(columns) + " | build ÷ ours | search ÷ ours |")
    print("|---" * (5 + len(columns)) + "|")
    for row in rows:
        ours = next(r for r in rows if r["corpus"] == row["corpus"] and r["side"] == "headwater")
        cells = [f"{row[c]:.3g}" if c in row else "" for c in columns]
        ratios = [f"{row[c] / ours[c]:.3g}" for c in ("build", "search")]
        print(f"| {row['corpus']} | {row['sequences']:,} | {row['side']} | {' | '.join(cells + ratios)} |")


def plot(rows: list[dict], path: str) -> None:
    """Seconds against the number of synthetic sequences."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.fonttype"] = "none"  # letters stay letters: a picture of 2,400 lines has few
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), constrained_layout=True)
    for axis, key, title in zip(
        axes,
        ("build", "search", "build GiB"),
        ("build, s", f"{QUERIES} queries of {QUERY_TERMS} terms, s", "memory of the build, GiB"),
        strict=True,
    ):
        for side in SIDES:
            points = [(r["sequences"], r[key]) for r in rows if r["side"] == side and r["corpus"].startswith("zipf")]
            if points:
                axis.loglog(*zip(*points, strict=True), marker="o", label=side)
        axis.set(title=title, xlabel="sequences of about 100 tokens")
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figure.savefig(path)


def parse() -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--sizes", type=int, nargs="*", default=(10_000, LARGEST_FOR_RANK_BM25, 100_000, 1_000_000))
    add("--parts", type=int, default=8, help="corpus parts, each a shard of the index")
    add("--corpus", nargs="*", default=(), help="files to cut into sequences of 128 tokens")
    add("--model", help="whose tokenizer cuts them")
    add("--rounds", type=int, default=1)
    add("--plot", help="where a picture of the table goes")
    add("--side", choices=SIDES, help=argparse.SUPPRESS)
    add("--store", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure, and print markdown; progress goes to the error stream."""
    options = parse()
    if options.side:
        print(json.dumps(globals()[options.side](open_store(options.store))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            store = write_zipf_store(Path(folder) / f"zipf-{size}", size, options.parts)
            rows += compare(f"zipf {size:,}", store, options.rounds)
        for file in options.corpus:
            from tasks.corpus import CorpusParameters, ingest
            from tasks.fanout import Workers

            store = create_store(Path(folder) / Path(file).stem)
            ingest.fn(store, Path(options.model), CorpusParameters(inputs=(file,), sequence_length=128), Workers())
            rows += compare(Path(file).name, store, options.rounds)
    report(rows)
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
