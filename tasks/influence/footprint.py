"""What a step holds per module, in bytes: behind groups of modules that fit in memory, and behind the plan of `check`.

Letters: o output width, i homogeneous input width.
"""

from __future__ import annotations

from collections.abc import Sequence

from tasks.influence.block_diagonal import widths
from tasks.influence.modules import TrackedModule

FLOAT32, FLOAT64 = 4, 8


def covariance_bytes(module: TrackedModule, blocks: int = 1) -> int:
    """A and S, or their eigenvectors: o² + i² numbers, divided by the blocks."""
    return FLOAT32 * sum(width**2 for side in (module.d_out, module.columns) for width in widths(side, blocks))


def metric_bytes(module: TrackedModule, blocks: int = 1) -> int:
    """Both eigenvector matrices and Λ."""
    return covariance_bytes(module, blocks) + FLOAT32 * module.d_out * module.columns


def decomposition_bytes(module: TrackedModule, blocks: int = 1) -> int:
    """The sums of one module in float64, one more part of them, and a block's decomposition with its workspace."""
    largest = max(widths(max(module.d_out, module.columns), blocks))
    return 3 * covariance_bytes(module, blocks) + 4 * FLOAT64 * largest**2


def module_groups(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Neighbouring modules, by number, whose bytes stay within the budget together; one past it stands alone.

    Each group costs one pass of the model; no number depends on the grouping.
    """
    groups: list[list[int]] = []
    used = 0
    for k, size in enumerate(sizes):
        if not groups or used + size > budget:
            groups.append([])
            used = 0
        groups[-1].append(k)
        used += size
    return groups
