"""What the scoring and the results of one run share: references and small values, never tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from storage.prompts import Prompt
from storage.store import Store
from storage.trajectory import Checkpoint
from tasks.compute import ComputeParameters
from tasks.methods import GRADIENT, SOLVED, MethodParameters
from tasks.metrics import Damping
from tasks.selves import Curvature


@dataclass(frozen=True)
class Scoring:
    """What all jobs of one run share."""

    store: Store
    run_id: str
    model: Path
    modules: str
    fit_id: str | None
    factors_id: str
    measured: MethodParameters
    compute: ComputeParameters
    prompts: tuple[Prompt, ...]
    checkpoints: tuple[Checkpoint, ...] = ()  # of the methods that follow the training, ascending by step

    @property
    def method(self) -> str:
        """The run's own method."""
        return self.measured.method

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that share one pass of the model over the candidates, the run's own first."""
        return self.measured.among(GRADIENT)

    @property
    def listed(self) -> tuple[str, ...]:
        """The other methods."""
        return tuple(name for name in self.measured.every if name not in GRADIENT)

    @property
    def damping(self) -> Damping:
        """λ of the curved methods."""
        return self.measured.damping

    @property
    def curvature(self) -> Curvature:
        """What the self-influences of this run depend on: EK-FAC's metric where a solver has none to multiply by."""
        return Curvature(
            self.store,
            self.model,
            self.modules,
            self.fit_id,
            self.factors_id,
            "ekfac" if self.method in SOLVED else self.method,
            self.damping,
            self.compute,
        )
