"""Datamodelling study: do influences predict what a model becomes when it is trained on less of its corpus?

One model is taught the corpus and traced; many more are taught random subsets of it, or everything but the sequences
that a method ranks first for a query. What the queries cost them is the truth that the methods are held against.
"""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from flows.cluster import open_workers
from flows.outcome import EXPLAINED
from flows.parameters import ModelParameters, QueryParameters, TraceParameters
from flows.slots import gpu_slot
from flows.trace import trace
from flows.training import TrainParameters, train
from storage.checkpoints import find_checkpoint
from storage.digests import digest_of
from storage.sequences import all_sequence_ids, corpus_parts, pin_corpus
from storage.store import Store, create_store
from tasks.candidates import CandidateParameters
from tasks.compute import ComputeParameters
from tasks.corpus import CorpusParameters, count_parts, ingest
from tasks.evaluation.ranking import tie_breakers
from tasks.factors import FitParameters
from tasks.learning.loop import TrainingParameters
from tasks.learning.model import ModelShape
from tasks.methods import Method, MethodParameters, SolverParameters, TrajectoryParameters
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
)
from tasks.subsets import Study, SubsetParameters, describe_study, n_left_out, plan_subsets
from tasks.training import make_untrained

METHODS: tuple[Method, ...] = (
    "ekfac", "kfac", "cg", "identity", "tracin", "embedding", "bm25plus", "random",
)  # fmt: skip
LEXICAL = ("bm25plus", "bm25")


