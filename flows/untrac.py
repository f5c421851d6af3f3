"""Datasets study: which datasets of a corpus do queries owe their answers to, and does unlearning or influence know?

A model is taught the whole mixture. The truth is retraining without each dataset; beside it stand UnTrac, which
unlearns the dataset, UnTrac-Inverse, which unlearns the queries, and influences summed over the dataset's sequences.
"""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from flows.cluster import open_workers
from flows.outcome import EXPLAINED
from flows.parameters import ModelParameters, QueryParameters, TraceParameters
from flows.slots import gpu_slot
from flows.teaching import begin, teach_whole, trainings_of
from flows.trace import trace
from tasks.candidates import CandidateParameters
from tasks.compute import ComputeParameters
from tasks.corpus import CorpusParameters
from tasks.factors import FitParameters
from tasks.learning.loop import TrainingParameters
from tasks.learning.model import ModelShape
from tasks.methods import Method, MethodParameters, SolverParameters, TrajectoryParameters
from tasks.metrics import Damping
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
LEXICAL = ("bm25plus", "bm25")


class UntracParameters(BaseModel):
    """A study: which model is taught which mixture, what it is asked, and how its datasets are unlearned."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str = Field(min_length=1, description="directory of the store; made where nothing stands")
    queries: tuple[QueryParameters, ...] = Field(min_length=1, description="completions whose loss is measured")
    model: ModelParameters | None = Field(None, description="to be taught the corpus; none: a new one of `shape`")
    shape: ModelShape = Field(default_factory=ModelShape)
    trainings: str | None = Field(None, description="directory that the taught models go into; none: beside the store")
    corpus: CorpusParameters = Field(default_factory=CorpusParameters)
    mixture: MixtureParameters = Field(default_factory=MixtureParameters)
    training: TrainingParameters = Field(default_factory=lambda: TrainingParameters(epochs=3))
    seeds: int = Field(1, ge=1, le=100, description="trainings of each kind, each in an order of its own")
    unlearning: UnlearningParameters = Field(default_factory=UnlearningParameters)
    methods: tuple[Method, ...] = Field(
        METHODS, min_length=1, description="summed over datasets; BM25+ and random always stand beside them"
    )
    damping: Damping = Field(Damping(), description="added to the eigenvalues before they are inverted")
    fit: FitParameters = Field(default_factory=FitParameters)
    solver: SolverParameters = Field(default_factory=SolverParameters)
    compute: ComputeParameters = Field(default_factory=ComputeParameters)
    cluster: str = Field("none", description="auto, local, none, or tcp://host:port of a Dask scheduler")

    @field_validator("methods")
    @classmethod
    def _with_baselines(cls, methods: tuple[Method, ...]) -> tuple[Method, ...]:
        words: tuple[Method, ...] = () if set(LEXICAL) & set(methods) else ("bm25plus",)
        chance: tuple[Method, ...] = () if "random" in methods else ("random",)
        return (*methods, *words, *chance)

    @model_validator(mode="after")
    def _place_for_trainings(self) -> UntracParameters:
        if "://" in self.store and self.trainings is None:
            raise ValueError("trainings: expected a local directory where the store is remote. Name one.")
        return self


@flow(name="untrac", flow_run_name="datasets of {parameters.store}", validate_parameters=True, **EXPLAINED)
def untrac(parameters: UntracParameters, command: str = "") -> Findings:
    """The mixture, models taught all and all but one dataset of it, unlearning, traces, scores; what is there is kept.

    Args:
        command: what the page says the study was asked for with
    """
    root, base = trainings_of(parameters.store, parameters.trainings), parameters.training.seed
    start, store = begin(
        parameters.store, root, parameters.model, parameters.shape, parameters.corpus, base, parameters.cluster
    )
    prompts = [query.as_prompt() for query in parameters.queries]
    mixture = find_mixture(store, parameters.mixture, prompts)
    seeds = range(base, base + parameters.seeds)
    study, planned = leave_datasets_out(store, start, parameters.training, prompts, mixture, seeds)
    models = {seed: _taught(parameters, study.study_id, start, seed, root) for seed in seeds}
    with gpu_slot(), open_workers(parameters.cluster, len(planned)) as workers:
        retrain(study, planned, workers)
    runs = []
    for seed, model in models.items():
        unlearnings = describe_unlearning(store, model, mixture, prompts, parameters.unlearning)
        with gpu_slot(), open_workers(parameters.cluster, len(mixture.datasets)) as workers:
            for unlearning in unlearnings:
                unlearn(unlearning, workers)
        runs.append(SeedRun(seed, *unlearnings, trace(_trace(parameters, model))))
    return score_datasets(study, mixture, runs, command)


def _taught(parameters: UntracParameters, study_id: str, start: Path, seed: int, root: Path) -> Path:
    training = parameters.training.model_copy(update={"seed": seed})
    named = (study_id, seed)
    return teach_whole(parameters.store, root, start, parameters.corpus, training, named, parameters.cluster)


def _trace(parameters: UntracParameters, model: Path) -> TraceParameters:
    """Every training sequence under every method, none filtered out."""
    return TraceParameters(
        store=parameters.store,
        model=ModelParameters(name=str(model)),
        queries=parameters.queries,
        candidates=CandidateParameters(filters=("none",)),
        fit=parameters.fit,
        method=MethodParameters(
            method=parameters.methods[0],
            beside=parameters.methods[1:],
            damping=parameters.damping,
            rescore=0,  # sums over sequences are compared, none is shown token by token
            trajectory=TrajectoryParameters(checkpoints=str(model)),
            solver=parameters.solver,
        ),
        compute=parameters.compute,
        cluster=parameters.cluster,
    )
