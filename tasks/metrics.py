"""From a fit on disk to the metric of a method: (G + λI)⁻¹ per module, and the identity of that choice."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from storage.checkpoints import model_fingerprint
from storage.digests import code_revision, digest_of
from storage.errors import MismatchError
from storage.factors import Fit, fit_path, read_fit
from storage.store import Store
from storage.tensors import read_tensors, tensor_names, write_tensors
from tasks.compute import ComputeParameters, dtype_of
from tasks.influence.block_diagonal import BlockDiagonal
from tasks.influence.ekfac import Eigenbasis, IdentityMetric, Metric, relative_damping
from tasks.influence.modules import TrackedModule
from tasks.influence.objectives import sampled_token_gradient, true_token_gradient
from tasks.influence.sweep import Objective

GradientMethod = Literal["ekfac", "kfac", "identity"]
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


def fit_objective(fisher: str, seed: int) -> Objective:
    """What a fit differentiates: the loss of the corpus's own tokens, or of tokens drawn from the model."""
    return true_token_gradient if fisher == "empirical" else partial(sampled_token_gradient, seed=seed)


def metric_id(
    fit_id: str | None, model: str, modules: str, method: str, damping: Damping, compute: ComputeParameters
) -> str:
    """The `factors_id` of the tables: a fit seen through a method and a damping.

    A method without curvature depends on the model's fingerprint, the modules, the precision and our code alone,
    whatever fit stands beside it and however the corpus grows.
    """
    if method in CURVED:
        assert fit_id is not None  # the flow fits before it asks
        prefix, source = {"ekfac": "ek", "kfac": "kf"}[method], [fit_id, method, damping.model_dump()]
    else:
        prefix, source = "id", [model, modules, str(dtype_of(compute)), code_revision(), method]
    return f"{prefix}-{digest_of(source)[:8]}"


def load_metric(
    store: Store, fit: Fit | None, module: TrackedModule, method: str, damping: Damping, device: torch.device
) -> Metric | IdentityMetric:
    """The metric of one module under a method."""
    if method not in CURVED:
        return IdentityMetric()
    assert fit is not None  # a curved method has been fitted before its metric is asked for
    k = next(k for k, entry in enumerate(fit.modules) if entry["name"] == module.name)
    basis = read_eigenbasis(store, fit.fit_id, k)
    values = basis.kfac_eigenvalues
    if method == "ekfac":
        values = read_tensors(fit_path(store, fit.fit_id, f"{k}.eigenvalues"))["eigenvalues"]
    strength = damping.absolute or relative_damping(values, damping.relative or 0.0, module.name)
    return Metric(basis.out, basis.inp, values, strength).to(device)


def write_eigenbasis(store: Store, fit_id: str, k: int, basis: Eigenbasis) -> None:
    """Keep the eigenvectors of module k, block by block, with K-FAC's eigenvalues."""
    sides = {"out": basis.out.blocks, "inp": basis.inp.blocks}
    blocks = {f"{side}.{n}": block for side, found in sides.items() for n, block in enumerate(found)}
    ranks = torch.tensor(basis.ranks)
    write_tensors(
        store, fit_path(store, fit_id, f"{k}.basis"), {**blocks, "kfac": basis.kfac_eigenvalues, "ranks": ranks}
    )


def read_eigenbasis(store: Store, fit_id: str, k: int, with_kfac: bool = True) -> Eigenbasis:
    """The eigenbasis of module k of a fit, complete or under way; K-FAC's eigenvalues are empty where unwanted."""
    path = fit_path(store, fit_id, f"{k}.basis")
    tensors = read_tensors(path, [name for name in tensor_names(path) if with_kfac or name != "kfac"])
    out, inp = (
        BlockDiagonal(tuple(tensors[f"{side}.{n}"] for n in range(len(tensors)) if f"{side}.{n}" in tensors))
        for side in ("out", "inp")
    )
    s_rank, a_rank = tensors["ranks"].tolist()
    return Eigenbasis(out, inp, tensors.get("kfac", torch.empty(0)), (s_rank, a_rank))


def fit_of(store: Store, fit_id: str | None, model: Path) -> Fit | None:
    """The fit of that name, if there is to be one; factors of another model are refused."""
    if fit_id is None:
        return None
    fit = read_fit(store, fit_id)
    found = model_fingerprint(model)
    if fit.made_from["model"] != found:
        raise MismatchError(
            f"factors {fit.fit_id}",
            expected=f"model {fit.made_from['model']}, which they were fitted on",
            found=f"model {found} in {model}",
            remedy="Fit again: headwater fit --store PATH --model MODEL",
        )
    return fit


def rank_notes(fit: Fit | None) -> dict[str, str]:
    """What the coverage table must say of modules whose covariances lack a tenth of their width or more."""
    notes = {}
    for entry in fit.modules if fit else ():
        width_in, width_out = entry["d_in"] + entry["bias"], entry["d_out"]
        if entry["input_rank"] < 0.9 * width_in or entry["output_rank"] < 0.9 * width_out:
            notes[entry["name"]] = (
                f"; {fit.n_sequences:,} fitted sequences span {entry['input_rank']:,} of {width_in:,} input and "
                f"{entry['output_rank']:,} of {width_out:,} output directions: in the others the damping stands alone"
            )
    return notes
