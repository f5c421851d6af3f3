"""How passes of the model are carried out; nothing here changes what is computed beyond rounding."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from storage.checkpoints import device
from tasks.influence.sweep import native_precision


class ComputeParameters(BaseModel):
    """Precision policy and batch size."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(16, ge=1, le=4096, description="sequences per scoring pass; a fit has fixed passes")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of forward and backward; auto: bfloat16 where the hardware multiplies it natively"
    )


def dtype_of(parameters: ComputeParameters) -> torch.dtype:
    """The dtype that the policy means on this machine."""
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    return named.get(parameters.precision) or native_precision(device())
