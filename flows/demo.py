"""Demo: the whole walk on text that every Python carries, with a model trained on it and facts planted in it."""

from __future__ import annotations

import time
from pathlib import Path

from prefect import flow
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.cluster import open_workers
from flows.outcome import EXPLAINED
from flows.parameters import ModelParameters, QueryParameters, TraceParameters
from flows.terminal import print_answers, print_next
from flows.trace import trace
from storage.errors import ModelError
from storage.store import create_store, open_store
from tasks.candidates import CandidateParameters
from tasks.corpus import CorpusParameters, ingest
from tasks.demo.corpus import demo_queries
from tasks.demo.stages import RECALL, train_model, write_corpus
from tasks.evaluate import K, MethodScore, evaluate_retrieval
from tasks.factors import FitParameters
from tasks.learning.loop import TrainingParameters
from tasks.learning.model import ModelShape
from tasks.methods import MethodParameters
from tasks.report import render_report
from tasks.training import TrainingReport, make_untrained

SHAPE, TRAINING = ModelShape(), TrainingParameters()
SHOWN = 3  # sequences printed per query


@flow(name="demo model", flow_run_name="demo model in {directory}", **EXPLAINED)
def make_model(directory: Path, cluster: str) -> TrainingReport:
    """The demo's corpus as files and as sequences, and a small GPT-2 trained on exactly those sequences."""
    model = directory / "model"
    files = tuple(map(str, write_corpus(directory)))
    start = make_untrained(model, files, SHAPE, TRAINING.seed)
    store = create_store(directory / "store")
    with open_workers(cluster, len(files)) as workers:
        ingest(store, start, CorpusParameters(inputs=files), workers)
    return train_model(store, start, TRAINING, model)


@flow(name="demo evaluation", flow_run_name="demo evaluation of {run_id}", **EXPLAINED)
def evaluate(store: str, run_id: str) -> list[MethodScore]:
    """How often the top sequences of a run are true sources."""
    return evaluate_retrieval(open_store(store), run_id)


def demo_parameters(directory: Path, cluster: str) -> TraceParameters:
    """What the demo traces: every planted fact, every repeated passage, and two questions about Python."""
    return TraceParameters(
        store=str(directory / "store"),
        model=ModelParameters(name=str(directory / "model")),
        queries=tuple(
            QueryParameters(
                prompt=q.prompt, completion=q.completion, query_id=q.query_id, metadata={"group": q.group, **q.truth}
            )
            for q in demo_queries()
        ),
        candidates=CandidateParameters(top_k=10_000),
        fit=FitParameters(sequences=2000),
        method=MethodParameters(beside=("identity", "bm25"), rescore=20),
        cluster=cluster,
    )


def run_demo(directory: Path, cluster: str, console: Console) -> None:
    """Make the model, trace the queries, print what was found and how good it is, write the report."""
    start = time.perf_counter()
    trained = make_model(directory, cluster)
    last = trained.legs[-1]
    if not trained.reached:
        raise ModelError(
            f"demo model in {directory / 'model'}",
            expected=f"a recall of {RECALL:.0%} of the planted facts",
            found=f"{last.probe:.0%} after {last.epoch:.0f} epochs",
            remedy=f"Remove {directory} and run headwater demo again; please report it if it comes back.",
        )
    parameters = demo_parameters(directory, cluster)
    run_id = trace(parameters)
    scores = evaluate(parameters.store, run_id)
    report = render_report(open_store(parameters.store), run_id, directory / "report.html")
    print_answers(parameters.store, run_id, console, top=SHOWN, by="relative")
    print_scores(scores, console)
    console.print(
        f"model: GPT-2 of {SHAPE.layers} layers, trained {last.epoch:.0f} epochs in {trained.seconds:.0f} s "
        f"on {trained.n_sequences:,} sequences; it recalls {last.probe:.0%} of what was planted",
        highlight=False,
    )
    console.print(f"report: {report}   ({time.perf_counter() - start:.0f} s in all)", highlight=False)
    print_next(parameters.store, run_id, console)


def print_scores(scores: list[MethodScore], console: Console) -> None:
    """The closing table: a true source is a training sequence that states the fact or repeats the passage."""
    queries = scores[0].precision.n if scores else 0
    console.print(
        "How often the top sequences are true sources, which state the fact or repeat the passage: "
        f"means over {queries} queries, with 95 % bootstrap intervals.\n"
        f"precision@{K}: share of the first {K} that are; "
        "MRR: mean of 1 / place of the first that is.",
        highlight=False,
        markup=False,
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("method", f"precision@{K}", "", "MRR", ""):
        table.add_column(name, justify="left" if name == "method" else "right")
    for score in sorted(scores, key=lambda s: s.precision.value):
        cells = [
            part
            for e in (score.precision, score.mrr)
            for part in (f"{e.value:.2f}", f"[{e.ci_low:.2f}, {e.ci_high:.2f}]")
        ]
        table.add_row(LABELS.get(score.method, score.method), *map(Text, cells))
    console.print(table)


LABELS = {
    "ekfac": "EK-FAC",
    "ekfac relative": "EK-FAC, relative to self-influence",
    "identity": "gradient dot",
    "identity relative": "gradient dot, relative to gradient norm",
    "bm25": "BM25",
}
