"""Study: one question about a model, asked of a complete run; fills its table and writes its page."""

from __future__ import annotations

from typing import Literal

from prefect import flow
from pydantic import BaseModel, ConfigDict, Field

from flows.outcome import EXPLAINED
from storage.store import open_store
from tasks.studies.layers import study_layers
from tasks.studies.memorization import study_memorization
from tasks.studies.restrict import study_restrict
from tasks.studies.scale import study_scale
from tasks.studies.sparsity import study_sparsity
from tasks.studies.themes import study_themes
from tasks.study_page import Page, write_study

Question = Literal["layers", "themes", "restrict", "sparsity", "memorization", "scale"]
# Sequences of each query that a question is about.
FIRST = {"layers": 500, "themes": 50, "restrict": 10, "sparsity": 0, "memorization": 100, "scale": 10}


class StudyParameters(BaseModel):
    """Which question is asked of which run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str = Field(min_length=1, description="directory of the store")
    question: Question = Field(description="layers, themes, restrict, sparsity, memorization or scale")
    run: str = Field("latest", min_length=1, description="a run's id, or latest; scale takes every model's latest")
    first: int | None = Field(None, ge=1, le=100_000, description="sequences of each query; none: as was published")
    output: str | None = Field(None, description="HTML page to write")
    figures: str | None = Field(None, description="directory to write each figure to, as SVG one column wide")


@flow(name="study", flow_run_name="{parameters.question} of {parameters.store}", validate_parameters=True, **EXPLAINED)
def study(parameters: StudyParameters, command: str = "") -> Page:
    """Read the run's tables and say what they say; the tails' laws are kept in `tail_fits`.

    Args:
        command: what the page says the study was asked for with
    """
    store, run = open_store(parameters.store), parameters.run
    first = parameters.first or FIRST[parameters.question]
    if parameters.question == "layers":
        page = study_layers(store, run, first, command)
    elif parameters.question == "themes":
        page = study_themes(store, run, first, command)
    elif parameters.question == "restrict":
        page = study_restrict(store, run, first, command)
    elif parameters.question == "sparsity":
        page = study_sparsity(store, run, command)
    elif parameters.question == "scale":
        page = study_scale(store, first, command)
    else:
        page = study_memorization(store, run, first, command)
    write_study(page, parameters.output, parameters.figures)
    return page
