"""A causal model as a function of the weights of its tracked modules; the model itself never changes.

Weights are matrices W [o, i], bias as the last column, whatever the module keeps them as. A weight that several
modules share counts in all of them; in a look-up of tokens as well, where the model is given tokens.

Letters: b sequences, t positions, v vocabulary, o output width, i homogeneous input width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from tasks.influence.modules import TrackedModule

if TYPE_CHECKING:
    from jaxtyping import Float

Weights = dict[str, Tensor]


def weights_of(model: PreTrainedModel, modules: Sequence[TrackedModule]) -> Weights:
    """The matrix [o, i] of each module, by its name."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters(remove_duplicate=False)}
    return {module.name: _matrix(parameters, module) for module in modules}


def logits_under(
    model: PreTrainedModel, modules: Sequence[TrackedModule], weights: Weights, inputs: Mapping[str, Any]
) -> Float[Tensor, "b t v"]:
    """What the model says with these weights in its tracked modules, and its own everywhere else.

    Can be differentiated in weights and inputs, backward, forward and twice.
    """
    swapped: Weights = {}
    for module in modules:
        matrix = weights[module.name]
        weight = matrix[:, :-1] if module.bias else matrix
        swapped[f"{module.name}.weight"] = weight.T if module.kind == "Conv1D" else weight
        if module.bias:
            swapped[f"{module.name}.bias"] = matrix[:, -1]
    # The fused kernels of attention know no derivative of a derivative, nor one carried forward.
    with sdpa_kernel(SDPBackend.MATH):
        return functional_call(model, swapped, (), {**inputs, "use_cache": False}, tie_weights=True).logits


def _matrix(parameters: Weights, module: TrackedModule) -> Float[Tensor, "o i"]:
    weight = parameters[f"{module.name}.weight"]
    weight = weight.T if module.kind == "Conv1D" else weight
    return torch.cat([weight, parameters[f"{module.name}.bias"][:, None]], dim=1) if module.bias else weight
