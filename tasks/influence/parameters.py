"""Gradients of every trained parameter, sequence by sequence: what one step of training moves.

A module's share of a parameter's gradient is the vector-Jacobian product of its own forward pass with the gradient at
its output; what several modules share is summed. Linear maps and look-ups have it written down, any other module
(a normalisation, say) is asked of autograd, one sequence at a time under `vmap`.

Letters: b sequences, c some of them, t positions, i input width, o output width, v vocabulary, d embedding width,
n numbers of a parameter.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.utils._pytree import tree_map, tree_map_only
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tasks.influence.batches import TokenSequence, collate
from tasks.influence.capture import Use
from tasks.influence.errors import InfluenceError
from tasks.influence.modules import OUTSIDE, layer_of
from tasks.influence.objectives import true_token_gradient, true_token_loss
from tasks.influence.sweep import Uses, sweep_uses

if TYPE_CHECKING:
    from jaxtyping import Float

HELD = 2**27  # numbers of a batch's gradients that are there together
AGREEMENT = 1e-3  # of the whole gradient's length: by how much a parameter's gradient may differ from autograd's


@dataclass(frozen=True)
class TrainedParameter:
    """One weight or bias as the optimizer knows it, the group it is compared in, and the modules that use it."""

    name: str
    group: str
    size: int
    uses: tuple[tuple[str, str], ...]  # (module, what the module calls it)


def trained_parameters(model: PreTrainedModel) -> list[TrainedParameter]:
    """Every parameter of the model once, under the name in `named_parameters`.

    Groups: `embedding`, the token embedding and an output head that is tied to it; `head`, where it is not;
    `block 0` and so on; `other`, as positions and the last normalisation.
    """
    modules = dict(model.named_modules())
    uses: dict[int, list[tuple[str, str]]] = {}
    for path, module in modules.items():
        for name, parameter in module.named_parameters(recurse=False):
            uses.setdefault(id(parameter), []).append((path, name))
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()

    def group(parameter: nn.Parameter) -> str:
        owners = [modules[path] for path, _ in uses[id(parameter)]]
        if embedding in owners:
            return "embedding"
        if head in owners:
            return "head"
        layers = {layer_of(path) for path, _ in uses[id(parameter)]}
        return f"block {layers.pop()}" if len(layers) == 1 and layers != {OUTSIDE} else "other"

    return [
        TrainedParameter(name, group(parameter), parameter.numel(), tuple(uses[id(parameter)]))
        for name, parameter in model.named_parameters()
    ]


def owners(parameters: list[TrainedParameter]) -> list[str]:
    """The modules that use any of these parameters."""
    return sorted({path for parameter in parameters for path, _ in parameter.uses})


def sequence_gradients(
    model: PreTrainedModel, parameter: TrainedParameter, uses: Uses
) -> Iterator[tuple[slice, Float[Tensor, "c n"]]]:
    """The gradient of each sequence's loss with respect to one parameter, some sequences at a time.

    In float32 after a pass in less.
    """
    found = [(model.get_submodule(path), name, use) for path, name in parameter.uses for use in uses.get(path, [])]
    b = len(next(iter(uses.values()))[0].deltas)
    step = max(1, HELD // parameter.size)
    for start in range(0, b, step):
        rows = slice(start, min(start + step, b))
        shares = [_share(module, name, use, rows).flatten(1) for module, name, use in found]
        yield rows, sum(shares) if shares else torch.zeros(rows.stop - start, parameter.size, device=model.device)


def _share(module: nn.Module, name: str, use: Use, rows: slice) -> Float[Tensor, "c ..."]:
    """What one use of a module adds to the gradient of its parameter `name`."""
    deltas = _wide(use.deltas[rows])
    if type(module) in (nn.Linear, Conv1D):
        if name == "bias":
            return deltas.flatten(1, -2).sum(1)
        inputs = _wide(use.arguments[0][rows]).flatten(1, -2)
        # einsum("cto,cti->coi"); Conv1D keeps its weight as [i, o]
        left, right = (deltas.flatten(1, -2), inputs) if type(module) is nn.Linear else (inputs, deltas.flatten(1, -2))
        return left.mT @ right
    if type(module) is nn.Embedding:
        return _looked_up(module, use.arguments[0][rows], deltas)
    return _by_autograd(module, name, use, rows)


def _looked_up(module: nn.Embedding, ids: Tensor, deltas: Float[Tensor, "c t d"]) -> Float[Tensor, "c v d"]:
    """Each row of the table gathers the gradients of the places that looked it up; that of the padding gathers none."""
    c, (v, d) = len(deltas), module.weight.shape
    if module.padding_idx is not None:
        deltas = deltas.masked_fill((ids == module.padding_idx)[..., None], 0.0)
    rows = ids + v * torch.arange(c, device=ids.device).view(c, *[1] * (ids.dim() - 1))
    gathered = deltas.new_zeros(c * v, d)
    return gathered.index_add_(0, rows.flatten(), deltas.reshape(-1, d)).view(c, v, d)


def _by_autograd(module: nn.Module, name: str, use: Use, rows: slice) -> Float[Tensor, "c ..."]:
    """The vector-Jacobian product of a module's forward pass in one of its parameters, sequence by sequence."""
    b = len(use.deltas)
    quiet = copy.copy(module)  # shares everything but the hooks, which would see this as a call of the model
    quiet._forward_hooks, quiet._forward_hooks_with_kwargs = OrderedDict(), OrderedDict()
    given = tree_map_only(Tensor, lambda x: _wide(x) if x.is_floating_point() else x, (use.arguments, use.keywords))
    shared = tree_map(lambda x: not (isinstance(x, Tensor) and x.dim() and len(x) == b), given)
    some = tree_map(lambda x, whole: x if whole else x[rows], given, shared)
    parameter = dict(module.named_parameters(recurse=False))[name].detach()

    def product(mine, delta: Tensor) -> Tensor:
        arguments, keywords = tree_map(lambda x, whole: x if whole else x[None], mine, shared)
        _, back = vjp(lambda value: functional_call(quiet, {name: value}, arguments, keywords), parameter)
        return back(delta[None])[0]

    axes = tree_map(lambda whole: None if whole else 0, shared)
    return vmap(product, in_dims=(axes, 0))(some, _wide(use.deltas[rows]))


