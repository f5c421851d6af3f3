"""Conjugate gradients on (G + λI) x = b, preconditioned, many right-hand sides in step.

x starts at zero, so that the first iteration is the preconditioner's own answer at its best length, and every further
one comes closer, in the norm of G + λI (Hestenes & Stiefel 1952, doi 10.6028/jres.049.044; Shewchuk 1994). To start at
that answer instead would cost a product and gain nothing: the Krylov space of the next step holds its every multiple.

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
    x, residual = scale(right, torch.zeros_like(size)), right
    history = [size / safe]
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
