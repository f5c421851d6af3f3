"""A trace in a reader's words: a prompt, a completion, and what of the shown run's parameters is to be another."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flows.parameters import ModelParameters, QueryParameters, TraceParameters
from storage.checkpoints import find_checkpoint
from storage.errors import InputError
from storage.prompts import make_prompt
from storage.sequences import current_parts
from storage.store import Store
from tasks.candidates import CandidateParameters
from tasks.compute import ComputeParameters
from tasks.factors import FitParameters
from tasks.influence.errors import InfluenceError
from tasks.methods import MethodParameters
from tasks.screening import screen

LONGEST = 100_000  # characters; far past any model's context, which the tokenizer measures
Parameters = TypeVar("Parameters", bound=BaseModel)


class TraceWords(BaseModel):
    """What the form of the explorer sends; None: as in the run that was shown."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str = Field(max_length=LONGEST, description="what the model was given")
    completion: str = Field(max_length=LONGEST, description="what it said")
    run: str | None = Field(None, max_length=200, description="the run whose parameters and model are meant")
    method: str | None = Field(None, max_length=40, description="the run's own method")
    filter: str | None = Field(None, max_length=40, description="the one filter that keeps candidates")
    candidates: int | None = Field(None, ge=1, le=10_000_000, description="sequences that it keeps")


def compose(
    store: Store, words: TraceWords, run: dict[str, Any] | None, model: ModelParameters | None
) -> TraceParameters:
    """The trace that is meant, in which the tokenizer finds nothing wrong; `model` goes before that of the run.

    What is wrong is told here, in a moment, because a flow would come to the query after its factors.
    """
    if "\0" in words.prompt + words.completion:
        raise InputError(
            "query", expected="text", found="a NUL character, which databases do not keep", remedy="Take it out."
        )
    asked = make_prompt(words.prompt, words.completion)
    if not current_parts(store):
        raise InputError(
            f"store {store.root}",
            expected="training sequences",
            found="none",
            remedy="Ingest a corpus first: headwater ingest FILES --store S --model M",
        )
    parameters = TraceParameters(
        store=str(store.root),
        model=model or _model_of(run),
        queries=(QueryParameters.model_validate({"prompt": words.prompt, "completion": words.completion}),),
        **_settings_of(run, words),
    )
    refused = screen.fn(find_checkpoint(parameters.model.name, parameters.model.revision), [asked])
    if refused:
        raise InfluenceError(refused[asked.query_id].replace(f"query {asked.query_id}", "query", 1))
    return parameters


def usual(run: dict[str, Any] | None, model: ModelParameters | None) -> dict[str, Any]:
    """What is traced where the form's reader changes nothing, in words; `model` is None where none is known."""
    settings = _settings_of(run, None)
    named = model or (None if run is None else _model_of(run))
    return {
        "of": None if run is None else run["run_id"],
        "model": None if named is None else named.name,
        "method": settings["method"].method,
        "filter": ", ".join(settings["candidates"].filters),
        "candidates": settings["candidates"].top_k,
    }


def _model_of(run: dict[str, Any] | None) -> ModelParameters:
    if run is None:
        raise InputError(
            "model",
            expected="that of a run, or one that is named",
            found="neither",
            remedy="Name it: headwater explore --store S --model M",
        )
    return ModelParameters(name=run["model"])


def _settings_of(run: dict[str, Any] | None, words: TraceWords | None) -> dict[str, Any]:
    """Candidates, fit, method and precision of a run, with the words' changes; the defaults without a run."""
    known = {} if run is None else json.loads(run["parameters"])
    candidates = _read(CandidateParameters, known.get("candidates"))
    if candidates.pool is not None:  # made for the queries of a study: it names nothing for another
        candidates = candidates.model_copy(update={"filters": ("bm25",), "pool": None})
    method = _read(MethodParameters, known.get("method"))
    precision = str(known.get("precision", "auto")).removeprefix("torch.")
    if words is not None:
        filters = None if words.filter is None else (words.filter,)
        candidates = _changed(candidates, filters=filters, top_k=words.candidates)
        method = _changed(method, method=words.method)
    return {
        "candidates": candidates,
        "fit": _read(FitParameters, known.get("fit")),
        "method": method,
        "compute": _read(ComputeParameters, {"precision": precision}),
    }


def _read(kind: type[Parameters], known: Any) -> Parameters:
    """A run's parameters; the defaults where an older headwater wrote others."""
    try:
        return kind.model_validate(known or {})
    except ValidationError:
        return kind()


def _changed(parameters: Parameters, **changes: Any) -> Parameters:
    """The same parameters but for those that are not None, checked anew."""
    given = {name: value for name, value in changes.items() if value is not None}
    return type(parameters).model_validate(parameters.model_dump() | given)
