"""What the scoring and the results of one run share: references and small values, never tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from storage.prompts import Prompt
from storage.store import Store
from tasks.compute import ComputeParameters
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
    method: str
    methods: tuple[str, ...]
    damping: Damping
    rescore: int
    compute: ComputeParameters
    prompts: tuple[Prompt, ...]

    @property
    def curvature(self) -> Curvature:
        """What the self-influences of this run depend on."""
        return Curvature(
            self.store,
            self.model,
            self.modules,
            self.fit_id,
            self.factors_id,
            self.method,
            self.damping,
            self.compute,
        )
