"""What studies of retraining share: a store with its corpus, a model that is taught all of it, and its trace."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from flows.cluster import open_workers
from flows.parameters import ModelParameters, QueryParameters, TraceParameters
from flows.training import TrainParameters, train
from storage.checkpoints import find_checkpoint
from storage.digests import digest_of
from storage.sequences import pin_corpus
from storage.store import Store, create_store
from tasks.candidates import CandidateParameters
from tasks.compute import ComputeParameters
from tasks.corpus import CorpusParameters, count_parts, ingest
from tasks.factors import FitParameters
from tasks.learning.loop import TrainingParameters
from tasks.learning.model import ModelShape
from tasks.methods import Method, MethodParameters, SolverParameters, TrajectoryParameters
from tasks.metrics import Damping
from tasks.training import make_untrained

BASELINES = ("bm25plus", "random")
LEXICAL = ("bm25plus", "bm25")


class TeachingParameters(BaseModel):
    """Which model is taught which corpus, what it is asked, and how it is traced."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str = Field(min_length=1, description="directory of the store; made where nothing stands")
    queries: tuple[QueryParameters, ...] = Field(min_length=1, description="completions that are traced and measured")
    model: ModelParameters | None = Field(None, description="to be taught the corpus; none: a new one of `shape`")
    shape: ModelShape = Field(default_factory=ModelShape)
    trainings: str | None = Field(None, description="directory that the taught models go into; none: beside the store")
    corpus: CorpusParameters = Field(default_factory=CorpusParameters)
    training: TrainingParameters = Field(default_factory=lambda: TrainingParameters(epochs=3))
    methods: tuple[Method, ...] = Field(
        ("ekfac", "identity"), min_length=1, description="BM25+ and random always stand beside them"
    )
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
        words, chance = BASELINES
        added = (() if set(LEXICAL) & set(methods) else (words,), () if chance in methods else (chance,))
        return (*methods, *added[0], *added[1])

    @model_validator(mode="after")
    def _place_for_trainings(self) -> TeachingParameters:
        if "://" in self.store and self.trainings is None:
            raise ValueError("trainings: expected a local directory where the store is remote. Name one.")
        return self

    @property
    def root(self) -> Path:
        """The directory that trained models go into: the one that is named, or one beside the store."""
        return Path(self.trainings or f"{self.store.rstrip('/')}-trainings").expanduser().resolve()


def begin(asked: TeachingParameters) -> tuple[Path, Store]:
    """The model that every training begins with, and the store with the corpus, as it is now."""
    if asked.model is not None:
        start = find_checkpoint(asked.model.name, asked.model.revision)
    else:
        made_from = (asked.shape, asked.corpus.inputs, asked.training.seed)
        folder = asked.root / f"start-{digest_of([str(part) for part in made_from])[:10]}"
        start = make_untrained(folder, asked.corpus.inputs, asked.shape, asked.training.seed)
    opened = create_store(asked.store)
    with open_workers(asked.cluster, count_parts(opened, asked.corpus)) as workers:
        ingest(opened, start, asked.corpus, workers)
    return start, pin_corpus(opened)


def teach_whole(asked: TeachingParameters, start: Path, training: TrainingParameters, named: Sequence[object]) -> Path:
    """The model that knows the whole corpus, with its checkpoints, in a folder named by what `named` says of it."""
    folder = asked.root / f"full-{digest_of([*named, training.checkpoints])[:10]}"
    train(
        TrainParameters(
            store=asked.store,
            directory=str(folder),
            start=ModelParameters(name=str(start)),
            corpus=asked.corpus,
            training=training,
            cluster=asked.cluster,
        )
    )
    return folder


def whole_trace(
    asked: TeachingParameters, model: Path, methods: tuple[Method, ...], damping: Damping
) -> TraceParameters:
    """Every training sequence under every method, none filtered out."""
    return TraceParameters(
        store=asked.store,
        model=ModelParameters(name=str(model)),
        queries=asked.queries,
        candidates=CandidateParameters(filters=("none",)),
        fit=asked.fit,
        method=MethodParameters(
            method=methods[0],
            beside=methods[1:],
            damping=damping,
            rank=asked.rank,
            rescore=0,  # sums over sequences are compared, none is shown token by token
            trajectory=TrajectoryParameters(checkpoints=str(model)),
            solver=asked.solver,
        ),
        compute=asked.compute,
        cluster=asked.cluster,
    )
