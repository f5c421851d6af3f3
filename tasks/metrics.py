"""From a fit on disk to the metric of a method: (G + λI)⁻¹ per module, and the identity of that choice."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from storage.checkpoints import model_fingerprint
from storage.digests import digest_of
from storage.errors import MismatchError
from storage.factors import Fit, fit_path
from storage.store import Store
from storage.tensors import read_tensors
from tasks.influence.ekfac import IdentityMetric, Metric, relative_damping
from tasks.influence.modules import TrackedModule

GradientMethod = Literal["ekfac", "kfac", "identity"]
LexicalMethod = Literal["bm25", "tfidf", "random"]
CURVED = ("ekfac", "kfac")  # the methods that need factors


class Damping(BaseModel):
    """λ: relative to mean(Λ) of each module, or one absolute value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    relative: float | None = Field(0.1, gt=0, le=1e6, description="λ = relative · mean(Λ), per module")
    absolute: float | None = Field(None, gt=0, description="λ itself, the same for every module")

    @model_validator(mode="after")
    def _one(self) -> Damping:
        if (self.relative is None) == (self.absolute is None):
            raise ValueError("damping: expected either relative or absolute, found both or neither. Set one to null.")
        return self


def metric_id(fit_id: str, method: str, damping: Damping) -> str:
    """The `factors_id` of the tables: a fit seen through a method and a damping."""
    prefix = {"ekfac": "ek", "kfac": "kf"}.get(method, "id")
    return f"{prefix}-{digest_of([fit_id, method, damping.model_dump() if method in CURVED else None])[:8]}"


def load_metrics(
    store: Store,
    fit: Fit | None,
    model: Path,
    modules: list[TrackedModule],
    method: str,
    damping: Damping,
    device: torch.device,
) -> dict[str, Metric | IdentityMetric]:
    """The metric of each module under a method; factors of another model are refused."""
    if method not in CURVED or fit is None:
        return {module.name: IdentityMetric() for module in modules}
    require_fit_of(fit, model)
    metrics: dict[str, Metric | IdentityMetric] = {}
    position = {entry["name"]: k for k, entry in enumerate(fit.modules)}
    for module in modules:
        k = position[module.name]
        basis = read_tensors(fit_path(store, fit.fit_id, f"{k}.basis"))
        if method == "ekfac":
            values = read_tensors(fit_path(store, fit.fit_id, f"{k}.eigenvalues"))["eigenvalues"]
        else:
            values = basis["kfac"]
        strength = damping.absolute or relative_damping(values, damping.relative or 0.0)
        metrics[module.name] = Metric(basis["out"], basis["inp"], values, strength).to(device)
    return metrics


def require_fit_of(fit: Fit, model: Path) -> None:
    """Refuse factors of another model."""
    found = model_fingerprint(model)
    if fit.made_from["model"] != found:
        raise MismatchError(
            f"factors {fit.fit_id}",
            expected=f"model {fit.made_from['model']}, which they were fitted on",
            found=f"model {found} in {model}",
            remedy="Fit again: headwater fit --store PATH --model MODEL",
        )
