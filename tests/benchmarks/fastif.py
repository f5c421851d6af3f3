"""FastIF: what nearest neighbours keep of the top 100 of all sequences, and how much sooner LiSSA is done with them.

    python tests/benchmarks/fastif.py CORPUS.parquet MODEL --work DIR

Passages of documents are continued in their own words. LiSSA scores every sequence of the corpus, then, for one query
side by side, only the k nearest in the model's hidden states (Guo et al. 2021, arXiv 2012.15781). Seconds are the
process's own, less those of a trace that finds everything done, so that what else runs does not count; embeddings and
factors are made once, before. DIR must be new: what is there is not done again, and takes no time.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pyarrow.parquet as pq

from flows.parameters import ModelParameters, QueryParameters, TraceParameters
from flows.trace import trace
from storage.catalog import run_user_sql
from storage.store import open_store
from tasks.candidates import CandidateParameters
from tasks.compute import ComputeParameters
from tasks.corpus import CorpusParameters
from tasks.evaluation.ranking import bootstrap_mean
from tasks.factors import FitParameters
from tasks.methods import MethodParameters, SolverParameters

TOP = 100
EVERYTHING = CandidateParameters(filters=("none",))


def main() -> None:
    """Trace, compare and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=500, help="of the corpus, the first ones")
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--queries", type=int, default=8)
    parser.add_argument("--candidates", type=int, nargs="+", default=[100, 200, 400, 800])
    parser.add_argument("--timed", type=int, nargs="+", default=[100, 400], help="of them, those that are timed")
    parser.add_argument("--layer", type=int, default=-1, help="of the hidden states that are compared")
    parser.add_argument("--depth", type=int, default=20, help="terms of LiSSA's series")
    parser.add_argument("--batch", type=int, default=32, help="sequences of a term")
    parser.add_argument("--alpha", type=float, help="LiSSA's step; default: from the largest eigenvalue")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True)
    corpus, store = asked.work / "corpus.parquet", asked.work / "store"
    pq.write_table(pq.read_table(asked.corpus).slice(0, asked.documents), corpus)
    texts = pq.read_table(corpus, columns=["text"])["text"].to_pylist()
    queries = [_query(text, k) for k, text in enumerate(texts[:: max(1, len(texts) // asked.queries)][: asked.queries])]
    solver = SolverParameters(depth=asked.depth, batch=asked.batch, sequences=200, alpha=asked.alpha)

    def measured(candidates: CandidateParameters, of: list[QueryParameters], method: str) -> tuple[str, float]:
        """The run, and the seconds of this process that it took."""
        parameters = TraceParameters(
            store=str(store),
            model=ModelParameters(name=str(asked.model)),
            queries=tuple(of),
            corpus=CorpusParameters(inputs=(str(corpus),), sequence_length=asked.sequence_length),
            candidates=candidates,
            fit=FitParameters(sequences=300),
            method=MethodParameters.model_validate({"method": method, "rescore": 0, "solver": solver}),
            compute=ComputeParameters(precision="float32"),
            cluster="none",
        )
        began = time.process_time()
        run = trace(parameters)
        took = time.process_time() - began
        began = time.process_time()
        assert trace(parameters) == run
        return run, took - (time.process_time() - began)

    most = max(asked.candidates)
    lists = {name: measured(_filter(name, most, asked.layer), queries, "random")[0] for name in ("embedding", "bm25")}
    measured(_filter("embedding", 10, asked.layer), queries[-1:], "ekfac")  # factors are made here
    whole, _ = measured(EVERYTHING, queries, "lissa")
    n = run_user_sql(open_store(store), "select count(*) from sequences")[1][0][0]
    print(f"{n:,} sequences, {len(queries)} queries: share of LiSSA's first {TOP} that the candidates hold", flush=True)
    print(f"{'k':>6} {'nearest neighbours':>22} {'BM25':>22} {'by chance':>10}")
    for k in asked.candidates:
        shown = [bootstrap_mean(_recall(store, whole, run, k)) for run in lists.values()]
        cells = [f"{e.value:.3f} [{e.ci_low:.2f}, {e.ci_high:.2f}]" for e in shown]
        print(f"{k:>6} {cells[0]:>22} {cells[1]:>22} {min(1.0, k / n):>10.3f}", flush=True)
    _, everything = measured(EVERYTHING, queries[:1], "lissa")
    print(f"seconds for one query: {everything:.1f} among all", flush=True)
    for k in asked.timed:
        _, seconds = measured(_filter("embedding", k, asked.layer), queries[:1], "lissa")
        print(f"  {seconds:.1f} among its {k} neighbours, {everything / seconds:.2f} times sooner", flush=True)


def _query(text: str, number: int) -> QueryParameters:
    passage = text[:200].rsplit(maxsplit=1)[0]
    cut = next(place for place in range(100, len(passage)) if passage[place].isspace())
    return QueryParameters(prompt=passage[:cut], completion=passage[cut:], query_id=f"passage-{number}")


def _filter(name: str, k: int, layer: int) -> CandidateParameters:
    return CandidateParameters.model_validate({"filters": [name], "top_k": k, "embedding_layer": layer})


def _recall(store: Path, whole: str, run: str, k: int) -> list[float]:
    """Of each query's first TOP sequences among all, the share that are among a run's first k candidates of it."""
    found = run_user_sql(
        open_store(store),
        f"select w.query_id, count(c.sequence_id) / count(*) from influences w left join candidates c on "
        f"c.run_id = '{run}' and c.query_id = w.query_id and c.sequence_id = w.sequence_id and c.filter_rank <= {k} "
        f"where w.run_id = '{whole}' and w.influence_rank <= {TOP} group by 1 order by 1",
    )[1]
    return [share for _, share in found]


if __name__ == "__main__":
    main()
