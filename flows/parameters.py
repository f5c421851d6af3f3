"""What an experiment is: the stages' own parameters, composed. Frozen; unknown fields are refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from storage.prompts import Prompt, make_prompt
from storage.schemas import Terms
from tasks.candidates import CandidateParameters
from tasks.compute import ComputeParameters
from tasks.corpus import CorpusParameters, CutParameters
from tasks.factors import FitParameters
from tasks.methods import MethodParameters
from tasks.metrics import Damping, GradientMethod


class ModelParameters(BaseModel):
    """The causal language model whose words are traced."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="a directory that save_pretrained wrote, or a repository of the hub")
    revision: str | None = Field(None, description="commit, branch or tag of a hub repository")


class QueryParameters(BaseModel):
    """One completion to be traced."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str = Field(description="what the model was given; may be empty if its tokenizer has a start token")
    completion: str = Field(min_length=1, description="what it said: the text whose log-probability is explained")
    query_id: str | None = Field(None, description="name of the query; none: made from its text")
    metadata: dict[str, Any] = Field(default_factory=dict, description="kept with the query; may name its truth")

    @classmethod
    def of(cls, prompt: Prompt) -> QueryParameters:
        """A query that was read, with all that its file says of it."""
        return cls(
            prompt=prompt.prompt,
            completion=prompt.completion,
            query_id=prompt.query_id,
            metadata=json.loads(prompt.metadata),
        )

    def as_prompt(self) -> Prompt:
        """The query as the store knows it."""
        return make_prompt(self.prompt, self.completion, self.query_id, json.dumps(self.metadata, sort_keys=True))


class IngestParameters(BaseModel):
    """A corpus to be cut into training sequences and indexed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str = Field(description="directory of the store")
    model: ModelParameters
    corpus: CorpusParameters = Field(default_factory=CorpusParameters)
    cluster: str = Field("auto", description="auto, local, none, or tcp://host:port of a Dask scheduler")


class FactorParameters(BaseModel):
    """An EK-FAC fit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str = Field(description="directory of the store")
    model: ModelParameters
    fit: FitParameters = Field(default_factory=FitParameters)
    compute: ComputeParameters = Field(default_factory=ComputeParameters)
    cluster: str = Field("auto", description="auto, local, none, or tcp://host:port of a Dask scheduler")


class SelfInfluenceParameters(FactorParameters):
    """A survey of the whole corpus: each sequence's influence on itself."""

    method: GradientMethod = Field("ekfac", description="metric of the sequence's own gradient")
    damping: Damping = Field(Damping(), description="added to the eigenvalues before they are inverted")


class TraceParameters(BaseModel):
    """The whole walk: from a corpus and a model to the influences on each query."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str = Field(description="directory of the store")
    model: ModelParameters
    queries: tuple[QueryParameters, ...] = Field(min_length=1, description="completions to be traced, in one pass")
    corpus: CorpusParameters = Field(default_factory=CorpusParameters)
    candidates: CandidateParameters = Field(default_factory=CandidateParameters)
    fit: FitParameters = Field(default_factory=FitParameters)
    method: MethodParameters = Field(default_factory=MethodParameters)
    compute: ComputeParameters = Field(default_factory=ComputeParameters)
    cluster: str = Field("auto", description="auto, local, none, or tcp://host:port of a Dask scheduler")


class RefreshParameters(BaseModel):
    """A folder whose new and changed files become part of the corpus."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str = Field(min_length=1, description="directory of the store; made where nothing stands")
    model: ModelParameters
    folder: str = Field(min_length=1, description="directory that is watched, with the directories in it")
    settle: float = Field(
        60.0, ge=0, le=86_400, description="seconds for which nobody has written to a file before it is taken in"
    )
    cut: CutParameters = Field(default_factory=CutParameters)
    terms: Terms = Field("tokens", description="what the lexical index counts: model tokens, or words in lower case")
    cluster: str = Field("auto", description="auto, local, none, or tcp://host:port of a Dask scheduler")


class PendingParameters(BaseModel):
    """How the queries that wait in a store are traced."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str = Field(min_length=1, description="directory of the store")
    model: ModelParameters
    batch: int = Field(64, ge=1, le=1024, description="queries that share one pass over their candidates")
    most: int = Field(1024, ge=1, le=100_000, description="queries of one flow run; the others wait for the next one")
    candidates: CandidateParameters = Field(default_factory=CandidateParameters)
    fit: FitParameters = Field(default_factory=FitParameters)
    method: MethodParameters = Field(default_factory=MethodParameters)
    compute: ComputeParameters = Field(default_factory=ComputeParameters)
    cluster: str = Field("auto", description="auto, local, none, or tcp://host:port of a Dask scheduler")

    def trace_of(self, prompts: Sequence[Prompt]) -> TraceParameters:
        """The trace of some of the waiting queries, which the store knows."""
        return TraceParameters(
            store=self.store,
            model=self.model,
            queries=tuple(
                QueryParameters(prompt=p.prompt, completion=p.completion, query_id=p.query_id) for p in prompts
            ),
            candidates=self.candidates,
            fit=self.fit,
            method=self.method,
            compute=self.compute,
            cluster=self.cluster,
        )


class EvaluationParameters(BaseModel):
    """Which runs are compared with the truth that their queries name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str = Field(min_length=1, description="directory of the store")
    runs: int = Field(10, ge=1, le=10_000, description="latest complete runs without an evaluation, at most so many")
