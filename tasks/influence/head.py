"""The model's output head apart from the model: logits exist for some positions at a time.

Logits are the widest array of a pass, positions × vocabulary, and a backward pass holds their gradient beside
them. A linear head maps every position by itself, so the chain rule goes through it a few positions at a time,
and through scored positions only.

Letters: b sequences, t positions, d width of the hidden states, v vocabulary, n some positions of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tasks.influence.batches import Batch

if TYPE_CHECKING:
    from jaxtyping import Float

# The logits of n scored positions of a batch, numbered along its flattened rows, to the loss's gradient there: [n, v].
Objective = Callable[[Tensor, Batch, Tensor], Tensor]

# Logits that exist at once. On a CPU they stay near its caches and in pages that the process has: with a vocabulary
# of 8,192, asking for fresh ones for all logits took a quarter of a small model's pass.
CACHED, LARGE = 2**21, 2**28


@dataclass(frozen=True)
class Head:
    """What stands between the tensor that a pass ends in and the logits: a linear map of each position, or nothing."""

    linear: Callable[[Float[Tensor, "n d"]], Float[Tensor, "n v"]] | None = None
    vocabulary: int = 0

    def gradient(self, hidden: Float[Tensor, "b t d"], batch: Batch, objective: Objective) -> Float[Tensor, "b t d"]:
        """dL/dhidden of the loss whose gradient in the logits `objective` gives; zero where nothing is scored."""
        rows = hidden.detach().flatten(0, 1)
        gradient = torch.zeros_like(rows)
        scored = batch.scored.flatten().nonzero()[:, 0]
        width = self.vocabulary or rows.shape[-1]
        for some in scored.split(max(1, (LARGE if rows.is_cuda else CACHED) // width)):
            gradient[some] = self._rows_gradient(rows[some], lambda logits, some=some: objective(logits, batch, some))
        return gradient.view_as(hidden)

    def _rows_gradient(self, states: Float[Tensor, "n d"], of_logits: Callable[[Tensor], Tensor]) -> Tensor:
        if self.linear is None:
            return of_logits(states)
        logits = self.linear(states.requires_grad_())
        return torch.autograd.grad(logits, states, of_logits(logits.detach()))[0]


@contextmanager
def apart(model: PreTrainedModel, autocast: torch.autocast) -> Iterator[Head]:
    """Let a pass of the model end in what its head is given, and yield the head.

    A model that scales or caps its logits, or whose head is watched or no plain nn.Linear, ends in its logits as ever.
    """
    module = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    if not _is_last(model, module):
        yield Head()
        return
    linear = autocast(module.forward)
    module.forward = lambda hidden: hidden
    try:
        yield Head(linear, module.out_features)
    finally:
        del module.forward


@torch.no_grad()
def _is_last(model: PreTrainedModel, module: nn.Module | None) -> bool:
    """Whether the model returns what the head gives as it is: seen on a pass over one token."""
    if type(module) is not nn.Linear or "forward" in vars(module) or module._forward_hooks:
        return False
    linear, given = module.forward, []

    def remember(hidden: Tensor) -> Tensor:
        logits = linear(hidden)
        given.append((logits, logits._version))
        return logits

    module.forward = remember
    try:
        output = model(
            input_ids=torch.zeros(1, 1, dtype=torch.long, device=module.weight.device), use_cache=False
        ).logits
    finally:
        del module.forward
    return len(given) == 1 and output is given[0][0] and output._version == given[0][1]
