"""One pass of the model over many sequences: every batch's tracked inputs and output gradients, one at a time."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Iterator
from dataclasses import astuple, replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedModel

from tasks.influence.attention import ShortAttention
from tasks.influence.batches import Batch
from tasks.influence.capture import Call, Captured, Found, Use, capturing, watching
from tasks.influence.errors import InfluenceError
from tasks.influence.head import Objective, apart
from tasks.influence.modules import TrackedModule

Calls = dict[str, list[Call]]
Uses = dict[str, list[Use]]
States = tuple[Tensor, ...]


def sweep(
    model: PreTrainedModel,
    modules: list[TrackedModule],
    batches: Iterable[Batch],
    objective: Objective,
    precision: torch.dtype = torch.float32,
) -> Iterator[tuple[Batch, Calls]]:
    """Yield each batch with the calls of every tracked module under `objective`.

    `precision` is that of the forward and backward pass; what is summed from the calls is summed in float32.
    """
    with capturing(model, modules) as captured:
        for batch, calls, _ in _passes(model, captured, batches, objective, precision):
            _require_called(modules, calls)
            inputs = {name: [call.inputs for call in uses] for name, uses in calls.items()}
            deltas = {name: [call.deltas for call in uses] for name, uses in calls.items()}
            _require_finite(batch, inputs, deltas)
            yield batch, calls


def sweep_uses(
    model: PreTrainedModel,
    names: Collection[str],
    batches: Iterable[Batch],
    objective: Objective,
    precision: torch.dtype = torch.float32,
    with_states: bool = False,
) -> Iterator[tuple[Batch, Uses, States]]:
    """Yield each batch with the uses of the named modules, of whatever kind, and the hidden states if asked for.

    Positions are given to the model row by row, so that their embedding has a gradient for each sequence.
    """
    numbered = map(_with_positions, batches) if _takes_positions(model) else batches
    with watching(model, names) as captured:
        for batch, uses, states in _passes(model, captured, numbered, objective, precision, with_states):
            uses = {name: [_by_sequence(use, batch) for use in of_module] for name, of_module in uses.items()}
            deltas = {name: [use.deltas for use in of_module] for name, of_module in uses.items()}
            _require_by_sequence(batch, deltas)
            _require_finite(batch, {}, deltas)
            yield batch, uses, states


def _passes(
    model: PreTrainedModel,
    captured: Captured[Found],
    batches: Iterable[Batch],
    objective: Objective,
    precision: torch.dtype,
    with_states: bool = False,
) -> Iterator[tuple[Batch, dict[str, list[Found]], States]]:
    """The forward and backward pass of each batch: what was captured, and the hidden states if asked for."""
    weight = next(model.parameters())
    if weight.device.type == "cpu" and weight.dtype == torch.float16:
        raise InfluenceError(
            "model: expected float32 or bfloat16 weights on a CPU, found float16, whose gradients underflow there. "
            "Call model.float(), or use a GPU."
        )
    # Attention's backward pass makes denormal numbers on real text, which x86 handles in microcode: on a
    # 5-layer Llama with 512 tokens, flushing them to zero made a pass 6 times faster in float32 and 18 times in
    # bfloat16. The flag belongs to a thread and is inherited by the threads it starts, so it is set here.
    torch.set_flush_denormal(True)
    autocast = torch.autocast(weight.device.type, precision, enabled=precision != torch.float32, cache_enabled=False)
    asked = {"output_hidden_states": True} if with_states else {}
    with apart(model, autocast) as head, torch.enable_grad():
        captured.clear()  # of the token on which it was tried how the model ends
        for batch in batches:
            with autocast, ShortAttention():
                output = model(**batch.model_inputs, **asked, use_cache=False)
            found = captured.gradients(output.logits, head.gradient(output.logits, batch, objective))
            states = tuple(state.detach() for state in output.hidden_states) if with_states else ()
            del output
            yield batch, found, states


def _takes_positions(model: PreTrainedModel) -> bool:
    return "position_ids" in inspect.signature(model.forward).parameters


def _with_positions(batch: Batch) -> Batch:
    if batch.position_ids is not None:
        return batch
    columns = torch.arange(batch.token_ids.shape[1], device=batch.token_ids.device)
    return replace(batch, position_ids=columns.expand_as(batch.token_ids))


def _by_sequence(use: Use, batch: Batch) -> Use:
    """The use with rows for sequences where the model has put all their positions in one row after another."""
    b, t = batch.token_ids.shape
    if b == 1 or len(use.deltas) != b * t:
        return use
    return Use(*tree_map_only(Tensor, lambda x: x.unflatten(0, (b, t)) if len(x) == b * t else x, astuple(use)))


def _require_by_sequence(batch: Batch, deltas: dict[str, list[Tensor]]) -> None:
    rows = len(batch.sequence_ids)
    for name, found in deltas.items():
        other = next((list(values.shape) for values in found if len(values) != rows), None)
        if other:
            raise InfluenceError(
                f"module {name}, which owns parameters: expected an output with a row for each of {rows} sequences, "
                f"found one of shape {other}. Its gradients cannot be told apart by sequence."
            )


def _require_called(modules: list[TrackedModule], calls: Calls) -> None:
    silent = [module.name for module in modules if module.name not in calls]
    if silent:
        raise InfluenceError(
            f"module {silent[0]}: expected it to be called in every pass, found that the model skips it "
            f"({len(silent)} such modules). Leave it out of --modules."
        )


def _require_finite(batch: Batch, inputs: dict[str, list[Tensor]], deltas: dict[str, list[Tensor]]) -> None:
    # Two reductions per module; only a failure pays for finding the sequence. Named is where it began:
    # bad inputs spread to later modules, bad gradients to earlier ones.
    forward = [(name, "inputs", values) for name, found in inputs.items() for values in found]
    backward = [(name, "output gradients", values) for name, found in deltas.items() for values in found]
    sums = torch.stack([values.sum().float() for _, _, values in (*forward, *backward)])
    if torch.isfinite(sums).all():  # one answer from the device per batch
        return
    for name, kind, values in (*forward, *reversed(backward)):
        if (bad := ~torch.isfinite(values).flatten(1).all(dim=1)).any():
            ids = batch.sequence_ids[bad].tolist()
            raise InfluenceError(
                f"module {name}: expected finite {kind}, found NaN or infinity for sequence {ids[0]} "
                f"({len(ids)} of {len(batch.sequence_ids)} in its batch). "
                "Use --precision float32, or leave the sequence out with a candidate filter."
            )


def native_precision(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively, float32 elsewhere."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32
