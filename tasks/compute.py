"""How passes of the model are carried out; nothing here changes what is computed beyond rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from storage.checkpoints import device
from storage.errors import MismatchError
from tasks.influence.sweep import native_precision


class ComputeParameters(BaseModel):
    """Precision policy and batch size."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(16, ge=1, le=4096, description="sequences per scoring pass; a fit has fixed passes")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of forward and backward; auto: bfloat16 where the hardware multiplies it natively"
    )


@dataclass(frozen=True)
class Processor:
    """What a process passes the model on."""

    device: str  # cpu, or a GPU as torch calls it
    native: str  # the dtype that `auto` means there


def processor() -> Processor:
    """That of this process."""
    where = device()
    return Processor(str(where), _name(native_precision(where)))


def settle(parameters: ComputeParameters, processors: Mapping[str, Processor]) -> ComputeParameters:
    """The parameters with one dtype in place of `auto`: a flow's jobs all use it, and its ids name it.

    `processors` are those of the workers of an external cluster that pass the model, by address; none: this process's.
    Workers among which the dtype would mean native products on some and emulated ones on others are refused.
    """
    natives = {found.native for found in processors.values()} or {processor().native}
    asked = {parameters.precision} if parameters.precision != "auto" else natives
    if len(asked) == 1 and (not processors or "float32" in asked or natives == asked):
        return parameters.model_copy(update={"precision": asked.pop()})
    slow = sorted(where for where, found in processors.items() if found.native != "bfloat16")
    raise MismatchError(
        f"precision {parameters.precision} on the workers of the Dask cluster",
        expected="that all of them multiply bfloat16 natively, or none does and --precision auto is asked for",
        found=f"{len(slow)} of {len(processors)} that do not, the first {slow[0]}",
        remedy="Use --precision float32, or keep the passes to some with the resource GPU=1 and stop the others.",
    )


def device_of(processors: Mapping[str, Processor]) -> str:
    """Where the passes of a flow run, in words."""
    return ", ".join(sorted({found.device for found in processors.values()})) or str(device())


def dtype_of(parameters: ComputeParameters) -> torch.dtype:
    """The dtype of the passes; what `auto` means on this machine, where no flow has settled it."""
    name = parameters.precision if parameters.precision != "auto" else processor().native
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
