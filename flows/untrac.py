"""Datasets study: which datasets of a corpus do queries owe their answers to, and does unlearning or influence know?

A model is taught the whole mixture. The truth is retraining without each dataset; beside it stand UnTrac, which
unlearns the dataset, UnTrac-Inverse, which unlearns the queries, and influences summed over the dataset's sequences.
"""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from pydantic import Field

from flows.cluster import open_workers
from flows.outcome import EXPLAINED
from flows.slots import gpu_slot
from flows.teaching import TeachingParameters, begin, teach_whole, whole_trace
from flows.trace import trace
from tasks.methods import Method
from tasks.mixtures import (
    MixtureParameters,
    UnlearningParameters,
    describe_unlearning,
    find_mixture,
    leave_datasets_out,
)
from tasks.retraining import retrain
from tasks.untrac import unlearn
from tasks.untrac_scores import Findings, SeedRun, score_datasets

METHODS: tuple[Method, ...] = ("ekfac", "identity", "bm25plus", "random")


class UntracParameters(TeachingParameters):
    """A study: which model is taught which mixture, what it is asked, and how its datasets are unlearned."""

    mixture: MixtureParameters = Field(default_factory=MixtureParameters)
    seeds: int = Field(1, ge=1, le=100, description="trainings of each kind, each in an order of its own")
    unlearning: UnlearningParameters = Field(default_factory=UnlearningParameters)
    methods: tuple[Method, ...] = Field(
        METHODS, min_length=1, description="summed over datasets; BM25+ and random always stand beside them"
    )


@flow(name="untrac", flow_run_name="datasets of {parameters.store}", validate_parameters=True, **EXPLAINED)
def untrac(parameters: UntracParameters, command: str = "") -> Findings:
    """The mixture, models taught all and all but one dataset of it, unlearning, traces, scores; what is there is kept.

    Args:
        command: what the page says the study was asked for with
    """
    base = parameters.training.seed
    start, store = begin(parameters)
    prompts = [query.as_prompt() for query in parameters.queries]
    mixture = find_mixture(store, parameters.mixture, prompts)
    seeds = range(base, base + parameters.seeds)
    study, planned = leave_datasets_out(store, start, parameters.training, prompts, mixture, seeds)
    models = {seed: _taught(parameters, study.study_id, start, seed) for seed in seeds}
    with gpu_slot(), open_workers(parameters.cluster, len(planned)) as workers:
        retrain(study, planned, workers)
    runs = []
    for seed, model in models.items():
        unlearnings = describe_unlearning(store, model, mixture, prompts, parameters.unlearning)
        with gpu_slot(), open_workers(parameters.cluster, len(mixture.datasets)) as workers:
            for unlearning in unlearnings:
                unlearn(unlearning, workers)
        run_id = trace(whole_trace(parameters, model, parameters.methods, parameters.damping))
        runs.append(SeedRun(seed, *unlearnings, run_id))
    return score_datasets(study, mixture, runs, command)


def _taught(parameters: UntracParameters, study_id: str, start: Path, seed: int) -> Path:
    return teach_whole(parameters, start, parameters.training.model_copy(update={"seed": seed}), (study_id, seed))
