"""The forms that TracIn and hidden states can take, from inner products and lengths of their parts.

Parts joined end to end have the sum of the parts' inner products and of their squared lengths, so that the products of
each group of parameters at each checkpoint give every form: any groups together, cosines or dot products, any
checkpoints (Akyürek et al. 2022, arXiv 2205.11482). Arrays are [step, pair]; for hidden states a layer is a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Normalise = Literal["unit", "local", "none"]
MEAN, LEARNING_RATES = "mean", "learning rates"


@dataclass(frozen=True)
class Form:
    """One form of a method: what distinguishes it, as the tables show it."""

    part: str  # group of parameters, or hidden layer
    normalise: Normalise = "unit"  # unit: cosine; local: sum of the groups' cosines; none: dot product
    scaled: bool = False  # divided by the root of the optimizer's second moments
    steps: str = MEAN  # over checkpoints: their mean, their sum by learning rates, or the number of one

    @property
    def name(self) -> str:
        """What stands in the brackets of a label: block 2, dot, scaled."""
        kind = {"unit": "", "local": "local", "none": "dot"}[self.normalise]
        steps = {MEAN: "", LEARNING_RATES: LEARNING_RATES}.get(self.steps, f"step {self.steps}")
        return ", ".join(filter(None, (self.part, kind, "scaled" * self.scaled, steps)))

    def label(self, method: str) -> str:
        """The form as the name of a method in `evaluations`: tracin[block 2, dot, scaled]."""
        return f"{method}[{self.name}]"


@dataclass(frozen=True, eq=False)
class Products:
    """Inner products and squared lengths of both sides [step, pair]; `local` is the sum of the parts' cosines."""

    dots: np.ndarray
    lefts: np.ndarray
    rights: np.ndarray
    local: np.ndarray

    @classmethod
    def of_part(cls, dots: np.ndarray, left_norms: np.ndarray, right_norms: np.ndarray) -> Products:
        """The products of one part, from its lengths."""
        alone = cls(dots, left_norms**2, right_norms**2, np.empty(0))
        return cls(alone.dots, alone.lefts, alone.rights, alone.cosines())

    def __add__(self, other: Products) -> Products:
        """Both parts joined end to end."""
        return Products(
            self.dots + other.dots, self.lefts + other.lefts, self.rights + other.rights, self.local + other.local
        )

    def cosines(self) -> np.ndarray:
        """Cosine of each pair; a gradient of length zero points nowhere: 0."""
        lengths = np.sqrt(self.lefts) * np.sqrt(self.rights)
        return np.where(lengths == 0, 0.0, self.dots / np.where(lengths == 0, 1.0, lengths))

    def joined(self) -> Products:
        """All steps joined end to end."""
        return Products(
            *(found.sum(axis=0, keepdims=True) for found in (self.dots, self.lefts, self.rights, self.local))
        )


def tracin_forms(
    part: str, products: Products, scaled: bool, steps: Sequence[int], rates: Sequence[float | None], first_step: int
) -> Iterator[tuple[Form, np.ndarray]]:
    """What the products of a part can be made into, each with a score per pair.

    Means and sums leave out checkpoints before `first_step`; single checkpoints are those of plain cosines.
    """
    followed = [k for k, step in enumerate(steps) if step >= first_step]
    of_rates = [rates[k] for k in followed]
    kinds: list[tuple[Normalise, np.ndarray]] = [("unit", products.cosines()), ("none", products.dots)]
    if part in ("all", "blocks"):
        kinds.append(("local", products.local))
    for normalise, values in kinds:
        yield Form(part, normalise, scaled), values[followed].mean(axis=0)
        if not scaled and normalise != "local" and None not in of_rates:
            weighed = np.array(of_rates, np.float64) @ values[followed]
            yield Form(part, normalise, scaled, LEARNING_RATES), weighed
    if not scaled and len(steps) > 1:
        for step, values in zip(steps, products.cosines(), strict=True):
            yield Form(part, steps=str(step)), values


def hidden_forms(layers: Sequence[int], products: Products) -> Iterator[tuple[Form, np.ndarray]]:
    """Cosines of mean hidden states, layer by layer, and of all layers joined end to end."""
    for layer, values in zip(layers, products.cosines(), strict=True):
        yield Form(f"layer {layer}"), values
    if len(layers) > 1:
        yield Form("all layers"), products.joined().cosines()[0]
