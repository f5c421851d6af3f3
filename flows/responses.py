"""Validation on small networks: what leaving one example out does, and whether influence functions foresee it."""

from __future__ import annotations

from prefect import flow
from pydantic import BaseModel, ConfigDict, Field

from flows.cluster import open_workers
from flows.outcome import EXPLAINED
from storage.store import create_store
from tasks.problems import NetworkParameters, ProblemParameters
from tasks.response_evaluation import CHAIN, ResponseFindings, evaluate_responses
from tasks.response_study import LeaveOutParameters, Objective, describe_responses
from tasks.responses import retrain_networks, solve_systems, train_networks


class ResponseParameters(BaseModel):
    """A study: of which examples, with what network, what is left out and which truths it is held against."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str = Field(min_length=1, description="directory of the store; made where nothing stands")
    problem: ProblemParameters = Field(default_factory=ProblemParameters)
    network: NetworkParameters = Field(default_factory=NetworkParameters)
    asked: LeaveOutParameters = Field(default_factory=LeaveOutParameters)
    objectives: tuple[Objective, ...] = Field(
        CHAIN, min_length=1, description="loo: retrained without the example; the others as Bae et al. 2022 have them"
    )
    cluster: str = Field("none", description="auto, local, none, or tcp://host:port of a Dask scheduler")


@flow(name="responses", flow_run_name="responses of {parameters.problem.table}", validate_parameters=True, **EXPLAINED)
def measure_responses(parameters: ResponseParameters) -> ResponseFindings:
    """Networks, the same with one example less, what every method predicts of that, and how far it is right.

    What is there already is kept: a study that was stopped goes on where it was.
    """
    store, asked = create_store(parameters.store), parameters.asked
    study = describe_responses(store, parameters.problem, parameters.network, asked, parameters.objectives)
    with open_workers(parameters.cluster, asked.seeds) as workers:
        train_networks(study, workers)
        solve_systems(study, workers)  # first: where a solver fails, it fails within minutes
        retrain_networks(study, workers)
    return evaluate_responses(study)
