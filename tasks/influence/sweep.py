"""One pass of the model over many sequences: every batch's tracked inputs and output gradients, one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from transformers import PreTrainedModel

from tasks.influence.attention import ShortAttention
from tasks.influence.batches import Batch
from tasks.influence.capture import Call, capturing
from tasks.influence.errors import InfluenceError
from tasks.influence.head import Objective, apart
from tasks.influence.modules import TrackedModule

Calls = dict[str, list[Call]]


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
    with capturing(model, modules) as captured, apart(model, autocast) as head, torch.enable_grad():
        captured.clear()  # of the token on which it was tried how the model ends
        for batch in batches:
            with autocast, ShortAttention():
                hidden = model(**batch.model_inputs, use_cache=False).logits
            calls = captured.gradients(hidden, head.gradient(hidden, batch, objective))
            del hidden
            _require_called(modules, calls)
            _require_finite(batch, calls)
            yield batch, calls


def _require_called(modules: list[TrackedModule], calls: Calls) -> None:
    silent = [module.name for module in modules if module.name not in calls]
    if silent:
        raise InfluenceError(
            f"module {silent[0]}: expected it to be called in every pass, found that the model skips it "
            f"({len(silent)} such modules). Leave it out of --modules."
        )


def _require_finite(batch: Batch, calls: Calls) -> None:
    # Two reductions per module; only a failure pays for finding the sequence. Named is where it began:
    # bad inputs spread to later modules, bad gradients to earlier ones.
    forward = [(name, "inputs", call.inputs) for name, uses in calls.items() for call in uses]
    backward = [(name, "output gradients", call.deltas) for name, uses in calls.items() for call in uses]
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
