"""Where does the source stand? Five stories of a real corpus are continued in their own words and traced back.

    python tests/benchmarks/source_ranks.py CORPUS.parquet MODEL [MODEL …] --work DIR

For each query the prompt is two sentences of a story and the completion the first words of the next.
Prints the rank of the story itself among all sequences of the corpus, under every method.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pyarrow.parquet as pq

from flows.parameters import ModelParameters, QueryParameters, TraceParameters
from flows.trace import trace
from storage.catalog import run_user_sql
from storage.store import open_store
from tasks.candidates import CandidateParameters
from tasks.corpus import CorpusParameters
from tasks.factors import FitParameters
from tasks.methods import MethodParameters

WORDS = 6  # of the continuation
CONTEXT = 220  # characters of prompt at most, so that a model with 256 characters of context takes it


def queries(corpus: Path, n: int = 5) -> dict[str, QueryParameters]:
    """So many queries by the id of the story that each continues."""
    table = pq.read_table(corpus, columns=["doc_id", "text"]).to_pylist()
    chosen = [row for row in table if row["text"].isascii()][25 :: len(table) // (n + 1)][:n]
    found = {}
    for row in chosen:
        sentences = re.findall(r"[^.!?]+[.!?]+[\"”]?\s*", row["text"])
        prompt = "".join(sentences[3:5]).strip()[-CONTEXT:]
        completion = " " + " ".join(sentences[5].split()[:WORDS])
        found[row["doc_id"]] = QueryParameters(
            prompt=prompt, completion=completion, query_id=f"continues-{row['doc_id']}"
        )
    return found


RANKS = """
with ranked as (
    select i.query_id, i.method, i.sequence_id, i.influence_rank as place
    from influences i where i.run_id = '{run}'
    union all
    select i.query_id, i.method || ' relative', i.sequence_id,
        row_number() over (partition by i.query_id, i.method order by i.relative_influence desc, i.sequence_id)
    from influences i where i.run_id = '{run}' and i.relative_influence is not null
)
select r.query_id, r.method, min(r.place)
from ranked r join sequences s using (sequence_id)
where r.query_id = 'continues-' || s.document_id
group by all order by all
"""


def main() -> None:
    """Trace the queries on every model and print the ranks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    asked = queries(arguments.corpus)
    for model in arguments.models:
        store = arguments.work / model.name
        run = trace(
            TraceParameters(
                store=str(store),
                model=ModelParameters(name=str(model)),
                queries=tuple(asked.values()),
                corpus=CorpusParameters(inputs=(str(arguments.corpus),)),
                candidates=CandidateParameters(filters=("bm25",), top_k=1_000_000),
                fit=FitParameters(sequences=2000),
                method=MethodParameters(beside=("identity", "bm25"), rescore=20),
                cluster="none",
            )
        )
        rows = run_user_sql(open_store(store), RANKS.format(run=run))[1]
        total = run_user_sql(open_store(store), "select count(*) from sequences")[1][0][0]
        methods = list(dict.fromkeys(method for _, method, _ in sorted(rows, key=lambda r: r[1])))
        ranks = {(query_id, method): rank for query_id, method, rank in rows}
        print(f"\n{model.name}: rank of the source story among {total:,} sequences")
        print(f"{'query':<28}" + "".join(f"{m:>20}" for m in methods))
        for query in asked.values():
            cells = "".join(f"{ranks.get((query.query_id, m), '·')!s:>20}" for m in methods)
            print(f"{query.query_id:<28}{cells}   {query.prompt[-50:]!r} → {query.completion!r}")


if __name__ == "__main__":
    main()
