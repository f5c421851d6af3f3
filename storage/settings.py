"""Where the machine is: device, memory, threads. What the experiment is stands in the parameters."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Read from the environment, prefix HEADWATER_; frozen, so that a run cannot change under itself."""

    model_config = SettingsConfigDict(env_prefix="HEADWATER_", frozen=True, extra="forbid")

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where gradients are computed")
    memory_limit_gib: float = Field(
        2.0, gt=0.1, description="memory of one DuckDB connection, in GiB; past it DuckDB spills"
    )
    matrix_memory_gib: float | None = Field(
        None,
        gt=0,
        description="factor matrices that one worker holds beside the model, in GiB; past it modules are taken in "
        "groups, one pass of the model each. None: half of a GPU's memory, an eighth of the machine's on a CPU",
    )
    scratch: Path | None = Field(
        None, description="local directory for what passes between this machine and a store in an object store"
    )
    scratch_gib: float = Field(20.0, gt=0, description="downloads that are kept there, in GiB")
    workers: int = Field(
        default_factory=lambda: min(4, os.cpu_count() or 1),
        ge=1,
        le=256,
        description="processes of the local Dask cluster",
    )


@cache
def settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()
