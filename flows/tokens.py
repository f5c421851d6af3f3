"""Tokens: which tokens of a query's first sequences carry their influence, by three definitions."""

from __future__ import annotations

from typing import Annotated

from prefect import flow
from pydantic import BaseModel, ConfigDict, Field

from flows.cluster import open_workers
from flows.outcome import EXPLAINED
from flows.parameters import ModelParameters
from flows.slots import gpu_slot
from storage.checkpoints import find_checkpoint
from storage.database import session
from storage.locks import locked
from storage.sequences import corpus_parts
from storage.store import open_store
from tasks.chosen import find_run
from tasks.factors import fit_factors
from tasks.fanout import Workers
from tasks.past_runs import PastRun, recall_run
from tasks.studies.tokens import study_tokens
from tasks.study_page import Page, write_study
from tasks.token_responses import respond


class TokenStudyParameters(BaseModel):
    """Which sequences of which run are looked at token by token, and how far the weights move."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str = Field(min_length=1, description="directory of the store")
    run: str = Field("latest", min_length=1, description="a run's id, or latest")
    model: ModelParameters | None = Field(None, description="where the run's model lies now; none: where it lay then")
    queries: tuple[str, ...] = Field((), description="ids of queries of the run; none: its first ones")
    most: int = Field(8, ge=1, le=10_000, description="queries, where none is named")
    first: int = Field(5, ge=1, le=10_000, description="sequences of each query, of those that were scored exactly")
    rises: tuple[Annotated[float, Field(gt=0, le=100, description="nats")], ...] = Field(
        (0.01, 0.1, 1.0), description="steps beside the limit, in nats of the query's log-probability, to first order"
    )
    cluster: str = Field("none", description="auto, local, none, or tcp://host:port of a Dask scheduler")
    output: str | None = Field(None, description="HTML page to write")
    figures: str | None = Field(None, description="directory to write each figure to, as SVG one column wide")


@flow(name="tokens", flow_run_name="tokens of {parameters.store}", validate_parameters=True, **EXPLAINED)
def tokens(parameters: TokenStudyParameters, command: str = "") -> Page:
    """Move the model towards each query, see how the tokens of its first sequences answer, and compare.

    Args:
        command: what the page says the study was asked for with
    """
    store = open_store(parameters.store)
    with session(store) as connection:
        row = find_run(connection, store, parameters.run)
    asked = parameters.model or ModelParameters(name=row["model"])
    past = recall_run(store, row, find_checkpoint(asked.name, asked.revision))
    queries = parameters.queries or tuple(prompt.query_id for prompt in past.prompts[: parameters.most])
    with (
        gpu_slot(),
        open_workers(parameters.cluster, len(corpus_parts(store))) as workers,
        locked(store, past.run_id),  # who deletes a run holds it too
    ):
        scoring = past.scoring(_fit_of(past, workers))
        queries = respond(scoring, queries, parameters.first, parameters.rises, workers)
    page = study_tokens(store, past.run_id, queries, parameters.first, command)
    write_study(page, parameters.output, parameters.figures)
    return page


def _fit_of(past: PastRun, workers: Workers) -> str | None:
    """The factors that the run used; fitted again where they were removed since."""
    if not past.curved:
        return None
    found = past.find_fit()
    if found is None:
        past.require_same_corpus()
        found = fit_factors(past.store, past.model, past.fit, past.compute, workers)
        past.require_used(found)
    return found
