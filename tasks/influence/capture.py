"""Inputs and output gradients of modules, tracked or of any kind: the only file that registers hooks.

Parameters get no gradients. The graph starts at the first module that is watched and autograd is asked for the
module outputs only, so a pass costs one forward and one backward through activations.

Letters: b sequences, t positions, i input width, o output width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

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
class Use:
    """One use of a module of any kind in one pass: its arguments, and the loss's gradient at its output."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    deltas: Tensor


Found = TypeVar("Found")


@dataclass(frozen=True)
class _Seen(Generic[Found]):
    name: str
    output: Tensor
    version: int  # of the output when the hook saw it: an in-place change would move the gradient
    found: Callable[[Tensor], Found]  # what was seen, once the gradient at the output is known


def changed_in_place(name: str) -> InfluenceError:
    """The error for a model that overwrites what a tracked module gave."""
    return InfluenceError(
        f"module {name}: expected an output that stays as it was, found that the model changes it in place. "
        "Leave it out of --modules, or use the operation's out-of-place form in the model."
    )


class Captured(Generic[Found]):
    """What the hooks of one pass have seen, in call order."""

    def __init__(self) -> None:
        self._seen: list[_Seen[Found]] = []

    def clear(self) -> None:
        """Forget the last pass."""
        self._seen.clear()

    @property
    def last(self) -> str:
        """The module that was called last."""
        return self._seen[-1].name if self._seen else "none"

    def remember(self, name: str, output: Tensor, found: Callable[[Tensor], Found]) -> None:
        """Keep one call; a call that no watched module precedes becomes a start of the graph."""
        if not output.requires_grad:
            output.requires_grad_()
        self._seen.append(_Seen(name, output, output._version, found))

    def gradients(self, output: Tensor, gradient: Tensor | None = None) -> dict[str, list[Found]]:
        """Differentiate a loss, or the model's output under the loss's gradient there; what was seen, in call order."""
        changed = next((seen.name for seen in self._seen if seen.output._version != seen.version), None)
        if changed:
            raise changed_in_place(changed)
        outputs = [seen.output for seen in self._seen]
        deltas = torch.autograd.grad(output, outputs, grad_outputs=gradient, allow_unused=True)
        found: dict[str, list[Found]] = {}
        for seen, delta in zip(self._seen, deltas, strict=True):
            whole = torch.zeros_like(seen.output) if delta is None else delta
            found.setdefault(seen.name, []).append(seen.found(whole))
        self.clear()
        return found


@contextmanager
def capturing(model: nn.Module, modules: list[TrackedModule]) -> Iterator[Captured[Call]]:
    """Watch `modules` of a model whose parameters are frozen; weights that modules share count as one module."""
    captured: Captured[Call] = Captured()
    hooks = [
        (model.get_submodule(name), _call_hook(captured, owner, own_bias))
        for name, owner, own_bias in _sharers(model, modules)
    ]
    with _hooked(captured, hooks):
        yield captured


def tracked_calls(model: nn.Module, modules: list[TrackedModule], uses: dict[str, list[Use]]) -> dict[str, list[Call]]:
    """What `capturing` would have seen, from the uses of modules of any kind in the same pass."""
    calls: dict[str, list[Call]] = {module.name: [] for module in modules}
    for name, owner, own_bias in _sharers(model, modules):
        calls[owner] += [Call(_first(use.arguments, use.keywords), use.deltas, own_bias) for use in uses.get(name, [])]
    return calls


def _sharers(model: nn.Module, modules: list[TrackedModule]) -> list[tuple[str, str, bool]]:
    """The linear modules that use a tracked weight: name, tracked module, and whether they add its bias too."""
    by_name = dict(model.named_modules())
    owner_of_weight = {id(by_name[m.name].weight): m.name for m in modules}
    found = []
    for name, module in by_name.items():
        owner = owner_of_weight.get(id(getattr(module, "weight", None)))
        if owner and not isinstance(module, nn.Embedding):
            found.append((name, owner, getattr(module, "bias", None) is by_name[owner].bias))
    return found


def _first(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
    return arguments[0] if arguments else next(iter(keywords.values()))


@contextmanager
def watching(model: nn.Module, names: Collection[str]) -> Iterator[Captured[Use]]:
    """Watch modules of any kind, each under its own name, in a model whose parameters are frozen."""
    captured: Captured[Use] = Captured()
    hooks = [(model.get_submodule(name), _use_hook(captured, name)) for name in names]
    with _hooked(captured, hooks):
        yield captured


@contextmanager
def _hooked(captured: Captured, hooks: list[tuple[nn.Module, Callable[..., None]]]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook, with_kwargs=True) for module, hook in hooks]
    try:
        yield
    except RuntimeError as error:
        if "in-place operation" in str(error):  # autograd forbids it at a start of the graph
            raise changed_in_place(captured.last) from error
        raise
    finally:
        for handle in handles:
            handle.remove()


def _call_hook(captured: Captured[Call], name: str, own_bias: bool):
    def hook(module: nn.Module, arguments: tuple[Tensor, ...], keywords: dict[str, Tensor], output: Tensor) -> None:
        if output.dim() != 3:
            raise InfluenceError(
                f"module {name}: expected outputs of shape [batch, position, width], "
                f"found {list(output.shape)}. Leave it out of --modules."
            )
        inputs = _first(arguments, keywords).detach()
        captured.remember(name, output, lambda deltas: Call(inputs, deltas, own_bias))

    return hook


def _use_hook(captured: Captured[Use], name: str):
    def hook(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        if not isinstance(output, Tensor):
            raise InfluenceError(
                f"module {name}, which owns parameters: expected a tensor as its output, found "
                f"{type(output).__name__}. Its gradients cannot be told apart by sequence."
            )
        seen = tree_map_only(Tensor, torch.detach, (arguments, keywords))
        captured.remember(name, output, lambda deltas: Use(*seen, deltas))

    return hook
