"""What several corpora say together: their shares count, not their documents."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tasks.inspection import METHODS, Inspection, InspectionStudy


def inspection(found: int, n: int) -> Inspection:
    """A corpus with n wrong documents, so many of them among the first fifth under every method."""
    places = np.array([0.1] * found + [0.9] * (n - found))
    return Inspection("s", "ek-1", 10 * n, dict.fromkeys(METHODS, places))


def test_an_interval_over_corpora_is_students_over_their_shares():
    study = InspectionStudy("s", (inspection(8, 10), inspection(9, 10), inspection(20, 20)))
    shares = np.array([0.8, 0.9, 1.0])
    half = stats.t.ppf(0.975, 2) * shares.std(ddof=1) / np.sqrt(3)
    for e in study.estimates().values():
        assert (e.value, e.n) == (pytest.approx(0.9), 3)
        assert e.ci_low == pytest.approx(0.9 - half)
        assert e.ci_high == 1.0  # a share is no larger


def test_one_corpus_has_the_interval_of_its_documents():
    (estimate, *_) = InspectionStudy("s", (inspection(50, 100),)).estimates().values()
    assert estimate.n == 100
    assert 0.38 < estimate.ci_low < 0.5 < estimate.ci_high < 0.62
