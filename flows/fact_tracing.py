"""Fact tracing: which method finds the training text that states a fact, on any set of facts and any model.

The study of Akyürek et al. 2022 (arXiv 2205.11482): one training, one pool of candidates and one trace per seed.
"""

from __future__ import annotations

import json
from pathlib import Path

from prefect import flow
from pydantic import BaseModel, ConfigDict, Field, model_validator

from flows.cluster import open_workers
from flows.outcome import EXPLAINED
from flows.parameters import ModelParameters, QueryParameters, TraceParameters
from flows.slots import gpu_slot
from flows.trace import trace
from flows.training import TrainParameters, train
from storage.checkpoints import find_checkpoint
from storage.digests import digest_of
from storage.errors import InputError
from storage.fact_files import DOCUMENT_ID
from storage.fact_sets import FactQuery, FactSet, read_fact_set
from storage.store import Store, create_store
from storage.trajectory import read_trajectory
from tasks.asked import as_prompt, askable, other_completions, sample
from tasks.candidates import CandidateParameters
from tasks.compute import ComputeParameters
from tasks.corpus import CorpusParameters, CutParameters, count_parts, ingest, require_alone
from tasks.fact_evaluation import describe_study, evaluate_facts, first_pairs
from tasks.fact_scores import FactStudy, RunScores
from tasks.factors import FitParameters
from tasks.index import build_index
from tasks.learning.loop import TrainingParameters
from tasks.learning.model import ModelShape
from tasks.methods import FILTER, Method, MethodParameters, TrajectoryParameters
from tasks.pools import Pool, PoolParameters, build_pool
from tasks.recall import measure_recall
from tasks.tail_patch import TailPatchParameters, measure_tail_patches
from tasks.texts import require_few
from tasks.training import make_untrained

METHODS: tuple[Method, ...] = (
    "ekfac", "kfac", "identity", "tracin", "embedding", "tracin+embedding", "bm25plus", "random_target", "random",
)  # fmt: skip
LARGEST = 500_000  # bytes; a Prefect server refuses parameters of more than 512 KiB


