"""What the methods of fact tracing take together: some queries of a fact set, each with as many candidates.

    python tests/benchmarks/fact_tracing_speed.py --facts docred --model stories260K [--queries 500] [--candidates 120]

Candidates are a query's true documents, the first by BM25 for one half and random ones for the other. Without
--checkpoints the model is its own only checkpoint. Printed: seconds of each stage, of the whole trace, and the rows of
each method.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--facts", required=True, help="folder with abstracts.parquet and queries.parquet")
parser.add_argument("--model", required=True, help="directory of the model")
parser.add_argument("--checkpoints", help="directory of its training's checkpoints")
parser.add_argument("--queries", type=int, default=500)
parser.add_argument("--candidates", type=int, default=120, help="sequences per query")
parser.add_argument("--fit-sequences", type=int, default=1000)


def main() -> None:
    """Trace once into a new store."""
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {
            "PREFECT_HOME": str(Path(folder, "prefect")), "DO_NOT_TRACK": "1",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_LOGGING_LEVEL": "ERROR",
        }  # fmt: skip
        measure(arguments, Path(folder, "store"))


def measure(arguments: argparse.Namespace, root: Path) -> None:
    """Print what one trace by all methods takes."""
    from flows.fact_tracing import METHODS
    from flows.parameters import ModelParameters, QueryParameters, TraceParameters
    from flows.trace import trace
    from storage.database import session
    from storage.fact_sets import read_fact_set
    from storage.store import create_store
    from tasks.asked import as_prompt, askable
    from tasks.candidates import CandidateParameters
    from tasks.corpus import CorpusParameters, ingest
    from tasks.factors import FitParameters
    from tasks.fanout import Workers
    from tasks.index import build_index
    from tasks.methods import MethodParameters, TrajectoryParameters
    from tasks.pools import PoolParameters, build_pool

    model, facts = Path(arguments.model), read_fact_set(arguments.facts)
    store = create_store(str(root))
    ingest(store, model, CorpusParameters(inputs=(str(facts.documents_path),)), Workers())
    asked = askable(model, facts.queries)[0][: arguments.queries]
    half = arguments.candidates // 2
    build_index(store, Workers(), "words")
    pool = build_pool(
        store, facts, asked, PoolParameters(lexical=half, same_target=0, uniform=arguments.candidates - half), Workers()
    ).pool_id
    prompts = [as_prompt(query) for query in asked]
    began = time.perf_counter()
    trace(
        TraceParameters(
            store=str(root),
            model=ModelParameters(name=str(model)),
            queries=tuple(
                QueryParameters(prompt=p.prompt, completion=p.completion, query_id=p.query_id) for p in prompts
            ),
            candidates=CandidateParameters(filters=("pool",), pool=pool),
            fit=FitParameters(sequences=arguments.fit_sequences),
            method=MethodParameters(
                method=METHODS[0], beside=METHODS[1:], rescore=0,
                trajectory=TrajectoryParameters(checkpoints=arguments.checkpoints),
            ),
            cluster="none",
        )
    )  # fmt: skip
    whole = time.perf_counter() - began
    with session(store) as connection:
        (stages,) = connection.sql("select stages from runs").fetchall()[0]
        rows = connection.sql("select method, count(*) from influences group by method order by method").fetchall()
    for stage, cost in json.loads(stages).items():
        print(f"{stage:20} {cost['seconds']:8.1f} s")
    print(f"{'the whole trace':20} {whole:8.1f} s   ({len(asked)} queries)")
    print(", ".join(f"{method} {n:,}" for method, n in rows), "rows")


if __name__ == "__main__":
    main()
