"""Tables of examples to learn from: a user's Parquet or CSV file, or one that scikit-learn carries.

Columns of numbers are inputs, one named column is the target: classes, or numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from storage.digests import digest_of, digest_of_file
from storage.errors import InputError

BUNDLED = ("digits", "wine", "iris", "breast-cancer", "diabetes")
REGRESSION = ("diabetes",)
SUFFIXES = (".parquet", ".csv")
FEW = 1000  # classes, past which a column of text or whole numbers is no column of classes

Kind = Literal["classification", "regression"]


@dataclass(frozen=True, eq=False)
class Examples:
    """Rows of numbers with what is to be said of them: a class number, or a number."""

    name: str
    kind: Kind
    inputs: np.ndarray  # [n, d]
    targets: np.ndarray  # [n], whole numbers from 0 for classes
    classes: tuple[str, ...]  # by number; none of a regression
    fingerprint: str


def read_examples(table: str, target: str | None, kind: Literal["auto"] | Kind = "auto") -> Examples:
    """The table of that name, or at that path; `auto` takes floating-point targets for a regression."""
    if table in BUNDLED:
        return _bundled(table)
    path = Path(table).expanduser()
    if path.suffix not in SUFFIXES or not path.is_file():
        raise InputError(
            f"table {table!r}",
            expected=f"{', '.join(BUNDLED)}, or a file ending in {' or '.join(SUFFIXES)}",
            found="nothing there" if path.suffix in SUFFIXES else "another name",
            remedy="Correct --table.",
        )
    found = _read(path)
    if target is None or target not in found.column_names:
        raise InputError(
            f"table {path}",
            expected="the name of its target column in --target",
            found="none" if target is None else f"{target!r}, and columns {', '.join(found.column_names)}",
            remedy="Name one of its columns.",
        )
    inputs = np.column_stack([_numbers(path, name, found[name]) for name in found.column_names if name != target])
    return _with_targets(path, target, found[target], kind, inputs)


def _bundled(name: str) -> Examples:
    from sklearn import datasets

    load: Callable[..., Any] = getattr(datasets, f"load_{name.replace('-', '_')}")
    found = load()
    inputs, targets = np.asarray(found.data, np.float64), np.asarray(found.target)
    kind: Kind = "regression" if name in REGRESSION else "classification"
    classes = () if kind == "regression" else tuple(map(str, found.target_names))
    fingerprint = digest_of([name, inputs.tobytes().hex(), targets.tobytes().hex()])
    return Examples(name, kind, inputs, targets, classes, fingerprint)


def _read(path: Path) -> pa.Table:
    try:
        found = pq.read_table(path) if path.suffix == ".parquet" else pyarrow.csv.read_csv(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            f"table {path}",
            expected="a complete Parquet file, or CSV with a line of names",
            found=str(error).splitlines()[0],
            remedy="Fetch or write the file again.",
        ) from error
    if found.num_rows == 0 or found.num_columns < 2:
        raise InputError(
            f"table {path}",
            expected="rows, a target and at least one column beside it",
            found=f"{found.num_rows:,} rows of {found.num_columns} columns",
            remedy="Name another file.",
        )
    return found


def _numbers(path: Path, name: str, column: pa.ChunkedArray) -> np.ndarray:
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise InputError(
            f"column {name!r} of {path}",
            expected="numbers",
            found=str(kind),
            remedy="Leave it out, or turn it into numbers, as one column of 0 and 1 for each value.",
        )
    _require_whole(path, name, column)
    return column.cast(pa.float64()).to_numpy()


def _require_whole(path: Path, name: str, column: pa.ChunkedArray) -> None:
    missing = column.null_count
    if pa.types.is_floating(column.type):
        missing += len(column) - column.null_count - (pc.sum(pc.is_finite(column)).as_py() or 0)
    if missing:
        raise InputError(
            f"column {name!r} of {path}",
            expected="a value in every row",
            found=f"{missing:,} of {len(column):,} rows without one",
            remedy="Fill them in, or leave those rows out.",
        )


def _with_targets(
    path: Path, target: str, column: pa.ChunkedArray, kind: Literal["auto"] | Kind, inputs: np.ndarray
) -> Examples:
    _require_whole(path, target, column)
    if kind == "auto":
        kind = "regression" if pa.types.is_floating(column.type) else "classification"
    fingerprint = digest_of([digest_of_file(path), target, kind])
    if kind == "regression":
        return Examples(path.stem, kind, inputs, _numbers(path, target, column), (), fingerprint)
    classes, numbers = np.unique(column.to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
    if not 2 <= len(classes) <= FEW:
        raise InputError(
            f"target {target!r} of {path}",
            expected=f"2 to {FEW:,} classes",
            found=f"{len(classes):,} different values",
            remedy="Name another column, or say --kind regression.",
        )
    return Examples(path.stem, kind, inputs, numbers, tuple(classes.tolist()), fingerprint)
