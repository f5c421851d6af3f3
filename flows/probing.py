"""What studies of probes share: models of one tokenizer, fitted where factors are missing, and what each is asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from flows.cluster import open_workers
from flows.parameters import ModelParameters
from flows.slots import gpu_slot
from storage.checkpoints import find_checkpoint
from storage.errors import InputError
from storage.sequences import corpus_parts
from storage.store import Store
from tasks.compute import ComputeParameters, settle
from tasks.factors import FitParameters, fit_factors
from tasks.metrics import CURVED, Damping, GradientMethod
from tasks.probes import ProbeSet, Probing, score_probes


class ProbingParameters(BaseModel):
    """Under which models something is scored, fitted on which store's corpus."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str = Field(min_length=1, description="directory of the store whose corpus the factors are fitted on")
    models: tuple[ModelParameters, ...] = Field(min_length=1, description="of one tokenizer; the page compares them")
    method: GradientMethod = Field("ekfac", description="metric of the influences")
    damping: Damping = Field(Damping(), description="added to the eigenvalues before they are inverted")
    fit: FitParameters = Field(default_factory=FitParameters)
    compute: ComputeParameters = Field(default_factory=ComputeParameters)
    cluster: str = Field("none", description="auto, local, none, or tcp://host:port of a Dask scheduler")
    output: str | None = Field(None, description="HTML page to write")
    figures: str | None = Field(None, description="directory to write each figure to, as SVG one column wide")


def named_models(models: Sequence[ModelParameters]) -> dict[str, Path]:
    """The directories of models by the names of their folders, which differ."""
    found: dict[str, Path] = {}
    for asked in models:
        name = Path(asked.name).name
        if name in found:
            raise InputError(
                f"model {asked.name}",
                expected="models whose folders differ in name",
                found=f"two called {name}",
                remedy="Rename one of the folders.",
            )
        found[name] = find_checkpoint(asked.name, asked.revision)
    return found


def probe(parameters: ProbingParameters, store: Store, model: Path, sets: tuple[ProbeSet, ...]) -> str:
    """Fit where factors are missing and score every probe under one model; returns the probing's id."""
    with gpu_slot(), open_workers(parameters.cluster, len(corpus_parts(store))) as workers:
        compute = settle(parameters.compute, workers.processors)
        fit_id = None
        if parameters.method in CURVED:
            fit_id = fit_factors(store, model, parameters.fit, compute, workers)
        probing = Probing(
            store, model, parameters.fit.modules, fit_id, parameters.method, parameters.damping, compute, sets
        )
        return score_probes(probing, workers)
