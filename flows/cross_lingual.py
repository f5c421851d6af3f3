"""Cross-lingual: do the sequences that a query is traced to act on its translations, too?"""

from __future__ import annotations

from prefect import flow
from pydantic import Field

from flows.outcome import EXPLAINED
from flows.parameters import ModelParameters, QueryParameters, TraceParameters
from flows.probing import ProbingParameters, named_models, probe
from flows.trace import trace
from storage.checkpoints import context_length
from storage.store import open_store
from storage.translations import Translated, read_translated
from tasks.candidates import CandidateParameters
from tasks.methods import MethodParameters
from tasks.studies.cross_lingual import as_probes, study_cross_lingual
from tasks.study_page import Page, write_study

ADDED = 2  # tokens beside those of a sentence's bytes: one that begins, and a space before the first word


class CrossLingualParameters(ProbingParameters):
    """Which queries are asked in which languages, and how many sequences of the first language's trace are followed."""

    sentences: str = Field(
        min_length=1,
        description="FILE.parquet:en:de:fr, columns of parallel sentences; or queries with group and language",
    )
    queries: int = Field(24, ge=1, le=10_000, description="sentences taken of a table, the first ones")
    first: int = Field(10, ge=1, le=1000, description="sequences of each query that are followed")
    random: int = Field(10, ge=1, le=1000, description="drawn at random from the corpus beside them: the floor")
    seed: int = Field(0, ge=0, description="of those drawn at random")
    candidates: CandidateParameters = Field(default_factory=CandidateParameters)


@flow(name="cross-lingual", flow_run_name="languages in {parameters.store}", validate_parameters=True, **EXPLAINED)
def cross_lingual(parameters: CrossLingualParameters, command: str = "") -> Page:
    """Trace the queries in their first language, and score the sequences found against their translations.

    Args:
        command: what the page says the study was asked for with
    """
    models = named_models(parameters.models)
    longest = min(map(context_length, models.values())) - ADDED
    asked = read_translated(parameters.sentences, parameters.queries, longest)
    store = open_store(parameters.store)
    probings: dict[str, str] = {}
    for given, (name, model) in zip(parameters.models, models.items(), strict=True):
        run_id = trace(_in_the_first_language(parameters, given, asked))
        sets = as_probes(store, run_id, asked, parameters.first, parameters.random, parameters.seed)
        probings[name] = probe(parameters, store, model, sets)
    page = study_cross_lingual(store, probings, asked, command)
    write_study(page, parameters.output, parameters.figures)
    return page


def _in_the_first_language(
    parameters: CrossLingualParameters, model: ModelParameters, asked: list[Translated]
) -> TraceParameters:
    """Otherwise as `headwater trace` is by default, so that a run which is there is found."""
    first = [next(iter(of.prompts.values())) for of in asked]
    return TraceParameters(
        store=parameters.store,
        model=model,
        queries=tuple(QueryParameters.of(prompt) for prompt in first),
        candidates=parameters.candidates,
        fit=parameters.fit,
        method=MethodParameters(method=parameters.method, damping=parameters.damping),
        compute=parameters.compute,
        cluster=parameters.cluster,
    )