class LdsParameters(BaseModel):
    """A study: which model is taught which corpus, what it is asked, and by what it is retrained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str = Field(min_length=1, description="directory of the store; made where nothing stands")
    queries: tuple[QueryParameters, ...] = Field(min_length=1, description="completions that are traced and measured")
    model: ModelParameters | None = Field(None, description="to be taught the corpus; none: a new one of `shape`")
    shape: ModelShape = Field(default_factory=ModelShape)
    trainings: str | None = Field(None, description="directory that the traced model goes into; none: beside the store")
    corpus: CorpusParameters = Field(default_factory=CorpusParameters)
    training: TrainingParameters = Field(default_factory=lambda: TrainingParameters(epochs=3))
    subsets: SubsetParameters = Field(default_factory=SubsetParameters)
    methods: tuple[Method, ...] = Field(METHODS, min_length=1, description="BM25+ and random always stand beside them")
    dampings: tuple[float, ...] = Field((), description="further relative λ under which EK-FAC is scored")
    swept: tuple[Method, ...] = Field(("ekfac",), min_length=1, description="methods that are scored under them")
    damping: Damping = Field(Damping(), description="added to the eigenvalues before they are inverted")
    fit: FitParameters = Field(default_factory=FitParameters)
    solver: SolverParameters = Field(default_factory=SolverParameters)
    rank: int = Field(
        64, ge=1, le=4096, description="directions kept of each query's solution; cg's have more than a gradient has"
    )
    compute: ComputeParameters = Field(default_factory=ComputeParameters)
    cluster: str = Field("none", description="auto, local, none, or tcp://host:port of a Dask scheduler")

    @field_validator("methods")
    @classmethod
    def _with_baselines(cls, methods: tuple[Method, ...]) -> tuple[Method, ...]:
        words: tuple[Method, ...] = () if set(LEXICAL) & set(methods) else ("bm25plus",)
        chance: tuple[Method, ...] = () if "random" in methods else ("random",)
        return (*methods, *words, *chance)

    @model_validator(mode="after")
    def _place_for_trainings(self) -> LdsParameters:
        if "://" in self.store and self.trainings is None:
            raise ValueError("trainings: expected a local directory where the store is remote. Name one.")
        return self


@flow(name="lds", flow_run_name="retraining of {parameters.store}", validate_parameters=True, **EXPLAINED)
def lds(parameters: LdsParameters, command: str = "") -> RetrainingStudy:
    """The model and its subsets, the trace, scores over the subsets, first sequences left out, other dampings.

    What is there already is kept: a study that was stopped goes on where it was, and one that is asked for more
    subsets trains those alone.

    Args:
        command: what the page says the study was asked for with
    """
    root = Path(parameters.trainings or f"{parameters.store.rstrip('/')}-trainings").expanduser().resolve()
    start, store = _begun(parameters, root)
    prompts = [query.as_prompt() for query in parameters.queries]
    study = describe_study(store, start, parameters.training, prompts, parameters.subsets)
    planned = plan_subsets(study, parameters.subsets)
    model = _taught(parameters, study, root)
    with gpu_slot(), open_workers(parameters.cluster, len(planned)) as workers:
        retrain(study, planned, workers)
    run_id = trace(_trace(parameters, model, parameters.methods, parameters.damping))
    figures = score_subsets(study, run_id, planned)
    asked = _sample([prompt.query_id for prompt in prompts], parameters.subsets.queries)
    removals = plan_removals(study, run_id, asked, parameters.subsets.top)
    with gpu_slot(), open_workers(parameters.cluster, len(removals)) as workers:
        retrain(study, list(removals.values()), workers)
    for method, rises in score_removals(study, run_id, removals).items():
        figures[method] |= rises
    sweep: dict[float, Figures] = {}
    for relative in parameters.dampings:
        damped = trace(_trace(parameters, model, parameters.swept, Damping(relative=relative)))
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
        command=command,
    )


def _begun(parameters: LdsParameters, root: Path) -> tuple[Path, Store]:
    """The model that every training begins with, and the store with the corpus, as it is now."""
    if parameters.model is not None:
        start = find_checkpoint(parameters.model.name, parameters.model.revision)
    else:
        made_from = [parameters.shape, parameters.corpus.inputs, parameters.training.seed]
        folder = root / f"start-{digest_of([str(part) for part in made_from])[:10]}"
        start = make_untrained(folder, parameters.corpus.inputs, parameters.shape, parameters.training.seed)
    store = create_store(parameters.store)
    with open_workers(parameters.cluster, count_parts(store, parameters.corpus)) as workers:
        ingest(store, start, parameters.corpus, workers)
    return start, pin_corpus(store)


def _taught(parameters: LdsParameters, study: Study, root: Path) -> Path:
    """The model that knows the whole corpus, with its checkpoints."""
    made_from = [study.study_id, parameters.training.checkpoints]
    folder = root / f"full-{digest_of(made_from)[:10]}"
    train(
        TrainParameters(
            store=parameters.store,
            directory=str(folder),
            start=ModelParameters(name=str(study.start)),
            corpus=parameters.corpus,
            training=parameters.training,
            cluster=parameters.cluster,
        )
    )
    return folder


def _trace(parameters: LdsParameters, model: Path, methods: tuple[Method, ...], damping: Damping) -> TraceParameters:
    """Every training sequence under every method, none filtered out."""
    return TraceParameters(
        store=parameters.store,
        model=ModelParameters(name=str(model)),
        queries=parameters.queries,
        candidates=CandidateParameters(filters=("none",)),
        fit=parameters.fit,
        method=MethodParameters(
            method=methods[0],
            beside=methods[1:],
            damping=damping,
            rank=parameters.rank,
            rescore=0,  # sums over sequences are compared, none is shown token by token
            trajectory=TrajectoryParameters(checkpoints=str(model)),
            solver=parameters.solver,
        ),
        compute=parameters.compute,
        cluster=parameters.cluster,
    )


def _sample(names: list[str], most: int) -> list[str]:
    """At most so many of the queries, in their order; which ones depends on their ids alone."""
    keys = tie_breakers(names)
    chosen = set(sorted(range(len(names)), key=lambda k: (keys[k], k))[:most])
    return [name for k, name in enumerate(names) if k in chosen]
