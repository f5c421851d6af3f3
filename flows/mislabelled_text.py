"""Mislabelled text: are documents that say a wrong answer found by what the model had to learn by heart?"""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from pydantic import BaseModel, ConfigDict, Field, field_validator

from flows.outcome import EXPLAINED
from flows.parameters import ModelParameters, SelfInfluenceParameters
from flows.self_influence import answer_influence, answer_trajectory, self_influence
from flows.training import TrainParameters, train
from storage.store import open_store
from tasks.compute import ComputeParameters
from tasks.corpus import CorpusParameters, CutParameters
from tasks.factors import FitParameters
from tasks.inspection import InspectionStudy, inspect_corpus
from tasks.learning.loop import TrainingParameters
from tasks.learning.model import ModelShape
from tasks.metrics import Damping
from tasks.swapped_answers import SwapParameters, swap_answers


class MislabelledTextParameters(BaseModel):
    """A search: in which corpus answers are swapped, which model is taught it, and how it is looked into."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: tuple[str, ...] = Field(min_length=1, description="corpus files whose documents have an answer")
    directory: str = Field(min_length=1, description="where corpora, stores and models go, one of each per seed")
    model: ModelParameters | None = Field(None, description="to be taught each corpus; none: a new one of `shape`")
    shape: ModelShape = Field(default_factory=ModelShape)
    swap: SwapParameters = Field(default_factory=SwapParameters)
    cut: CutParameters = Field(default_factory=CutParameters)
    training: TrainingParameters = Field(default_factory=lambda: TrainingParameters(epochs=5))
    seeds: int = Field(3, ge=1, le=100, description="corpora, each with swaps and a training of its own")
    first_seed: int = Field(0, ge=0, lt=2**31, description="of the corpora; those after it count up")
    fit: FitParameters = Field(default_factory=FitParameters)
    damping: Damping = Field(Damping(), description="added to the eigenvalues before they are inverted")
    compute: ComputeParameters = Field(default_factory=ComputeParameters)
    cluster: str = Field("none", description="auto, local, none, or tcp://host:port of a Dask scheduler")

    @field_validator("cut")
    @classmethod
    def _document_by_document(cls, cut: CutParameters) -> CutParameters:
        if cut.packing != "document":
            raise ValueError(
                f"packing: expected document, found {cut.packing}, with which a sequence would hold the answers of "
                "several documents and be nobody's. Leave it out."
            )
        return cut


@flow(
    name="mislabelled-text", flow_run_name="mislabelled text in {parameters.directory}", validate_parameters=True,
    **EXPLAINED,
)  # fmt: skip
def mislabelled_text(parameters: MislabelledTextParameters, command: str = "") -> InspectionStudy:
    """Per seed: swapped answers, a model taught them, self-influences, an inspection; what is there is kept.

    Args:
        command: what the page says the study was asked for with
    """
    root = Path(parameters.directory).expanduser().resolve()
    inspected = []
    for seed in range(parameters.first_seed, parameters.first_seed + parameters.seeds):
        folder = root / f"seed-{seed}"
        corpus = folder / "corpus.parquet"
        swap_answers(
            parameters.inputs, corpus, parameters.swap.model_copy(update={"seed": parameters.swap.seed + seed})
        )
        training = parameters.training.model_copy(update={"seed": parameters.training.seed + seed})
        store, model = str(folder / "store"), str(folder / "model")
        train(
            TrainParameters(
                store=store,
                directory=model,
                start=parameters.model,
                shape=parameters.shape,
                corpus=CorpusParameters(inputs=(str(corpus),), **parameters.cut.model_dump()),
                training=training,
                cluster=parameters.cluster,
            )
        )
        asked = SelfInfluenceParameters(
            store=store,
            model=ModelParameters(name=model),
            fit=parameters.fit,
            damping=parameters.damping,
            compute=parameters.compute,
            cluster=parameters.cluster,
        )
        factors_id, _ = self_influence(asked)
        answer_influence(asked)
        answer_trajectory(asked)
        inspected.append(inspect_corpus(open_store(store), Path(model), factors_id))
    return InspectionStudy(Path(parameters.inputs[0]).name, tuple(inspected), command)
