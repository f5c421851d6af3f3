"""Fit: EK-FAC factors of a model on the corpus of a store."""

from __future__ import annotations

from prefect import flow

from flows.cluster import open_workers
from flows.outcome import EXPLAINED
from flows.parameters import FactorParameters
from flows.slots import gpu_slot
from storage.checkpoints import find_checkpoint
from storage.sequences import corpus_parts
from storage.store import open_store
from tasks.compute import settle
from tasks.factors import fit_factors


@flow(name="fit", flow_run_name="fit {parameters.model.name}", validate_parameters=True, **EXPLAINED)
def fit(parameters: FactorParameters) -> str:
    """Fit the factors where they are missing; returns the fit's id."""
    store, model = open_store(parameters.store), find_checkpoint(parameters.model.name, parameters.model.revision)
    with gpu_slot(), open_workers(parameters.cluster, len(corpus_parts(store))) as workers:
        return fit_factors(store, model, parameters.fit, settle(parameters.compute, workers.processors), workers)
