"""Self-influence: which training sequences the model had to learn most by heart; no query is asked."""

from __future__ import annotations

from collections.abc import Callable

from prefect import flow

from flows.cluster import open_workers
from flows.outcome import EXPLAINED
from flows.parameters import SelfInfluenceParameters
from flows.slots import gpu_slot
from storage.checkpoints import find_checkpoint, model_fingerprint
from storage.sequences import corpus_parts
from storage.store import open_store
from tasks.answer_influence import measure_answers
from tasks.answer_trajectory import measure_trajectories
from tasks.compute import settle
from tasks.factors import fit_factors
from tasks.fanout import Workers
from tasks.metrics import CURVED, metric_id
from tasks.self_influence import measure_self_influences
from tasks.selves import Curvature


@flow(
    name="self-influence", flow_run_name="self-influence {parameters.model.name}", validate_parameters=True, **EXPLAINED
)
def self_influence(parameters: SelfInfluenceParameters) -> tuple[str, int]:
    """Measure every sequence of the corpus that has no self-influence yet; the factors' id and how many were new."""
    return _survey(parameters, measure_self_influences)


@flow(
    name="answer-influence", flow_run_name="answers of {parameters.model.name}", validate_parameters=True,
    **EXPLAINED,
)  # fmt: skip
def answer_influence(parameters: SelfInfluenceParameters) -> tuple[str, int]:
    """The same of the answers that documents give, as the field `said` of their metadata has it, and of each by all."""
    return _survey(parameters, measure_answers)


@flow(
    name="answer-trajectory", flow_run_name="answers on the way to {parameters.model.name}", validate_parameters=True,
    **EXPLAINED,
)  # fmt: skip
def answer_trajectory(parameters: SelfInfluenceParameters) -> tuple[str, int]:
    """What these answers cost at every checkpoint that lies beside the model, and how long their gradients were."""
    return _survey(parameters, measure_trajectories)


def _survey(parameters: SelfInfluenceParameters, measure: Callable[[Curvature, Workers], int]) -> tuple[str, int]:
    store, model = open_store(parameters.store), find_checkpoint(parameters.model.name, parameters.model.revision)
    curved = parameters.method in CURVED
    with gpu_slot(), open_workers(parameters.cluster, len(corpus_parts(store))) as workers:
        compute = settle(parameters.compute, workers.processors)
        fit_id = fit_factors(store, model, parameters.fit, compute, workers) if curved else None
        factors_id = metric_id(
            fit_id,
            model_fingerprint(model),
            parameters.fit.modules,
            parameters.method,
            parameters.damping,
            compute,
        )
        curvature = Curvature(
            store,
            model,
            parameters.fit.modules,
            fit_id,
            factors_id,
            parameters.method,
            parameters.damping,
            compute,
        )
        return factors_id, measure(curvature, workers)
