"""Conjugate gradients on (G + λI) x = b, preconditioned, many right-hand sides in step.

Preconditioned with EK-FAC's inverse the system is nearly the identity, so that a few products bring what would take
hundreds: x starts as EK-FAC's own answer and every iteration can only come closer, in the norm of G + λI
(Hestenes & Stiefel 1952, doi 10.6028/jres.049.044; Shewchuk 1994).

Letters: q right-hand sides, k iterations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tasks.influence.errors import InfluenceError
from tasks.influence.vectors import Product, Vectors, combine, inner, norm, scale

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Solved:
    """What a solver found, and how far from solving the system it was after each iteration, the start first."""

    vectors: Vectors
    residuals: Float[Tensor, "k q"]  # ‖b − A x‖ / ‖b‖


def conjugate_gradients(
    product: Product, right: Vectors, precondition: Product, iterations: int, tolerance: float
) -> Solved:
    """Solve until every relative residual is below the tolerance, or the iterations are over; says how far it came.

    `product` is the damped matrix, which must be positive definite; `precondition` roughly its inverse.
    """
    size = norm(right)
    safe = size.clamp_min(torch.finfo(torch.float64).tiny)
    x = precondition(right)
    residual = combine(right, -1.0, product(x))
    history = [norm(residual) / safe]
    z = precondition(residual)
    direction, decrease = z, inner(residual, z)
    for _ in range(iterations):
        going = history[-1] > tolerance
        if not going.any():
            break
        image = product(direction)
        bending = inner(direction, image)
        if (bending[going] <= 0).any():
            q = int(going.nonzero()[(bending[going] <= 0).nonzero()[0, 0], 0])
            raise InfluenceError(
                f"conjugate gradients, right-hand side {q}: expected a positive definite matrix, found a direction d "
                f"with dᵀ(G + λI)d = {float(bending[q]):.3g}. Use a larger damping, or the Gauss-Newton matrix in "
                "place of the Hessian."
            )
        step = torch.where(going, decrease / bending.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
        x, residual = combine(x, step, direction), combine(residual, -step, image)
        history.append(norm(residual) / safe)
        z = precondition(residual)
        before, decrease = decrease, inner(residual, z)
        again = torch.where(going, decrease / before.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
        direction = combine(z, 1.0, scale(direction, again))
    return Solved(x, torch.stack(history))
