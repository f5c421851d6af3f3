"""Refit: factors for the model and the corpus as they are now, where those that stand are for others."""

from __future__ import annotations

import logging

from prefect import flow

from flows.cluster import open_workers
from flows.outcome import EXPLAINED
from flows.parameters import FactorParameters
from flows.slots import gpu_slot
from storage.checkpoints import find_checkpoint
from storage.factors import fit_ids
from storage.sequences import current_parts
from storage.store import open_store
from tasks.compute import settle
from tasks.factors import fit_factors

log = logging.getLogger("flows.refit")  # not __name__: a worker loads this file by its path


@flow(name="refit-factors", flow_run_name="refit {parameters.store}", validate_parameters=True, **EXPLAINED)
def refit_factors(parameters: FactorParameters) -> str | None:
    """Fit anew if the fingerprint of the model or of the corpus changed; returns the fit's id, None without a corpus.

    So that the next query does not wait for it. A fit is named by the digest of everything that made it.
    """
    store, model = open_store(parameters.store), find_checkpoint(parameters.model.name, parameters.model.revision)
    parts = current_parts(store)
    if not parts:
        log.warning("nothing to fit on: store %s has no sequences yet", parameters.store)
        return None
    before = fit_ids(store)
    with gpu_slot(), open_workers(parameters.cluster, len(parts)) as workers:
        compute = settle(parameters.compute, workers.processors)
        fit_id = fit_factors(store, model, parameters.fit, compute, workers)
    if fit_id in before:
        log.info("factors %s stand: model and corpus are those that they were fitted on", fit_id)
    else:
        log.info("factors %s are new: the model, the corpus or the parameters of the fit changed", fit_id)
    return fit_id
