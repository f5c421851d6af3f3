"""Tables of one experiment carried out twice, compared."""

from __future__ import annotations

import pytest


def assert_same(found: dict[str, list[tuple]], expected: dict[str, list[tuple]]) -> None:
    """Row for row: keys, texts and ranks are equal, and numbers to the rounding of float32.

    Where in memory a matrix lies decides in which order its products are added up, and a walk that goes on in another
    process has them elsewhere.
    """
    for relation, rows in expected.items():
        assert [_exact(row) for row in found[relation]] == [_exact(row) for row in rows], relation
        for mine, theirs in zip(_numbers(found[relation]), _numbers(rows), strict=True):
            assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-6 * max(map(abs, theirs))), relation


def _exact(row: tuple) -> tuple:
    return tuple(None if isinstance(value, float) else value for value in row)


def _numbers(rows: list[tuple]) -> list[list[float]]:
    """The columns of floating-point numbers."""
    columns = [[value for value in column if isinstance(value, float)] for column in zip(*rows, strict=True)]
    return [column for column in columns if column]