def _wide(values: Tensor) -> Tensor:
    """In float32 or more."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def require_autograd(model: PreTrainedModel, parameters: list[TrainedParameter], query: TokenSequence) -> None:
    """Refuse a model in which some parameter works where no module shows it: compares one sequence with autograd."""
    batch = collate([query], model.device)
    named = dict(model.named_parameters())
    try:
        for parameter in parameters:
            named[parameter.name].requires_grad_(True)
        with torch.enable_grad():
            loss = true_token_loss(model(**batch.model_inputs, use_cache=False).logits, batch)
            whole = torch.autograd.grad(loss, [named[p.name] for p in parameters], allow_unused=True)
    finally:
        model.requires_grad_(False)
    expected = [torch.zeros(p.size) if g is None else g.flatten().cpu() for p, g in zip(parameters, whole, strict=True)]
    length = torch.stack([gradient.norm() for gradient in expected]).norm()
    for _, uses, _ in sweep_uses(model, owners(parameters), [batch], true_token_gradient):
        for parameter, gradient in zip(parameters, expected, strict=True):
            [(_, found)] = sequence_gradients(model, parameter, uses)
            error = float((found[0].cpu() - gradient).norm() / length)
            if error > AGREEMENT:
                raise InfluenceError(
                    f"parameter {parameter.name}: expected the gradient that autograd finds, found one that differs by "
                    f"{error:.1e} of the whole gradient: the model uses it outside of the module that owns it. "
                    "TracIn cannot follow this model."
                )
