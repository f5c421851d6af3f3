"""Datamodelling study: do influences predict what a model becomes when it is trained on less of its corpus?

One model is taught the corpus and traced; many more are taught random subsets of it, or everything but the sequences
that a method ranks first for a query. What the queries cost them is the truth that the methods are held against.
"""

from __future__ import annotations

from prefect import flow
from pydantic import Field

from flows.cluster import open_workers
from flows.outcome import EXPLAINED
from flows.slots import gpu_slot
from flows.teaching import TeachingParameters, begin, teach_whole, whole_trace
from flows.trace import trace
from storage.sequences import all_sequence_ids, corpus_parts
from tasks.evaluation.ranking import tie_breakers
from tasks.methods import Method
from tasks.metrics import Damping
from tasks.retraining import retrain
from tasks.retraining_scores import (
    Figures,
    RetrainingStudy,
    keep_figures,
    measure_spread,
    plan_removals,
    score_removals,
    score_subsets,
    solver_remainders,
)
from tasks.subsets import SubsetParameters, describe_study, n_left_out, plan_subsets

METHODS: tuple[Method, ...] = (
    "ekfac", "kfac", "cg", "identity", "tracin", "embedding", "bm25plus", "random",
)  # fmt: skip


class LdsParameters(TeachingParameters):
    """A study: which model is taught which corpus, what it is asked, and by what it is retrained."""

    subsets: SubsetParameters = Field(default_factory=SubsetParameters)
    methods: tuple[Method, ...] = Field(METHODS, min_length=1, description="BM25+ and random always stand beside them")
    dampings: tuple[float, ...] = Field((), description="further relative λ under which some methods are scored")
    swept: tuple[Method, ...] = Field(("ekfac",), min_length=1, description="methods that are scored under them")


@flow(name="lds", flow_run_name="retraining of {parameters.store}", validate_parameters=True, **EXPLAINED)
def lds(parameters: LdsParameters, command: str = "") -> RetrainingStudy:
    """The model and its subsets, the trace, scores over the subsets, first sequences left out, other dampings.

    What is there already is kept: a study that was stopped goes on where it was, and one that is asked for more
    subsets trains those alone.

    Args:
        command: what the page says the study was asked for with
    """
    start, store = begin(parameters)
    prompts = [query.as_prompt() for query in parameters.queries]
    study = describe_study(store, start, parameters.training, prompts, parameters.subsets)
    planned = plan_subsets(study, parameters.subsets)
    model = teach_whole(parameters, start, parameters.training, (study.study_id,))
    with gpu_slot(), open_workers(parameters.cluster, len(planned)) as workers:
        retrain(study, planned, workers)
    run_id = trace(whole_trace(parameters, model, parameters.methods, parameters.damping))
    figures = score_subsets(study, run_id, planned)
    asked = _sample([prompt.query_id for prompt in prompts], parameters.subsets.queries)
    removals = plan_removals(study, run_id, asked, parameters.subsets.top)
    with gpu_slot(), open_workers(parameters.cluster, len(removals)) as workers:
        retrain(study, list(removals.values()), workers)
    for method, rises in score_removals(study, run_id, removals).items():
        figures[method] |= rises
    sweep: dict[float, Figures] = {}
    for relative in parameters.dampings:
        damped = trace(whole_trace(parameters, model, parameters.swept, Damping(relative=relative)))
        sweep[relative] = score_subsets(study, damped, planned)
        forms = {f"{name}[damping {relative:g}]": {"lds": of["lds"]} for name, of in sweep[relative].items()}
        keep_figures(store, run_id, forms)
    if sweep and parameters.damping.relative is not None:
        sweep[parameters.damping.relative] = figures
    spread, n_retrainings, seconds = measure_spread(study, run_id, planned)
    n = len(all_sequence_ids(corpus_parts(store)))
    return RetrainingStudy(
        store=str(store.root),
        study_id=study.study_id,
        run_id=run_id,
        model=str(model),
        n_sequences=n,
        n_left_out=n_left_out(n, parameters.subsets),
        n_first=max((len(r.left_out) for r in removals.values()), default=0),
        n_queries=len(prompts),
        n_subsets=parameters.subsets.subsets,
        n_retrainings=n_retrainings,
        seconds=seconds,
        order=parameters.subsets.order,
        spread=spread,
        figures=figures,
        sweep={
            relative: {name: of["lds"] for name, of in found.items() if name in parameters.swept}
            for relative, found in sweep.items()
        },
        remainders=solver_remainders(study, run_id),
        command=command,
    )


def _sample(names: list[str], most: int) -> list[str]:
    """At most so many of the queries, in their order; which ones depends on their ids alone."""
    keys = tie_breakers(names)
    chosen = set(sorted(range(len(names)), key=lambda k: (keys[k], k))[:most])
    return [name for k, name in enumerate(names) if k in chosen]
