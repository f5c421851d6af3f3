"""The leading eigenpairs of a symmetric matrix from its products, and the inverse that they span.

Schioppa et al. 2022 (arXiv 2112.03052) run Arnoldi's iteration from a random start; for a symmetric matrix it is
Lanczos' (1950, doi 10.6028/jres.045.026). Vectors are orthogonalised against all before them, twice: without it a
leading eigenvector comes back as several.

Letters: q vectors, d dimensions, m steps, k eigenpairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tasks.influence.errors import InfluenceError
from tasks.influence.vectors import Product, Vectors, flatten, unflatten

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues of largest magnitude first, and unit eigenvectors as rows."""

    values: Float[Tensor, "k"]
    vectors: Float[Tensor, "k d"]
    like: Vectors  # how a row is cut into matrices

    def inverse(self, vectors: Vectors, damping: float = 0.0) -> Vectors:
        """Σ_k e_k ⟨e_k, v⟩ / (λ_k + damping): the inverse inside the span, nothing outside of it."""
        rows = flatten(vectors).double()
        shares = rows @ self.vectors.T / (self.values + damping)
        return unflatten((shares @ self.vectors).to(next(iter(vectors.values())).dtype), vectors)


def leading_eigenpairs(product: Product, like: Vectors, steps: int, k: int, seed: int = 0) -> Eigenpairs:
    """The k eigenpairs of largest magnitude that `steps` products find; fewer where the Krylov space ends before."""
    if not 1 <= k < steps:
        raise InfluenceError(
            f"eigenpairs: expected 1 to {steps - 1} of {steps} products, found {k}. Use more products."
        )
    first = next(iter(like.values()))
    d = sum(value[0].numel() for value in like.values())
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(d, generator=generator, dtype=torch.float64).to(first.device)
    basis = [start / start.norm()]
    diagonal, beside = [], []
    for _ in range(min(steps, d)):
        image = flatten(product(unflatten(basis[-1][None].to(first.dtype), like)))[0].double()
        size = image.norm()
        diagonal.append(basis[-1] @ image)
        rows = torch.stack(basis)
        for _ in range(2):
            image = image - (rows @ image) @ rows
        rest = image.norm()
        if not rest > 1e-10 * size:  # the space that the start spans is used up
            break
        beside.append(rest)
        basis.append(image / rest)
    m = len(diagonal)
    tridiagonal = torch.diag(torch.stack(diagonal))
    for j in range(m - 1):
        tridiagonal[j, j + 1] = tridiagonal[j + 1, j] = beside[j]
    values, vectors = torch.linalg.eigh(tridiagonal)
    order = values.abs().argsort(descending=True)[:k]
    return Eigenpairs(values[order], vectors[:, order].T @ torch.stack(basis[:m]), like)
