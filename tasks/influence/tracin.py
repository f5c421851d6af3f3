"""What TracIn adds up at one checkpoint: inner products of whole gradients, by group of parameters.

TracIn (Pruthi et al. 2020, arXiv 2002.08484) sums η_k ∇L_qᵀ ∇L_z over checkpoints k: to first order, what steps of
SGD on z took off the loss of q. Akyürek et al. 2022 (arXiv 2205.11482) average cosines, and divide every gradient by
the root of the optimizer's second moments. Both follow from products and lengths by group, plain and divided.

Query gradients are held whole, P numbers each for a model of P parameters; a sequence's gradient exists for one
parameter at a time. A product with u of the queries costs u·P multiplications, by pair or as one matrix product.

Letters: q queries, u some of them, b sequences, g groups, k forms (plain, and divided where asked), n numbers of a
parameter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tasks.influence.batches import Batch
from tasks.influence.gradients import products_in
from tasks.influence.objectives import true_token_gradient
from tasks.influence.parameters import TrainedParameter, owners, sequence_gradients
from tasks.influence.sweep import Uses, sweep_uses

if TYPE_CHECKING:
    from jaxtyping import Float, Int

EPSILON = 1e-7  # added to √v, Akyürek et al. 2022


@dataclass(frozen=True)
class Compared:
    """The parameters of a model at one checkpoint, and by what their gradients are divided."""

    model: PreTrainedModel
    parameters: list[TrainedParameter]
    groups: tuple[str, ...]
    divisors: list[Float[Tensor, "n"]] | None  # √v + ε of each parameter; None where the optimizer has left none

    @property
    def forms(self) -> int:
        """Plain products, and divided ones where there are divisors."""
        return 1 if self.divisors is None else 2

    def weights(self, p: int) -> Float[Tensor, "k n"]:
        """What each form multiplies the entries of a product by: one, and 1/d² where gradients are divided by d."""
        size, divisors = self.parameters[p].size, self.divisors
        ones = torch.ones(1, size, dtype=torch.promote_types(self.model.dtype, torch.float32), device=self.model.device)
        return ones if divisors is None else torch.cat([ones, divisors[p].to(ones).square().reciprocal()[None]])


@dataclass(frozen=True)
class QueryGradients:
    """Whole gradients of queries, and their lengths."""

    of: list[Float[Tensor, "q n"]]  # parameter by parameter
    norms: Float[Tensor, "k g q"]


def compare(
    model: PreTrainedModel, parameters: list[TrainedParameter], second_moments: dict[str, Tensor] | None
) -> Compared:
    """Parameters with the groups that they are in; the head and the embedding first, then blocks, then the others."""

    def place(group: str) -> tuple[int, int]:
        kinds = ("embedding", "head", "block", "other")
        return kinds.index(group.split()[0]), int(group.split()[1]) if " " in group else 0

    groups = tuple(sorted({parameter.group for parameter in parameters}, key=place))
    divisors = None
    if second_moments is not None:
        divisors = [second_moments[p.name].flatten().to(model.device).sqrt() + EPSILON for p in parameters]
    return Compared(model, parameters, groups, divisors)


def query_gradients(compared: Compared, batches: Iterable[Batch], n: int, precision: torch.dtype) -> QueryGradients:
    """The gradients of n queries, whose batches number them by `sequence_ids` from 0."""
    model = compared.model
    dtype = torch.promote_types(model.dtype, torch.float32)
    held = [torch.zeros(n, parameter.size, dtype=dtype, device=model.device) for parameter in compared.parameters]
    squares = torch.zeros(compared.forms, len(compared.groups), n, dtype=torch.float64, device=model.device)
    for batch, uses, _ in sweep_uses(model, owners(compared.parameters), batches, true_token_gradient, precision):
        for p, parameter in enumerate(compared.parameters):
            g = compared.groups.index(parameter.group)
            weights = compared.weights(p)
            for rows, gradients in sequence_gradients(model, parameter, uses):
                queries = batch.sequence_ids[rows]
                held[p][queries] = gradients
                squares[:, g, queries] += (weights @ gradients.square().T).double()
    return QueryGradients(held, squares.sqrt())


def group_products(
    compared: Compared, uses: Uses, queries: QueryGradients, chosen: Int[Tensor, "u"], precision: torch.dtype
) -> tuple[Float[Tensor, "k g u b"], Float[Tensor, "k g b"]]:
    """Products of the chosen queries' gradients with those of a batch's sequences, and the sequences' lengths.

    Factors of a product are rounded to `precision`, that of the pass which they come from; its sums are float32.
    """
    b = len(next(iter(uses.values()))[0].deltas)
    size = (compared.forms, len(compared.groups))
    products = torch.zeros(*size, len(chosen), b, dtype=torch.float64, device=chosen.device)
    squares = torch.zeros(*size, b, dtype=torch.float64, device=chosen.device)
    for p, parameter in enumerate(compared.parameters):
        g = compared.groups.index(parameter.group)
        of_queries = queries.of[p] if len(chosen) == len(queries.of[p]) else queries.of[p][chosen]
        weights = compared.weights(p)
        for rows, gradients in sequence_gradients(compared.model, parameter, uses):
            squares[:, g, rows] += (weights @ gradients.square().T).double()
            for k, weight in enumerate(weights):  # ⟨q/d, z/d⟩ = ⟨q, z/d²⟩: the queries' gradients stay as they are
                side = gradients * weight if k else gradients
                with products_in(precision):
                    products[k, g, :, rows] += (of_queries @ side.T).double()
    return products, squares.sqrt()
