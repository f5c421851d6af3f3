"""Word order: made-up texts scored against what they say, under one model or several."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from pydantic import BaseModel, ConfigDict, Field

from flows.cluster import open_workers
from flows.outcome import EXPLAINED
from flows.parameters import ModelParameters
from flows.slots import gpu_slot
from storage.checkpoints import find_checkpoint
from storage.errors import InputError
from storage.sequences import corpus_parts
from storage.stimuli import Stimulus, read_stimuli, read_translations
from storage.store import Store, open_store
from tasks.compute import ComputeParameters, settle
from tasks.demo.stimuli import planted_stimuli, unknown_stimuli
from tasks.factors import FitParameters, fit_factors
from tasks.metrics import CURVED, Damping, GradientMethod
from tasks.probes import Probing, score_probes
from tasks.studies.word_order import as_probes, study_word_order
from tasks.study_page import Page, write_study

OURS = {"planted": planted_stimuli, "unknown": unknown_stimuli}  # facts that the demo's model knows, and others


class WordOrderParameters(BaseModel):
    """Which texts are scored, under which models, fitted on which store's corpus."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str = Field(min_length=1, description="directory of the store whose corpus the factors are fitted on")
    models: tuple[ModelParameters, ...] = Field(min_length=1, description="of one tokenizer; each has its own bars")
    stimuli: str = Field(
        "unknown",
        min_length=1,
        description="a JSON file; FILE.parquet:en:de, translations; planted, the demo's facts; or unknown, made up",
    )
    method: GradientMethod = Field("ekfac", description="metric of the influences")
    damping: Damping = Field(Damping(), description="added to the eigenvalues before they are inverted")
    fit: FitParameters = Field(default_factory=FitParameters)
    compute: ComputeParameters = Field(default_factory=ComputeParameters)
    cluster: str = Field("none", description="auto, local, none, or tcp://host:port of a Dask scheduler")
    output: str | None = Field(None, description="HTML page to write")
    figures: str | None = Field(None, description="directory to write each figure to, as SVG one column wide")


@flow(name="word-order", flow_run_name="word order in {parameters.store}", validate_parameters=True, **EXPLAINED)
def word_order(parameters: WordOrderParameters, command: str = "") -> Page:
    """Fit where factors are missing, score every text, and compare the kinds of wording.

    Args:
        command: what the page says the study was asked for with
    """
    store = open_store(parameters.store)
    stimuli = _stimuli(parameters.stimuli)
    probings: dict[str, str] = {}
    for asked in parameters.models:
        name = Path(asked.name).name
        if name in probings:
            raise InputError(
                f"model {asked.name}",
                expected="models whose folders differ in name",
                found=f"two called {name}",
                remedy="Rename one of the folders.",
            )
        model = find_checkpoint(asked.name, asked.revision)
        probings[name] = _probe(parameters, store, model, stimuli)
    page = study_word_order(store, probings, command)
    write_study(page, parameters.output, parameters.figures)
    return page


def _stimuli(asked: str) -> list[Stimulus]:
    if asked in OURS:
        return OURS[asked]()
    path, *columns = asked.rsplit(":", 2)
    if len(columns) == 2 and path.endswith(".parquet"):
        return read_translations(path, *columns)
    return read_stimuli(asked)


def _probe(parameters: WordOrderParameters, store: Store, model: Path, stimuli: list[Stimulus]) -> str:
    with gpu_slot(), open_workers(parameters.cluster, len(corpus_parts(store))) as workers:
        compute = settle(parameters.compute, workers.processors)
        fit_id = None
        if parameters.method in CURVED:
            fit_id = fit_factors(store, model, parameters.fit, compute, workers)
        probing = Probing(
            store, model, parameters.fit.modules, fit_id, parameters.method, parameters.damping, compute,
            as_probes(stimuli),
        )  # fmt: skip
        return score_probes(probing, workers)
