"""What a study of small networks has trained and solved, unit by unit: each is one file, whole or absent.

studies/<study_id>/<unit>.safetensors stays, so that the study is told again, or grows, without training anew.
"""

from __future__ import annotations

import torch

from storage.places import Place
from storage.store import Store, safe_name
from storage.tensors import read_tensors, write_tensors


def has_unit(store: Store, study_id: str, unit: str) -> bool:
    """Whether the unit was finished."""
    return _path(store, study_id, unit).exists()


def write_unit(store: Store, study_id: str, unit: str, tensors: dict[str, torch.Tensor]) -> None:
    """Keep what a unit found."""
    write_tensors(store, _path(store, study_id, unit), tensors)


def read_unit(store: Store, study_id: str, unit: str) -> dict[str, torch.Tensor]:
    """What a finished unit found."""
    return read_tensors(_path(store, study_id, unit))


def _path(store: Store, study_id: str, unit: str) -> Place:
    return store.root / "studies" / safe_name(study_id) / f"{safe_name(unit)}.safetensors"
