"""Word order: made-up texts scored against what they say, under one model or several."""

from __future__ import annotations

from prefect import flow
from pydantic import Field

from flows.outcome import EXPLAINED
from flows.probing import ProbingParameters, named_models, probe
from storage.stimuli import Stimulus, read_stimuli, read_translations
from storage.store import open_store
from tasks.demo.stimuli import planted_stimuli, unknown_stimuli
from tasks.studies.word_order import ORDER, TRANSLATIONS, as_probes, study_word_order
from tasks.study_page import Page, write_study

OURS = {"planted": planted_stimuli, "unknown": unknown_stimuli}  # facts that the demo's model knows, and others


class WordOrderParameters(ProbingParameters):
    """Which texts are scored, under which models."""

    stimuli: str = Field(
        "unknown",
        min_length=1,
        description="a JSON file; FILE.parquet:en:de, translations; planted, the demo's facts; or unknown, made up",
    )


@flow(name="word-order", flow_run_name="word order in {parameters.store}", validate_parameters=True, **EXPLAINED)
def word_order(parameters: WordOrderParameters, command: str = "") -> Page:
    """Fit where factors are missing, score every text, and compare the kinds of wording.

    Args:
        command: what the page says the study was asked for with
    """
    store = open_store(parameters.store)
    stimuli, title = _stimuli(parameters.stimuli)
    sets = as_probes(stimuli)
    models = named_models(parameters.models)
    probings = {name: probe(parameters, store, model, sets) for name, model in models.items()}
    page = study_word_order(store, probings, command, title)
    write_study(page, parameters.output, parameters.figures)
    return page


def _stimuli(asked: str) -> tuple[list[Stimulus], str]:
    """What is scored, and the question of the page."""
    if asked in OURS:
        return OURS[asked](), ORDER
    path, *columns = asked.rsplit(":", 2)
    if len(columns) == 2 and path.endswith(".parquet"):
        return read_translations(path, *columns), TRANSLATIONS
    return read_stimuli(asked), ORDER
