"""How soon an inspection from the highest score down finds what is wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tasks.evaluation.ranking import tie_breakers


def inspection_places(scores: np.ndarray, wrong: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The share of all items that is looked at until each wrong one is found, ascending, in (0, 1].

    Equal scores stand in an order that is blind to the truth.
    """
    order = np.lexsort((tie_breakers(names), -scores))
    return (np.flatnonzero(wrong[order]) + 1) / len(scores)


def found_curve(places: np.ndarray, inspected: np.ndarray) -> np.ndarray:
    """The share of what is wrong that is found by the time so much is inspected."""
    return np.searchsorted(np.sort(places), inspected + 1e-9, side="right") / len(places)
