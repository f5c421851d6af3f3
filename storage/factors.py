"""EK-FAC fits on disk: which there are, what they were made from, and their tensors by module."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from storage.errors import StoreError
from storage.places import Place
from storage.store import Store, read_json, safe_name, write_json


@dataclass(frozen=True)
class Fit:
    """The manifest of one fit; `modules` in the order of its files."""

    fit_id: str
    modules: tuple[dict[str, Any], ...]
    n_sequences: int
    made_from: dict[str, Any]


def fit_path(store: Store, fit_id: str, name: str) -> Place:
    """The safetensors file of one piece of a fit."""
    return store.root / "factors" / safe_name(fit_id) / f"{safe_name(name)}.safetensors"


def has_fit(store: Store, fit_id: str) -> bool:
    """Whether the fit is complete."""
    return _manifest(store, fit_id).exists()


def fit_ids(store: Store) -> list[str]:
    """The complete fits of the store."""
    return sorted(path.parent.name for path in (store.root / "factors").glob("*/manifest.json"))


def complete_fit(store: Store, fit: Fit) -> None:
    """Write the manifest, which makes the fit complete."""
    write_json(_manifest(store, fit.fit_id), asdict(fit))


def drop_sums(store: Store, fit_id: str) -> None:
    """Remove the sums that a complete fit was made of."""
    folder = store.root / "factors" / safe_name(fit_id)
    for pattern in ("covariance-*", "eigenvalues-*"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)  # another process may be dropping them too


def read_fit(store: Store, fit_id: str) -> Fit:
    """The manifest of a complete fit."""
    if not has_fit(store, fit_id):
        raise StoreError(
            f"factors {fit_id} in {store.root}",
            expected="a complete fit",
            found="none",
            remedy="Fit: headwater fit --store PATH --model MODEL",
        )
    values = read_json(_manifest(store, fit_id))
    return Fit(values["fit_id"], tuple(values["modules"]), values["n_sequences"], values["made_from"])


def _manifest(store: Store, fit_id: str) -> Place:
    return store.root / "factors" / safe_name(fit_id) / "manifest.json"
