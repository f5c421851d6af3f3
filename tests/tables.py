"""Tables of two runs held against each other."""

from __future__ import annotations

from numpy.testing import assert_allclose


def require_equal(far: list[tuple], near: list[tuple]) -> None:
    """Row for row; float32 sums differ in their last digits with the number of threads and where memory lies."""
    assert len(far) == len(near) > 0
    for ours, theirs in zip(zip(*far, strict=True), zip(*near, strict=True), strict=True):
        known = [value for value in theirs if value is not None]
        assert [value is None for value in ours] == [value is None for value in theirs]
        if known and isinstance(known[0], float):
            found = [value for value in ours if value is not None]
            assert_allclose(found, known, rtol=0, atol=2e-6 * max(map(abs, known)))
        else:
            assert ours == theirs
