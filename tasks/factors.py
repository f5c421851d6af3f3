"""Factors stage: EK-FAC of every tracked module, from sums over blocks of a uniform sample of the corpus.

factors/<fit_id>/
  <k>.basis.safetensors         Q_S, Q_A and K-FAC's eigenvalues of module k
  <k>.eigenvalues.safetensors   Λ of module k
  manifest.json                 written last: the fit is complete or absent

Everything is kept per module, so that a worker holds the matrices of one group of modules beside the model:
all of them where memory allows, a single module where it does not, for one pass over the sample per group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from storage.checkpoints import device, empty_model, load_model, model_fingerprint
from storage.digests import code_revision, digest_of
from storage.factors import Fit, complete_fit, drop_sums, fit_path, has_fit
from storage.locks import locked
from storage.sequences import all_sequence_ids, corpus_fingerprint, corpus_parts, pin_corpus, read_tokens
from storage.store import Store
from storage.tensors import read_tensors, write_tensors
from tasks.compute import ComputeParameters, dtype_of
from tasks.fanout import Workers, fan_out
from tasks.influence.batches import Batch, TokenSequence, token_batches
from tasks.influence.block_diagonal import BlockDiagonal
from tasks.influence.covariance import CovarianceSums, add_covariances, covariance_sums
from tasks.influence.ekfac import eigenbasis, eigenvalue_sums
from tasks.influence.errors import InfluenceError
from tasks.influence.footprint import covariance_bytes, metric_bytes, module_groups
from tasks.influence.modules import TrackedModule, select_modules
from tasks.influence.sweep import Objective, sweep
from tasks.machine import matrix_budget
from tasks.metrics import fit_objective, read_eigenbasis, write_eigenbasis
from tasks.sampling import uniform_sample
from tasks.stage import stage

# Sequences per job, the unit of resumption: a function of the fit's size alone, so that no sum depends on the workers,
# and never more than so many jobs, because each leaves its sums of every module on disk until the fit is complete.
SMALLEST_BLOCK, MOST_BLOCKS = 1024, 16
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
    blocks: int = Field(1, ge=1, le=64, description="diagonal blocks of A and S: less memory, a coarser basis")
    seed: int = Field(0, ge=0, description="of the sample and the labels")

    @property
    def objective(self) -> Objective:
        """What is differentiated."""
        return fit_objective(self.fisher, self.seed)


@dataclass(frozen=True)
class SumJob:
    """One block of sequences to sum over, for one group of modules."""

    store: Store
    model: Path
    fit_id: str
    block: int
    sequence_ids: tuple[int, ...]
    modules: tuple[int, ...]  # by their number in the fit
    parameters: FitParameters
    compute: ComputeParameters


@dataclass(frozen=True)
class DecomposeJob:
    """The eigendecomposition of one module's summed blocks."""

    store: Store
    fit_id: str
    module: int
    name: str
    n_blocks: int


@stage("factors")
def fit_factors(
    store: Store, model: Path, parameters: FitParameters, compute: ComputeParameters, workers: Workers
) -> str:
    """Fit EK-FAC where it is missing; returns the fit's id."""
    store = pin_corpus(store)
    parts = corpus_parts(store)
    made_from = {
        "model": model_fingerprint(model),
        "corpus": corpus_fingerprint(parts),
        "parameters": parameters.model_dump(),
        "precision": str(dtype_of(compute)),
        "passes": [SMALLEST_BLOCK, MOST_BLOCKS, PASS],
        "code": code_revision(),
    }
    fit_id = f"fit-{digest_of(made_from)[:8]}"
    with locked(store, fit_id):  # also to look: who deletes a fit holds it too
        if not has_fit(store, fit_id):
            _fit(store, model, parameters, compute, workers, fit_id, made_from)
    drop_sums(store, fit_id)  # also those of a run that was killed between completing the fit and this
    return fit_id


def _fit(
    store: Store,
    model: Path,
    parameters: FitParameters,
    compute: ComputeParameters,
    workers: Workers,
    fit_id: str,
    made_from: dict[str, Any],
) -> None:
    modules = select_modules(empty_model(model), parameters.modules)
    chosen = uniform_sample(all_sequence_ids(corpus_parts(store)), parameters.sequences, parameters.seed)
    size = block_size(len(chosen))
    blocks = [tuple(ids.tolist()) for ids in np.array_split(chosen, range(size, len(chosen), size))]
    run = partial(fan_out, workers.model, resources=workers.model_resources)

    def sum_jobs(bytes_of: Callable[[TrackedModule, int], int]) -> list[SumJob]:
        groups = module_groups([bytes_of(m, parameters.blocks) for m in modules], matrix_budget())
        return [
            SumJob(store, model, fit_id, block, ids, tuple(group), parameters, compute)
            for group in groups
            for block, ids in enumerate(blocks)
        ]

    run(sum_covariances, sum_jobs(covariance_bytes), "covariances")
    run(
        decompose,
        [DecomposeJob(store, fit_id, k, m.name, len(blocks)) for k, m in enumerate(modules)],
        "eigenbases",
    )
    run(sum_eigenvalues, sum_jobs(metric_bytes), "eigenvalues")
    for k in range(len(modules)):
        _write_eigenvalues(store, fit_id, k, len(blocks), len(chosen))
    described = tuple(asdict(m) | _ranks(store, fit_id, k) for k, m in enumerate(modules))
    complete_fit(store, Fit(fit_id, described, len(chosen), made_from))


