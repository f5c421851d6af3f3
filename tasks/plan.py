"""What a trace will take before it runs: memory, disk and time of each stage, for this model, corpus and machine.

Bytes are counted from shapes. Seconds are multiplications over measured rates: a short pass of the real model and
two matrix products, both in the precision of the run. A plan that cannot fit is refused with what would make it fit.

Letters: o output width, i homogeneous input width, t positions of a sequence.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from storage.checkpoints import context_length, empty_model, load_model
from storage.errors import HeadwaterError
from storage.sequences import corpus_parts, typical_length
from storage.store import Store
from tasks.compute import ComputeParameters, dtype_of
from tasks.factors import PASS, FitParameters, block_size
from tasks.influence.batches import TokenSequence, collate
from tasks.influence.block_diagonal import widths
from tasks.influence.footprint import covariance_bytes, decomposition_bytes, metric_bytes, module_groups
from tasks.influence.gradients import HELD
from tasks.influence.modules import TrackedModule, select_modules
from tasks.influence.objectives import true_token_gradient
from tasks.influence.sweep import sweep
from tasks.machine import GIB, PeakMemory, free_bytes, matrix_budget

PROBE = 4  # sequences of the timed pass
SIDE = 1024  # of the timed matrices


class PlanRefused(HeadwaterError):
    """What was asked for does not fit into this machine."""


@dataclass(frozen=True)
class Workload:
    """How much is asked of the model."""

    fit_sequences: int
    queries: int
    candidates: int  # sequences scored, all queries together
    rescored: int  # (query, sequence) pairs
    positions: int  # of a sequence, on average
    longest: int  # of any sequence: what memory must hold
    rank: int


@dataclass(frozen=True)
class PlannedStage:
    """One row of the plan; memory is that of one worker with the model, disk what stays or passes through the store."""

    stage: str
    passes: int
    tokens: int
    seconds: float
    memory_bytes: int
    disk_bytes: int


@dataclass(frozen=True)
class Rates:
    """What this machine was measured to do."""

    seconds_per_token: float  # forward and activation-only backward
    seconds_per_token_float32: float
    product: float  # multiplications per second in the precision of the run
    product_float32: float
    eigenvalues: float  # seconds of a float64 eigendecomposition of width SIDE
    bytes_per_token: float  # activations and logits of one pass


def workload(
    store: Store | None, model: Path, fit: FitParameters, queries: int, candidates: int, rescore: int, rank: int
) -> Workload:
    """The work of a trace; a corpus that is not known yet is taken to have enough sequences of the whole context."""
    parts = corpus_parts(store) if store else []
    n = sum(part.n_sequences for part in parts)
    positions = typical_length(parts) if parts else context_length(model)
    longest = max((part.sequence_length for part in parts), default=positions)
    scored = min(queries * candidates, n) if n else queries * candidates
    fitted = min(fit.sequences, n) if n else fit.sequences
    per_query = min(2 * rescore, candidates, n) if n else min(2 * rescore, candidates)
    return Workload(fitted, queries, scored, queries * per_query, positions, longest, rank)


def require_room(model: Path, fit: FitParameters) -> int:
    """The bytes that are free; a model whose weights and largest module pass them is refused before they are read."""
    empty = empty_model(model)
    modules = select_modules(empty, fit.modules)
    weights, room = 4 * sum(p.numel() for p in empty.parameters()), free_bytes()
    if weights > room:
        raise PlanRefused(
            f"plan for {model}",
            expected=f"weights within the {room / GIB:.1f} GiB that are free",
            found=f"{weights / GIB:.1f} GiB in float32",
            remedy="Use a machine with more memory.",
        )
    largest = max(modules, key=lambda m: decomposition_bytes(m, fit.blocks))
    needed = weights + decomposition_bytes(largest, fit.blocks)
    if needed > room:
        blocks = next((b for b in range(fit.blocks, 65) if weights + decomposition_bytes(largest, b) <= room), None)
        raise PlanRefused(
            f"plan for {model}, module {largest.name}",
            expected=f"its covariances and their decomposition beside the weights within {room / GIB:.1f} GiB",
            found=f"{needed / GIB:.1f} GiB",
            remedy=f"Use --blocks {blocks}." if blocks else "Leave it out of --modules, or use a larger machine.",
        )
    return room


def measure_rates(model: Path, modules: list[TrackedModule], positions: int, compute: ComputeParameters) -> Rates:
    """Time a short pass and matrix products of this machine; about ten seconds for a small model."""
    network, precision = load_model(model), dtype_of(compute)
    vocabulary = network.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    length = max(2, min(positions, PASS // PROBE))  # a probe must not be the pass that does not fit
    tokens = torch.randint(vocabulary, (PROBE, length), generator=generator).tolist()
    batch = collate([TokenSequence(k, row) for k, row in enumerate(tokens)], network.device)

    def seconds(dtype: torch.dtype) -> float:
        def once() -> None:
            for _ in sweep(network, modules, [batch], true_token_gradient, dtype):
                pass

        return _fastest(once, network.device) / batch.token_ids.numel()

    with PeakMemory(network.device) as peak:
        policy = seconds(precision)
    return Rates(
        policy,
        policy if precision == torch.float32 else seconds(torch.float32),
        _product_rate(precision, network.device),
        _product_rate(torch.float32, network.device),
        _fastest(_eigenvalues(network.device), network.device),
        peak.grown / batch.token_ids.numel(),
    )


def _product_rate(dtype: torch.dtype, device: torch.device) -> float:
    x = torch.ones(SIDE, SIDE, dtype=dtype, device=device)
    return SIDE**3 / _fastest(lambda: x @ x, device)


def _eigenvalues(device: torch.device):
    x = torch.randn(SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device)
    x = x + x.T
    return lambda: torch.linalg.eigh(x)


def _fastest(work, device: torch.device, rounds: int = 3) -> float:
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


def plan(
    model: Path,
    modules: list[TrackedModule],
    work: Workload,
    fit: FitParameters,
    compute: ComputeParameters,
    rates: Rates,
) -> list[PlannedStage]:
    """The stages that pass through the model, in their order."""
    weights = 4 * sum(p.numel() for p in load_model(model).parameters())
    budget, t = matrix_budget(), work.positions
    fit_tokens, tokens = work.fit_sequences * t, work.candidates * t

    def matrices(bytes_of) -> tuple[int, int]:
        sizes = [bytes_of(m, fit.blocks) for m in modules]
        groups = module_groups(sizes, budget)
        return len(groups), max(sum(sizes[k] for k in group) for group in groups)

    def sides(m: TrackedModule) -> list[int]:
        return [*widths(m.d_out, fit.blocks), *widths(m.columns, fit.blocks)]

    fit_pass = int(rates.bytes_per_token * max(PASS, work.longest))
    score_pass = int(rates.bytes_per_token * compute.batch_size * work.longest)
    gradients = 4 * max(m.d_out * m.columns for m in modules)
    covariance_groups, covariance_memory = matrices(covariance_bytes)
    metric_groups, metric_memory = matrices(metric_bytes)
    # Half of each symmetric product and its diagonal tiles; see tasks.influence.covariance.
    covariance_products = fit_tokens * sum(0.625 * w * w for m in modules for w in sides(m))
    rotation = sum(_rotation_products(m, t, fit.blocks) for m in modules)
    low_rank = sum(work.queries * work.rank * (m.d_out + m.columns) for m in modules)
    dense = sum(m.d_out * m.columns * (1 + work.queries / t) for m in modules)
    precondition = sum(2 * m.d_out * m.columns * (m.d_out + m.columns) for m in modules)
    n_blocks = -(-work.fit_sequences // block_size(work.fit_sequences))  # each leaves its sums until the fit is done
    return [
        PlannedStage(
            "covariances", covariance_groups, fit_tokens,
            fit_tokens * covariance_groups * rates.seconds_per_token + covariance_products / rates.product,
            weights + fit_pass + covariance_memory,
            n_blocks * sum(covariance_bytes(m, fit.blocks) for m in modules),
        ),
        PlannedStage(
            "eigenbases", 0, 0,
            rates.eigenvalues * sum((w / SIDE) ** 3 for m in modules for w in sides(m)),
            weights + max(decomposition_bytes(m, fit.blocks) for m in modules),
            sum(covariance_bytes(m, fit.blocks) + 4 * m.d_out * m.columns for m in modules),
        ),
        PlannedStage(
            "eigenvalues", metric_groups, fit_tokens,
            fit_tokens * (metric_groups * rates.seconds_per_token + rotation / rates.product),
            weights + fit_pass + metric_memory + min(gradients * max(1, PASS // t), 6 * HELD),
            n_blocks * 4 * sum(m.d_out * m.columns for m in modules),
        ),
        PlannedStage(
            "query gradients", 1, work.queries * t,
            work.queries * (t * rates.seconds_per_token_float32 + 2 * precondition / rates.product_float32),
            weights + max(metric_bytes(m, fit.blocks) for m in modules) + 4 * gradients,
            4 * sum(work.queries * work.rank * (m.d_out + m.columns) for m in modules),
        ),
        PlannedStage(
            "scores", metric_groups, tokens,
            tokens * (metric_groups * rates.seconds_per_token + (min(low_rank, dense) + rotation) / rates.product),
            weights + score_pass + metric_memory + 2 * gradients * compute.batch_size,
            4 * work.candidates * len(modules),
        ),
        PlannedStage(
            "token scores", 1, work.rescored * t,
            work.rescored * t * (
                rates.seconds_per_token_float32
                + sum(m.d_out * m.columns for m in modules) / rates.product_float32
            ) + work.queries * precondition / rates.product_float32,
            weights + score_pass + 4 * sum(m.d_out * m.columns for m in modules), 0,
        ),
    ]  # fmt: skip


def _rotation_products(m: TrackedModule, t: int, blocks: int) -> float:
    """Multiplications per position of a sequence's gradient in the eigenbasis; see tasks.influence.gradients."""
    out = m.d_out**2 * min(1, m.columns / t)
    inp = m.columns**2 * min(1, m.d_out / t)
    return m.d_out * m.columns + (out + inp) / blocks


def require_fit(stages: list[PlannedStage], compute: ComputeParameters, room: int) -> None:
    """Refuse a plan with a stage past `room`, the bytes that were free before the model was loaded."""
    worst = max(stages, key=lambda stage: stage.memory_bytes)
    if worst.memory_bytes > room:
        raise PlanRefused(
            f"plan, stage {worst.stage}",
            expected=f"at most the {room / GIB:.2f} GiB that are free",
            found=f"{worst.memory_bytes / GIB:.2f} GiB for one worker",
            remedy=f"Use --batch-size {max(1, compute.batch_size // 4)}, --blocks 2, a lower "
            "HEADWATER_MATRIX_MEMORY_GIB, or free memory.",
        )
