"""Train: a model taught exactly the sequences of a store, from scratch or from what it knows, with checkpoints."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from pydantic import BaseModel, ConfigDict, Field, model_validator

from flows.cluster import open_workers
from flows.outcome import EXPLAINED
from flows.parameters import ModelParameters
from flows.slots import gpu_slot
from storage.checkpoints import find_checkpoint
from storage.sequences import pin_corpus
from storage.store import create_store
from tasks.corpus import CorpusParameters, count_parts, ingest
from tasks.learning.loop import TrainingParameters
from tasks.learning.model import ModelShape
from tasks.training import TrainingReport, make_untrained, train_model


class TrainParameters(BaseModel):
    """A training: of what, on what, how, and where it goes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str = Field(min_length=1, description="directory of the store whose sequences are taught; made if need be")
    directory: str = Field(min_length=1, description="where the trained model goes, with its checkpoints")
    start: ModelParameters | None = Field(None, description="the model to begin with; none: a new one of this shape")
    shape: ModelShape = Field(default_factory=ModelShape)
    tokenizer: ModelParameters | None = Field(
        None, description="model whose tokenizer a new one takes, so that both read one store; none: made of the corpus"
    )
    corpus: CorpusParameters = Field(default_factory=CorpusParameters)
    training: TrainingParameters = Field(default_factory=TrainingParameters)
    cluster: str = Field("auto", description="auto, local, none, or tcp://host:port of a Dask scheduler")

    @model_validator(mode="after")
    def _something_to_begin_with(self) -> TrainParameters:
        if self.start is not None and self.tokenizer is not None:
            raise ValueError("start and tokenizer: a model to start from brings its own tokenizer. Give one of them.")
        if self.start is None and self.tokenizer is None and not self.corpus.inputs:
            raise ValueError(
                "a model to start from, one whose tokenizer is taken, or corpus files that a tokenizer is made of"
            )
        return self


@flow(name="train", flow_run_name="train {parameters.directory}", validate_parameters=True, **EXPLAINED)
def train(parameters: TrainParameters) -> TrainingReport:
    """Starting model, corpus, training; returns how it went. What is there already is kept."""
    store, directory = create_store(parameters.store), Path(parameters.directory).expanduser().resolve()
    inputs = parameters.corpus.inputs
    with gpu_slot(), open_workers(parameters.cluster, count_parts(store, parameters.corpus)) as workers:
        if parameters.start is None:
            taken = parameters.tokenizer
            tokenizer_of = None if taken is None else find_checkpoint(taken.name, taken.revision)
            start = make_untrained(directory, inputs, parameters.shape, parameters.training.seed, tokenizer_of)
        else:
            start = find_checkpoint(parameters.start.name, parameters.start.revision)
        ingest(store, start, parameters.corpus, workers)
        return train_model(pin_corpus(store), start, parameters.training, directory)
