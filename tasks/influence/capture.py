"""Inputs and output gradients of the tracked modules: the only file that registers hooks.

Parameters get no gradients. The graph starts at the first tracked module and autograd is asked for the
module outputs only, so a pass costs one forward and one backward through activations.

Letters: b sequences, t positions, i input width, o output width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tasks.influence.errors import InfluenceError
from tasks.influence.modules import TrackedModule

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Call:
    """One use of a module in one pass: what came in and the loss's gradient at what went out."""

    inputs: Float[Tensor, "b t i"]
    deltas: Float[Tensor, "b t o"]


class Captured:
    """What the hooks of one pass have seen, in call order."""

    def __init__(self) -> None:
        self._seen: list[tuple[str, Tensor, Tensor]] = []

    def clear(self) -> None:
        """Forget the last pass."""
        self._seen.clear()

    def remember(self, name: str, inputs: Tensor, output: Tensor) -> None:
        """Keep one call; a call that no tracked module precedes becomes a start of the graph."""
        if output.dim() != 3:
            raise InfluenceError(
                f"module {name}: expected outputs of shape [batch, position, width], "
                f"found {list(output.shape)}. Leave it out of --modules."
            )
        if not output.requires_grad:
            output.requires_grad_()
        self._seen.append((name, inputs.detach(), output))

    def gradients(self, loss: Tensor) -> dict[str, list[Call]]:
        """Differentiate the loss; every tracked module's calls, in call order."""
        outputs = [output for _, _, output in self._seen]
        deltas = torch.autograd.grad(loss, outputs, allow_unused=True)
        calls: dict[str, list[Call]] = {}
        for (name, inputs, output), delta in zip(self._seen, deltas, strict=True):
            call = Call(inputs, torch.zeros_like(output) if delta is None else delta)
            calls.setdefault(name, []).append(call)
        self.clear()
        return calls


@contextmanager
def capturing(model: nn.Module, modules: list[TrackedModule]) -> Iterator[Captured]:
    """Watch `modules` of a model whose parameters are frozen; weights that modules share count as one module."""
    captured = Captured()
    by_name = dict(model.named_modules())
    name_of_weight = {id(by_name[m.name].weight): m.name for m in modules}
    watched = [
        (name_of_weight[id(m.weight)], m)
        for m in by_name.values()
        if isinstance(getattr(m, "weight", None), nn.Parameter)
        and id(m.weight) in name_of_weight
        and not isinstance(m, nn.Embedding)
    ]
    handles = [module.register_forward_hook(_hook(captured, name)) for name, module in watched]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def _hook(captured: Captured, name: str):
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        captured.remember(name, inputs[0], output)

    return hook
