"""Named tensors in safetensors files with a few words of metadata; no pickle is ever read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from storage.errors import StoreError
from storage.places import Place
from storage.scratch import local_copy
from storage.seals import BLANK, KEY, seal
from storage.store import Store, replacing


def write_tensors(
    store: Store, path: Place, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write named tensors in one step."""
    with replacing(store, path) as temporary:
        blank = {**(metadata or {}), KEY: BLANK}
        save_file({name: t.detach().contiguous().cpu() for name, t in tensors.items()}, temporary, blank)
        seal(temporary, ".safetensors")


def read_tensors(path: Place, names: list[str] | None = None) -> dict[str, torch.Tensor]:
    """Read all tensors of a file, or those named."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}


def tensor_names(path: Place) -> list[str]:
    """The names of the tensors in a file."""
    with _opened(path) as file:
        return list(file.keys())


def tensor_bytes(path: Place) -> dict[str, int]:
    """Bytes of each float32 tensor in a file, read from its header."""
    with _opened(path) as file:
        return {name: 4 * math.prod(file.get_slice(name).get_shape()) for name in list(file.keys())}


@contextmanager
def _opened(path: Place) -> Iterator[Any]:
    try:
        with local_copy(path) as copy, safe_open(copy, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise StoreError(
            f"tensors {path}",
            expected="a readable safetensors file",
            found=str(error).splitlines()[0],
            remedy="Delete the file and run the same command again: it is computed anew.",
        ) from error
