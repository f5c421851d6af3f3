"""Wrong labels: are examples that are labelled as another class found by what a network had to learn by heart?"""

from __future__ import annotations

from prefect import flow
from pydantic import BaseModel, ConfigDict, Field

from flows.cluster import open_workers
from flows.outcome import EXPLAINED
from storage.store import create_store
from tasks.mislabels import (
    MislabelFindings,
    MislabelParameters,
    describe_mislabels,
    find_mislabels,
    teach_mislabels,
)
from tasks.problems import NetworkParameters, ProblemParameters


class MislabelStudyParameters(BaseModel):
    """A study: in which table labels are wrong, which network is taught them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str = Field(min_length=1, description="directory of the store; made where nothing stands")
    problem: ProblemParameters = Field(default_factory=ProblemParameters)
    network: NetworkParameters = Field(default_factory=NetworkParameters)
    asked: MislabelParameters = Field(default_factory=MislabelParameters)
    cluster: str = Field("none", description="auto, local, none, or tcp://host:port of a Dask scheduler")


@flow(name="mislabels", flow_run_name="mislabels of {parameters.problem.table}", validate_parameters=True, **EXPLAINED)
def search_mislabels(parameters: MislabelStudyParameters) -> MislabelFindings:
    """Networks taught wrong labels, and how soon every ranking finds them; what is there already is kept."""
    store = create_store(parameters.store)
    study = describe_mislabels(store, parameters.problem, parameters.network, parameters.asked)
    with open_workers(parameters.cluster, parameters.asked.seeds) as workers:
        teach_mislabels(study, workers)
    return find_mislabels(study)