class FactTracingParameters(BaseModel):
    """A study: of which facts, with what model, by which methods, how often."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str = Field(min_length=1, description="directory of the store; made where nothing stands")
    facts: str = Field(min_length=1, description="folder of the fact set: abstracts.parquet and queries.parquet")
    model: ModelParameters | None = Field(None, description="to be taught the set; none: a new one of `shape`")
    checkpoints: str | None = Field(None, description="directory of a training that is over; none: one per seed")
    trainings: str | None = Field(None, description="directory that trainings go into; none: one beside the store")
    methods: tuple[Method, ...] = Field(METHODS, min_length=1, description="the first one is the run's own")
    seeds: int = Field(3, ge=1, le=100, description="trainings, each with candidates of its own")
    queries: int = Field(1000, ge=1, le=10_000, description="at most so many of the set's, the same for every seed")
    patched: int = Field(50, ge=0, description="queries whose first sequences of each method are taught once more")
    shape: ModelShape = Field(default_factory=ModelShape)
    training: TrainingParameters = Field(default_factory=lambda: TrainingParameters(epochs=10, checkpoints=8))
    cut: CutParameters = Field(default_factory=CutParameters)
    pool: PoolParameters = Field(default_factory=PoolParameters)
    lesson: TailPatchParameters = Field(default_factory=TailPatchParameters)
    fit: FitParameters = Field(default_factory=FitParameters)
    compute: ComputeParameters = Field(default_factory=ComputeParameters)
    cluster: str = Field("none", description="auto, local, none, or tcp://host:port of a Dask scheduler")

    @model_validator(mode="after")
    def _place_for_trainings(self) -> FactTracingParameters:
        if "://" in self.store and self.trainings is None and self.checkpoints is None:
            raise ValueError("trainings: expected a local directory where the store is remote. Name one.")
        return self

    @model_validator(mode="after")
    def _methods_of_given_candidates(self) -> FactTracingParameters:
        lexical = [name for name in self.methods if name in FILTER]
        if lexical:
            raise ValueError(
                f"methods: expected those that score the candidates of a set, found {', '.join(lexical)}, which search "
                "a corpus. Take bm25plus."
            )
        return self


@flow(name="fact-tracing", flow_run_name="fact tracing of {parameters.facts}", validate_parameters=True, **EXPLAINED)
def fact_tracing(parameters: FactTracingParameters, command: str = "") -> FactStudy:
    """Per seed: candidates, training, trace, recall, lessons, figures; then all of them together.

    What is there already is kept: a study that was stopped goes on where it was. What can be refused is refused before
    the training: candidates and queries need the tokenizer alone.

    Args:
        command: what the page says the study was asked for with
    """
    fact_set = read_fact_set(parameters.facts)
    store = create_store(parameters.store)
    require_alone(store, _corpus(parameters, fact_set))
    studied, left_out = [], dict[str, tuple[str, ...]]()
    for seed in range(parameters.seeds):
        lesson = _lesson(parameters, fact_set, seed)
        start, model, checkpoints = _models(parameters, lesson)
        asked, pool, missing = _candidates(parameters, store, fact_set, start, seed)
        left_out = {why: tuple(dict.fromkeys((*left_out.get(why, ()), *names))) for why, names in missing.items()}
        walk = _trace(parameters, asked, pool, model, checkpoints, seed)
        if lesson is not None:
            train(lesson)
        run_id = trace(walk)
        studied.append(_examined(parameters, store, fact_set, run_id, model, checkpoints, asked))
    return describe_study(store, fact_set, tuple(studied), left_out, command)


def _models(parameters: FactTracingParameters, lesson: TrainParameters | None) -> tuple[Path, Path, Path]:
    """The model before it is taught, the one that knows the set, and the directory of its checkpoints."""
    if lesson is None:
        assert parameters.checkpoints is not None  # without them there is a lesson
        folder = Path(parameters.checkpoints).expanduser().resolve()
        model = parameters.model
        known = find_checkpoint(model.name, model.revision) if model else read_trajectory(folder)[-1].path
        return known, known, folder
    folder, start = Path(lesson.directory), lesson.start
    if start is not None:
        return find_checkpoint(start.name, start.revision), folder, folder
    return make_untrained(folder, lesson.corpus.inputs, lesson.shape, lesson.training.seed), folder, folder


def _lesson(parameters: FactTracingParameters, fact_set: FactSet, seed: int) -> TrainParameters | None:
    """The training that teaches the set; none where one is over."""
    if parameters.checkpoints is not None:
        return None
    training = parameters.training.model_copy(update={"seed": parameters.training.seed + seed})
    made_from = [fact_set.documents_fingerprint, parameters.model, parameters.shape, training, parameters.cut]
    root = Path(parameters.trainings or f"{parameters.store.rstrip('/')}-trainings").expanduser().resolve()
    folder = root / f"{digest_of([str(part) for part in made_from])[:10]}-seed-{seed}"
    return TrainParameters(
        store=parameters.store,
        directory=str(folder),
        start=parameters.model,
        shape=parameters.shape,
        corpus=_corpus(parameters, fact_set),
        training=training,
        cluster=parameters.cluster,
    )


def _corpus(parameters: FactTracingParameters, fact_set: FactSet) -> CorpusParameters:
    return CorpusParameters(
        inputs=(str(fact_set.documents_path),), id_column=DOCUMENT_ID, **parameters.cut.model_dump()
    )


def _candidates(
    parameters: FactTracingParameters, store: Store, fact_set: FactSet, model: Path, seed: int
) -> tuple[list[FactQuery], Pool, dict[str, tuple[str, ...]]]:
    """The queries that are asked, their candidates, and what is left out, by why."""
    corpus = _corpus(parameters, fact_set)
    with open_workers(parameters.cluster, count_parts(store, corpus)) as workers:
        parts = ingest(store, model, corpus, workers)
        if "bm25plus" in parameters.methods:
            require_few(parts, "Leave bm25plus out of --methods.")
        taken, refused, unnamed = askable(model, fact_set.queries)
        build_index(store, workers, "words")
        asked = sample(taken, parameters.queries)
        drawn = parameters.pool.model_copy(update={"seed": parameters.pool.seed + seed})
        pool = build_pool(store, fact_set, asked, drawn, workers)
    names = {query.query_id for query in asked}
    left_out = {
        "queries whose fact no document states": tuple(q.query_id for q in fact_set.without_proponent),
        "queries without an answer": tuple(q.query_id for q in fact_set.without_answer),
        "queries that the model cannot be asked: no token of an answer, or too long": tuple(refused),
        "other names of answers that the model cannot be asked for": tuple(unnamed),
        "queries whose true documents have no training sequence": pool.unreachable,
        "true documents without a training sequence, counted as not found": _told(pool.lost),
        "other candidates without a training sequence": _told(pool.lost_others),
        "queries beyond the number asked for": tuple(q.query_id for q in taken if q.query_id not in names),
    }
    return [query for query in asked if query.query_id not in pool.unreachable], pool, left_out


def _told(pairs: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    return tuple(f"{document} ({query_id})" for query_id, document in pairs)


def _trace(
    parameters: FactTracingParameters, asked: list[FactQuery], pool: Pool, model: Path, checkpoints: Path, seed: int
) -> TraceParameters:
    prompts = [as_prompt(query) for query in asked]
    found = TraceParameters(
        store=parameters.store,
        model=ModelParameters(name=str(model)),
        queries=tuple(
            QueryParameters(prompt=p.prompt, completion=p.completion, query_id=p.query_id, metadata={"fact": q.fact})
            for p, q in zip(prompts, asked, strict=True)
        ),
        candidates=CandidateParameters(filters=("pool",), pool=pool.pool_id),
        fit=parameters.fit.model_copy(update={"seed": parameters.fit.seed + seed}),
        method=MethodParameters(
            method=parameters.methods[0],
            beside=parameters.methods[1:],
            rescore=0,  # every candidate's score is compared, none is shown token by token
            trajectory=TrajectoryParameters(checkpoints=str(checkpoints)),
        ),
        compute=parameters.compute,
        cluster=parameters.cluster,
    )
    size = parameter_bytes(found)
    if size > LARGEST:
        raise InputError(
            f"queries of {parameters.facts}",
            expected=f"at most {LARGEST:,} bytes of them, what a flow of Prefect takes as parameters",
            found=f"{len(asked):,} queries of {size:,} bytes together",
            remedy="Lower --queries.",
        )
    return found


def parameter_bytes(walk: TraceParameters) -> int:
    """Bytes of a flow's parameters as Prefect counts them: in ASCII, a letter of another script takes six."""
    return len(json.dumps({"parameters": walk.model_dump(mode="json")}, separators=(",", ":")))


def _examined(
    parameters: FactTracingParameters,
    store: Store,
    fact_set: FactSet,
    run_id: str,
    model: Path,
    checkpoints: Path,
    asked: list[FactQuery],
) -> RunScores:
    """What the model knew at each checkpoint, what each method's first sequences teach, and the figures of the run."""
    prompts = [as_prompt(query) for query in asked]
    patched = [query.query_id for query in sample(asked, parameters.patched)]
    with gpu_slot():
        names = {query.query_id: other_completions(query) for query in asked}
        size = parameters.compute.batch_size
        measure_recall(store, run_id, model, prompts, read_trajectory(checkpoints), size, names)
        pairs = first_pairs(store, run_id, fact_set, patched)
        measure_tail_patches(store, run_id, model, prompts, pairs, parameters.lesson)
    return evaluate_facts(store, run_id, fact_set, patched, TrajectoryParameters().first_step)