def block_size(sequences: int) -> int:
    """Sequences of one job of a fit on so many."""
    return max(SMALLEST_BLOCK, -(-sequences // MOST_BLOCKS))


def _missing(job: SumJob, kind: str) -> dict[int, TrackedModule]:
    """The modules of a job whose sums over its block are not there yet."""
    modules = select_modules(load_model(job.model), job.parameters.modules)
    return {k: modules[k] for k in job.modules if not fit_path(job.store, job.fit_id, _sums(kind, job, k)).exists()}


def _sums(kind: str, job: SumJob, k: int) -> str:
    return f"{kind}-{job.block}-{k}"


def _passes(job: SumJob, modules: list[TrackedModule]):
    model = load_model(job.model)
    return sweep(model, modules, _batches(job, model.device), job.parameters.objective, dtype_of(job.compute))


def _batches(job: SumJob, where: torch.device) -> Iterator[Batch]:
    """A block's batches, whose tokens are read some sequences at a time."""
    for start in range(0, len(job.sequence_ids), SMALLEST_BLOCK):
        ids = job.sequence_ids[start : start + SMALLEST_BLOCK]
        tokens = read_tokens(job.store, np.array(ids))
        yield from token_batches([TokenSequence(i, tokens[i]) for i in ids], PASS, where)


def sum_covariances(job: SumJob) -> None:
    """Write Σ ā āᵀ and Σ δ δᵀ over one block, a file per module."""
    missing = _missing(job, "covariance")
    if not missing:
        return
    modules = list(missing.values())
    sums = covariance_sums(_passes(job, modules), modules, job.parameters.blocks)
    for k, module in missing.items():
        total = sums.pop(module.name)
        sides = {"inputs": total.inputs.blocks, "deltas": total.deltas.blocks}
        tensors = {f"{side}.{n}": block for side, found in sides.items() for n, block in enumerate(found)}
        counts = torch.tensor([total.positions, total.sequences])
        write_tensors(
            job.store, fit_path(job.store, job.fit_id, _sums("covariance", job, k)), {**tensors, "counts": counts}
        )


def decompose(job: DecomposeJob) -> None:
    """Add one module's blocks up and write its eigenbasis."""
    if fit_path(job.store, job.fit_id, f"{job.module}.basis").exists():
        return
    parts = (
        read_tensors(fit_path(job.store, job.fit_id, f"covariance-{block}-{job.module}"))
        for block in range(job.n_blocks)
    )
    try:
        basis = eigenbasis(add_covariances(_covariances(part) for part in parts))
    except InfluenceError as error:
        raise InfluenceError(f"module {job.name}: {error}") from error
    write_eigenbasis(job.store, job.fit_id, job.module, basis)


def _covariances(tensors: dict[str, torch.Tensor]) -> CovarianceSums:
    def side(name: str) -> BlockDiagonal:
        found = [tensors[f"{name}.{n}"] for n in range(len(tensors)) if f"{name}.{n}" in tensors]
        return BlockDiagonal(tuple(found)).to(device())

    return CovarianceSums(side("inputs"), side("deltas"), *tensors["counts"].tolist())


def sum_eigenvalues(job: SumJob) -> None:
    """Write Σ (Q_Sᵀ ∇W Q_A)² over one block, a file per module."""
    missing = _missing(job, "eigenvalues")
    if not missing:
        return
    where = load_model(job.model).device
    modules = list(missing.values())
    bases = {m.name: read_eigenbasis(job.store, job.fit_id, k, with_kfac=False).to(where) for k, m in missing.items()}
    sums = eigenvalue_sums(_passes(job, modules), modules, bases)
    for k, module in missing.items():
        path = fit_path(job.store, job.fit_id, _sums("eigenvalues", job, k))
        write_tensors(job.store, path, {"eigenvalues": sums[module.name]})


def _write_eigenvalues(store: Store, fit_id: str, k: int, n_blocks: int, n_sequences: int) -> None:
    path = fit_path(store, fit_id, f"{k}.eigenvalues")
    if path.exists():
        return
    total: torch.Tensor | None = None
    for block in range(n_blocks):  # in float64 and in this order, so that the number of workers does not show
        part = read_tensors(fit_path(store, fit_id, f"eigenvalues-{block}-{k}"))["eigenvalues"].double()
        total = part if total is None else total.add_(part)
    assert total is not None  # a corpus has sequences, so there is a block
    write_tensors(store, path, {"eigenvalues": (total / n_sequences).float()})


def _ranks(store: Store, fit_id: str, k: int) -> dict[str, int]:
    s_rank, a_rank = read_tensors(fit_path(store, fit_id, f"{k}.basis"), ["ranks"])["ranks"].tolist()
    return {"output_rank": s_rank, "input_rank": a_rank}
