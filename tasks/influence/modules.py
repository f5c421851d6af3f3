"""Which weight matrices are attributed, and the coverage table that says why every other one is not.

A module is an nn.Linear (weight [d_out, d_in]) or a Hugging Face Conv1D (weight [d_in, d_out]);
both compute y = W a + b at every position, so both are seen as W of shape [d_out, d_in].
Grosse et al. 2023 (arXiv 2308.03296, Eq. 23) attribute the MLP matrices and their biases: the default here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tasks.influence.errors import InfluenceError

# Module names within a block, by group, as GPT-2, GPT-NeoX and the Llama family call them.
_MLP = r"mlp\.(c_fc|c_proj|dense_h_to_4h|dense_4h_to_h|gate_proj|up_proj|down_proj)"
_ATTENTION = (
    r"(attn\.(c_attn|c_proj|q_attn)|attention\.(query_key_value|dense)|self_attn\.(q_proj|k_proj|v_proj|o_proj))"
)
_BLOCK = r"(.*\.)?(h|layers)\.\d+\."
GROUPS = {
    "mlp": rf"{_BLOCK}{_MLP}",
    "attention": rf"{_BLOCK}{_ATTENTION}",
    "all": rf"{_BLOCK}({_MLP}|{_ATTENTION})",
}
OUTSIDE = -1  # the layer of what stands in no numbered block


@dataclass(frozen=True)
class TrackedModule:
    """One attributed weight matrix W [d_out, d_in (+1 with bias)]; bias is the last input column."""

    name: str
    layer: int
    kind: str
    d_out: int
    d_in: int
    bias: bool
    parameters: int

    @property
    def columns(self) -> int:
        """Width of the homogeneous input: d_in, and one more for the bias."""
        return self.d_in + self.bias


@dataclass(frozen=True)
class Coverage:
    """One row of the coverage table: the parameters that one module owns, in or out, and the reason."""

    module: str
    layer: int
    kind: str
    parameters: int
    tracked: bool
    reason: str


def layer_of(name: str) -> int:
    """The number of the block that a module stands in, or OUTSIDE."""
    numbers = re.findall(r"\.(\d+)(?=\.|$)", f".{name}")
    return int(numbers[0]) if numbers else OUTSIDE


def select_modules(model: PreTrainedModel, expression: str) -> list[TrackedModule]:
    """The modules that `expression` names: a group (mlp, attention, all) or a regular expression on full names.

    A weight that several of them share is one module, under its first name.
    """
    try:
        pattern = re.compile(GROUPS.get(expression, expression))
    except re.error as error:
        raise InfluenceError(
            f"module expression {expression!r}: expected one of {', '.join(GROUPS)} or a regular expression, "
            f"found one that does not compile ({error}). Correct it."
        ) from error
    selected: list[TrackedModule] = []
    seen: set[int] = set()
    for name, module in model.named_modules():
        if pattern.fullmatch(name) and isinstance(module, (nn.Linear, Conv1D)) and id(module.weight) not in seen:
            seen.add(id(module.weight))
            selected.append(_describe(name, module))
    if not selected:
        candidates = [n for n, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D))]
        raise InfluenceError(
            f"module expression {expression!r}: expected at least one nn.Linear or Conv1D of "
            f"{type(model).__name__}, found none. Linear modules there are: {', '.join(candidates[:8])}"
            f"{' …' if len(candidates) > 8 else ''}. Name them with a regular expression."
        )
    return selected


def _describe(name: str, module: nn.Module) -> TrackedModule:
    weight, bias = module.weight, module.bias is not None
    rows, columns = weight.shape[::-1] if isinstance(module, Conv1D) else weight.shape
    size = weight.numel() + (module.bias.numel() if bias else 0)
    return TrackedModule(name, layer_of(name), type(module).__name__, rows, columns, bias, size)


def coverage(model: PreTrainedModel, tracked: list[TrackedModule], expression: str) -> list[Coverage]:
    """Every parameter of the model once, by the module that owns it, with the reason it is in or out.

    A shared parameter belongs to the tracked module that uses it, else to the first module that does.
    """
    names = {module.name for module in tracked}
    modules = dict(model.named_modules())
    owner: dict[int, str] = {}
    for name in [*(m.name for m in tracked), *modules]:
        for parameter in modules[name].parameters(recurse=False):
            owner.setdefault(id(parameter), name)
    rows: list[Coverage] = []
    for name, module in modules.items():
        parameters = list(module.parameters(recurse=False))
        if parameters:
            own = sum(p.numel() for p in parameters if owner[id(p)] == name)
            shared = next((owner[id(p)] for p in parameters if owner[id(p)] != name), None)
            named = re.compile(GROUPS.get(expression, expression)).fullmatch(name) is not None
            reason = _reason(module, name in names, shared, shared in names, expression, named)
            rows.append(Coverage(name, layer_of(name), type(module).__name__, own, name in names, reason))
    return rows


def _reason(
    module: nn.Module, tracked: bool, shared: str | None, owner_tracked: bool, expression: str, named: bool
) -> str:
    if tracked:
        return f"matches {expression!r}"
    if shared and owner_tracked and isinstance(module, nn.Embedding):
        return f"shares its weight with {shared}; its own use, a look-up, is not a linear map and is left out"
    if shared and owner_tracked:
        return f"shares its weight with {shared}, where both uses are summed"
    if shared:
        return f"shares its weight with {shared}"
    if isinstance(module, (nn.Linear, Conv1D)):
        return f"does not match {expression!r}"
    if named:
        return f"matches {expression!r}, but {type(module).__name__} is not a linear map over positions: unsupported"
    return f"{type(module).__name__} is not a linear map over positions"
