"""Factors stage: EK-FAC of every tracked module, from sums over blocks of a uniform sample of the corpus.

factors/<fit_id>/
  <k>.basis.safetensors         Q_S, Q_A and K-FAC's eigenvalues of module k
  <k>.eigenvalues.safetensors   Λ of module k
  manifest.json                 written last: the fit is complete or absent
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from storage.checkpoints import load_model, model_fingerprint
from storage.digests import code_revision, digest_of
from storage.factors import Fit, complete_fit, fit_path, has_fit
from storage.sequences import all_sequence_ids, corpus_fingerprint, corpus_parts, read_tokens
from storage.store import Store
from storage.tensors import read_tensors, write_tensors
from tasks.compute import ComputeParameters, dtype_of
from tasks.fanout import Workers, fan_out
from tasks.influence.batches import TokenSequence, token_batches
from tasks.influence.covariance import CovarianceSums, add_covariances, covariance_sums
from tasks.influence.ekfac import Eigenbasis, eigenbasis, eigenvalue_sums
from tasks.influence.modules import TrackedModule, select_modules
from tasks.influence.objectives import sampled_token_loss, true_token_loss
from tasks.influence.sweep import sweep
from tasks.sampling import uniform_sample
from tasks.stage import stage

BLOCK = 1024  # sequences per job: the unit of resumption; fixed, so that no sum depends on the workers
# Padded positions per pass. Fixed, because a label's draw compares a random number with rounded probabilities:
# with free batch sizes 1 label in 60,550 came out differently and moved single layer influences by 1 %.
PASS = 4096


class FitParameters(BaseModel):
    """What the Gauss-Newton matrix is approximated from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    modules: str = Field("mlp", description="mlp, attention, all, or a regular expression on module names")
    sequences: int = Field(10_000, ge=1, le=100_000_000, description="sequences of the fit, a uniform sample")
    fisher: Literal["sampled", "empirical"] = Field(
        "sampled", description="labels: drawn from the model (true Fisher), or the corpus's own tokens"
    )
    seed: int = Field(0, ge=0, description="of the sample and the labels")


@dataclass(frozen=True)
class SumJob:
    """One block of sequences to sum over."""

    store: Store
    model: Path
    fit_id: str
    block: int
    sequence_ids: tuple[int, ...]
    parameters: FitParameters
    compute: ComputeParameters


@stage("factors")
def fit_factors(
    store: Store, model: Path, parameters: FitParameters, compute: ComputeParameters, workers: Workers
) -> str:
    """Fit EK-FAC where it is missing; returns the fit's id."""
    parts = corpus_parts(store)
    made_from = {
        "model": model_fingerprint(model),
        "corpus": corpus_fingerprint(parts),
        "parameters": parameters.model_dump(),
        "precision": str(dtype_of(compute)),
        "code": code_revision(),
    }
    fit_id = f"fit-{digest_of(made_from)[:8]}"
    if has_fit(store, fit_id):
        return fit_id
    chosen = uniform_sample(all_sequence_ids(parts), parameters.sequences, parameters.seed)
    blocks = np.array_split(chosen, range(BLOCK, len(chosen), BLOCK))
    jobs = [SumJob(store, model, fit_id, k, tuple(ids.tolist()), parameters, compute) for k, ids in enumerate(blocks)]
    run = partial(fan_out, workers.model, resources=workers.model_resources)
    modules = select_modules(load_model(model), parameters.modules)
    run(sum_covariances, jobs, "covariances")
    for k in range(len(modules)):
        _write_basis(store, fit_id, k, len(jobs))
    run(sum_eigenvalues, jobs, "eigenvalues")
    for k in range(len(modules)):
        _write_eigenvalues(store, fit_id, k, len(jobs), len(chosen))
    complete_fit(store, Fit(fit_id, tuple(asdict(m) for m in modules), len(chosen), made_from))
    return fit_id


def _passes(job: SumJob):
    model = load_model(job.model)
    modules = select_modules(model, job.parameters.modules)
    tokens = read_tokens(job.store, np.array(job.sequence_ids))
    sequences = [TokenSequence(i, tokens[i]) for i in job.sequence_ids]
    objective = (
        true_token_loss
        if job.parameters.fisher == "empirical"
        else partial(sampled_token_loss, seed=job.parameters.seed)
    )
    stream = token_batches(sequences, PASS, model.device)
    return modules, sweep(model, modules, stream, objective, dtype_of(job.compute))


def sum_covariances(job: SumJob) -> None:
    """Write one block's Σ ā āᵀ and Σ δ δᵀ, all modules in one file per module."""
    if fit_path(job.store, job.fit_id, f"covariance-{job.block}-0").exists():
        return
    modules, passes = _passes(job)
    sums = covariance_sums(passes, modules)
    for k, module in reversed(list(enumerate(modules))):  # module 0 last: its file says that the block is complete
        total = sums[module.name]
        write_tensors(
            job.store,
            fit_path(job.store, job.fit_id, f"covariance-{job.block}-{k}"),
            {
                "inputs": total.inputs,
                "deltas": total.deltas,
                "counts": torch.tensor([total.positions, total.sequences]),
            },
        )


def _write_basis(store: Store, fit_id: str, k: int, n_blocks: int) -> None:
    path = fit_path(store, fit_id, f"{k}.basis")
    parts = [fit_path(store, fit_id, f"covariance-{block}-{k}") for block in range(n_blocks)]
    if path.exists():
        return
    loaded = (read_tensors(part) for part in parts)
    basis = eigenbasis(add_covariances(CovarianceSums(t["inputs"], t["deltas"], *t["counts"].tolist()) for t in loaded))
    write_tensors(store, path, {"out": basis.out, "inp": basis.inp, "kfac": basis.kfac_eigenvalues})


def sum_eigenvalues(job: SumJob) -> None:
    """Write one block's Σ (Q_Sᵀ ∇W Q_A)² of every module."""
    path = fit_path(job.store, job.fit_id, f"eigenvalues-{job.block}")
    if path.exists():
        return
    modules, passes = _passes(job)
    where = load_model(job.model).device
    sums = eigenvalue_sums(passes, modules, _bases(job.store, job.fit_id, modules, where))
    write_tensors(job.store, path, {str(k): sums[module.name] for k, module in enumerate(modules)})


def _bases(store: Store, fit_id: str, modules: list[TrackedModule], device: torch.device) -> dict[str, Eigenbasis]:
    bases = {}
    for k, module in enumerate(modules):
        t = read_tensors(fit_path(store, fit_id, f"{k}.basis"))
        bases[module.name] = Eigenbasis(t["out"].to(device), t["inp"].to(device), t["kfac"].to(device))
    return bases


def _write_eigenvalues(store: Store, fit_id: str, k: int, n_blocks: int, n_sequences: int) -> None:
    path = fit_path(store, fit_id, f"{k}.eigenvalues")
    if path.exists():
        return
    parts = [read_tensors(fit_path(store, fit_id, f"eigenvalues-{b}"), [str(k)])[str(k)] for b in range(n_blocks)]
    mean = torch.stack(parts).double().sum(0) / n_sequences
    write_tensors(store, path, {"eigenvalues": mean.float()})
