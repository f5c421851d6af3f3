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
    """One use of a module in one pass: what came in and the loss's gradient at what went out.

    `own_bias` is false for another module that shares the weight but adds a bias of its own.
    """

    inputs: Float[Tensor, "b t i"]
    deltas: Float[Tensor, "b t o"]
    own_bias: bool = True


@dataclass(frozen=True)
class _Seen:
    name: str
    inputs: Tensor
    output: Tensor
    version: int  # of the output when the hook saw it: an in-place change would move the gradient
    own_bias: bool


def changed_in_place(name: str) -> InfluenceError:
    """The error for a model that overwrites what a tracked module gave."""
    return InfluenceError(
        f"module {name}: expected an output that stays as it was, found that the model changes it in place. "
        "Leave it out of --modules, or use the operation's out-of-place form in the model."
    )


class Captured:
    """What the hooks of one pass have seen, in call order."""

    def __init__(self) -> None:
        self._seen: list[_Seen] = []

    def clear(self) -> None:
        """Forget the last pass."""
        self._seen.clear()

    @property
    def last(self) -> str:
        """The module that was called last."""
        return self._seen[-1].name if self._seen else "none"

    def remember(self, name: str, inputs: Tensor, output: Tensor, own_bias: bool) -> None:
        """Keep one call; a call that no tracked module precedes becomes a start of the graph."""
        if output.dim() != 3:
            raise InfluenceError(
                f"module {name}: expected outputs of shape [batch, position, width], "
                f"found {list(output.shape)}. Leave it out of --modules."
            )
        if not output.requires_grad:
            output.requires_grad_()
        self._seen.append(_Seen(name, inputs.detach(), output, output._version, own_bias))

    def gradients(self, output: Tensor, gradient: Tensor | None = None) -> dict[str, list[Call]]:
        """Differentiate a loss, or the model's output under the loss's gradient there; the calls, in call order."""
        changed = next((seen.name for seen in self._seen if seen.output._version != seen.version), None)
        if changed:
            raise changed_in_place(changed)
        outputs = [seen.output for seen in self._seen]
        deltas = torch.autograd.grad(output, outputs, grad_outputs=gradient, allow_unused=True)
        calls: dict[str, list[Call]] = {}
        for seen, delta in zip(self._seen, deltas, strict=True):
            call = Call(seen.inputs, torch.zeros_like(seen.output) if delta is None else delta, seen.own_bias)
            calls.setdefault(seen.name, []).append(call)
        self.clear()
        return calls


@contextmanager
def capturing(model: nn.Module, modules: list[TrackedModule]) -> Iterator[Captured]:
    """Watch `modules` of a model whose parameters are frozen; weights that modules share count as one module."""
    captured = Captured()
    by_name = dict(model.named_modules())
    owner_of_weight = {id(by_name[m.name].weight): m.name for m in modules}
    handles = []
    for module in by_name.values():
        owner = owner_of_weight.get(id(getattr(module, "weight", None)))
        if owner and not isinstance(module, nn.Embedding):
            own_bias = getattr(module, "bias", None) is by_name[owner].bias
            handles.append(module.register_forward_hook(_hook(captured, owner, own_bias), with_kwargs=True))
    try:
        yield captured
    except RuntimeError as error:
        if "in-place operation" in str(error):  # autograd forbids it at a start of the graph
            raise changed_in_place(captured.last) from error
        raise
    finally:
        for handle in handles:
            handle.remove()


def _hook(captured: Captured, name: str, own_bias: bool):
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], keywords: dict[str, Tensor], output: Tensor) -> None:
        captured.remember(name, inputs[0] if inputs else next(iter(keywords.values())), output, own_bias)

    return hook
