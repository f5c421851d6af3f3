"""The attribution methods by name, by what they need, and the parameters that they have."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.metrics import CURVED, Damping, GradientMethod

# What needs one pass of the model over the candidates, what needs one of every checkpoint, and what needs texts only.
TrajectoryMethod = Literal["tracin", "embedding", "tracin+embedding"]
TextMethod = Literal["bm25plus", "random_target"]
FilterMethod = Literal["bm25", "tfidf", "lucene"]
Method = Literal[GradientMethod, TrajectoryMethod, TextMethod, FilterMethod, "random"]

GRADIENT: tuple[str, ...] = get_args(GradientMethod)
TRAJECTORY: tuple[str, ...] = get_args(TrajectoryMethod)
TEXT: tuple[str, ...] = get_args(TextMethod)
FILTER: tuple[str, ...] = get_args(FilterMethod)

Group = Annotated[str, Field(pattern=r"^(all|blocks|embedding|head|other|block \d+)$")]


class TrajectoryParameters(BaseModel):
    """Which checkpoints TracIn adds up and how; which hidden states the method `embedding` compares.

    The defaults are those of Akyürek et al. 2022 (arXiv 2205.11482): cosines, averaged over checkpoints; embeddings
    from layer 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoints: str | None = Field(None, description="directory of a training's checkpoints; none: the model alone")
    first_step: int = Field(1, ge=0, description="checkpoints of earlier optimizer steps are left out")
    parameter_groups: tuple[Group, ...] = Field(
        ("all",), min_length=1, description="of TracIn: all, embedding, head, blocks, block N, other; may be several"
    )
    normalise: Literal["unit", "local", "none"] = Field(
        "unit", description="unit: cosine of the groups together; local: sum of their cosines; none: dot product"
    )
    weights: Literal["mean", "learning_rate"] = Field(
        "mean", description="of the checkpoints: their mean, or the sum by learning rate of Pruthi et al. 2020"
    )
    second_moments: bool = Field(
        False, description="divide gradients by the root of the optimizer's second moments at the checkpoint"
    )
    hidden_layers: tuple[int, ...] = Field(
        (0,), min_length=1, description="hidden states of the method `embedding`, 0 … n layers; several are joined"
    )


class MethodParameters(BaseModel):
    """How a sequence's influence on a query is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Method = Field("ekfac", description="of the run: what has layers and tokens is stored with them")
    beside: tuple[Method, ...] = Field((), description="further methods for comparison; they fill `influences` only")
    damping: Damping = Field(Damping(), description="added to the eigenvalues before they are inverted")
    rank: int = Field(32, ge=1, le=4096, description="singular directions kept of each query gradient and module")
    rescore: int = Field(
        100, ge=0, le=100_000, description="top sequences per query that are scored again exactly, with token shares"
    )
    trajectory: TrajectoryParameters = Field(default_factory=TrajectoryParameters)

    @model_validator(mode="after")
    def _once(self) -> MethodParameters:
        asked = (self.method, *self.beside)
        if len(set(asked)) < len(asked):
            twice = next(name for name in asked if asked.count(name) > 1)
            raise ValueError(f"methods: expected each once, found {twice} twice. Name it once.")
        return self

    @property
    def every(self) -> tuple[str, ...]:
        """All methods, the run's own first."""
        return (self.method, *self.beside)

    def among(self, kinds: tuple[str, ...]) -> tuple[str, ...]:
        """Those of some kinds, the run's own first."""
        return tuple(name for name in self.every if name in kinds)

    @property
    def curved(self) -> bool:
        """Whether any of them needs factors."""
        return bool(self.among(CURVED))
