"""The attribution methods by name, by what they need, and the parameters that they have."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.metrics import CURVED, Damping, GradientMethod

# What needs one pass of the model over the candidates (and before it a solver), what needs one of every checkpoint, and
# what needs texts only.
SolvedMethod = Literal["cg", "lissa", "arnoldi", "datainf", "diagonal", "exact"]
TrajectoryMethod = Literal["tracin", "embedding", "tracin+embedding"]
TextMethod = Literal["bm25plus", "random_target"]
FilterMethod = Literal["bm25", "tfidf", "lucene"]
Method = Literal[GradientMethod, SolvedMethod, TrajectoryMethod, TextMethod, FilterMethod, "random"]

SOLVED: tuple[str, ...] = get_args(SolvedMethod)
GRADIENT: tuple[str, ...] = (*get_args(GradientMethod), *SOLVED)
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


class SolverParameters(BaseModel):
    """How far the methods go that solve (G + λI) x = ∇L_q by products of G; λ is that of EK-FAC, module by module."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sequences: int = Field(1000, ge=1, le=10_000_000, description="that G is the mean of: a uniform sample")
    iterations: int = Field(20, ge=1, le=10_000, description="of cg, at most, each a pass over the sample")
    tolerance: float = Field(0.01, gt=0, lt=1, description="of cg: residual relative to the gradient, where it stops")
    depth: int = Field(2000, ge=1, le=1_000_000, description="of lissa: terms of the series, at most")
    rounds: int = Field(1, ge=1, le=1000, description="of lissa: series whose mean is taken")
    batch: int = Field(32, ge=1, le=4096, description="of lissa: sequences of the random batch of a term")
    alpha: float | None = Field(
        None, gt=0, description="of lissa: its step; none: below 2 / (σ_max + λ), from the largest eigenvalue"
    )
    eigenpairs: int = Field(32, ge=1, le=4096, description="of arnoldi: leading eigenpairs that are kept")
    steps: int = Field(64, ge=2, le=8192, description="of arnoldi: products that they are found from")


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
    solver: SolverParameters = Field(default_factory=SolverParameters)

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
        return bool(self.among((*CURVED, *SOLVED)))
