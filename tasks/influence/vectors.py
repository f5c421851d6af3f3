"""Vectors in the space of several weight matrices at once, many side by side: what iterative solvers work on.

A vector is a dictionary from a matrix's name to a tensor whose first axis counts vectors. Inner products are taken in
float64: a solver subtracts numbers that nearly cancel.

Letters: q vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

Vectors = dict[str, Tensor]  # name → [q, …]
Product = Callable[[Vectors], Vectors]  # a matrix applied to each of the vectors


def inner(left: Vectors, right: Vectors) -> Float[Tensor, "q"]:
    """⟨left_q, right_q⟩."""
    products = [(left[name].double() * right[name].double()).flatten(1).sum(1) for name in left]
    return torch.stack(products).sum(0)


def norm(vectors: Vectors) -> Float[Tensor, "q"]:
    """‖v_q‖."""
    return inner(vectors, vectors).sqrt()


def combine(first: Vectors, factor: Float[Tensor, "q"] | float, second: Vectors) -> Vectors:
    """first_q + factor_q · second_q."""
    return {name: value + _along(factor, value) * second[name] for name, value in first.items()}


def scale(vectors: Vectors, factor: Float[Tensor, "q"] | float) -> Vectors:
    """factor_q · v_q."""
    return {name: _along(factor, value) * value for name, value in vectors.items()}


def damped(product: Product, damping: Mapping[str, float]) -> Product:
    """v ↦ G v + λ v, with a λ of its own for each matrix."""

    def apply(vectors: Vectors) -> Vectors:
        return {name: value + damping[name] * vectors[name] for name, value in product(vectors).items()}

    return apply


def flatten(vectors: Vectors) -> Float[Tensor, "q d"]:
    """The vectors as rows, their matrices one after another."""
    return torch.cat([value.flatten(1) for value in vectors.values()], dim=1)


def unflatten(rows: Float[Tensor, "q d"], like: Vectors) -> Vectors:
    """Rows as vectors with the matrices of `like`."""
    sizes = [value[0].numel() for value in like.values()]
    parts = rows.split(sizes, dim=1)
    return {name: part.reshape(-1, *value.shape[1:]) for (name, value), part in zip(like.items(), parts, strict=True)}


def _along(factor: Tensor | float, value: Tensor) -> Tensor | float:
    """One number per vector, in the vector's precision, ready to multiply it."""
    if not isinstance(factor, Tensor):
        return factor
    return factor.to(value.dtype).view(-1, *[1] * (value.dim() - 1))
