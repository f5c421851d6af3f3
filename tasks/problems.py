"""A table of examples as a problem for small networks: split, standardised, in the order of a seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from storage.errors import InputError
from storage.examples import read_examples
from tasks.evaluation.perceptron import Activation, Problem
from tasks.evaluation.response import DescentParameters

CLIP = 4.0  # standard deviations: a pixel that is hardly ever lit would stand out by dozens


class ProblemParameters(BaseModel):
    """Which examples are learned."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    table: str = Field(
        "digits", min_length=1, description="digits, wine, iris, breast-cancer, diabetes, or a Parquet or CSV file"
    )
    target: str | None = Field(None, description="of a file: the column that is to be said of the others")
    kind: Literal["auto", "classification", "regression"] = Field(
        "auto", description="of a file's target; auto: floating-point numbers are a regression, all else classes"
    )
    test_share: float = Field(0.2, gt=0, lt=1, description="of the examples: not learned, asked about")
    examples: int | None = Field(None, ge=2, description="at most so many, drawn by seed; none: all")


class NetworkParameters(BaseModel):
    """The network that learns them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: tuple[int, ...] = Field((32,), description="widths of the hidden layers")
    activation: Activation = Field("tanh", description="of the hidden layers: tanh, or relu, whose kinks hold descents")
    training: DescentParameters = Field(default_factory=DescentParameters)


@dataclass(frozen=True, eq=False)
class Split:
    """A problem, and which rows of the table its examples are."""

    problem: Problem
    rows: np.ndarray
    test_rows: np.ndarray
    fingerprint: str  # of the table


def make_problem(parameters: ProblemParameters, seed: int, activation: Activation = "tanh") -> Split:
    """Examples in the seed's order, the last ones for testing; inputs and numbers to be said in training's units.

    Those are the mean and standard deviation of the training examples; inputs are cut at CLIP of them.
    """
    found = read_examples(parameters.table, parameters.target, parameters.kind)
    order = np.random.default_rng(seed).permutation(len(found.inputs))[: parameters.examples]
    n_test = max(1, round(parameters.test_share * len(order)))
    rows, test_rows = order[:-n_test], order[-n_test:]
    if len(rows) < 2:
        raise InputError(
            f"table {found.name}",
            expected="at least 2 examples to learn",
            found=f"{len(rows)} beside {n_test} for testing",
            remedy="Take a larger table, or a smaller --test-share.",
        )
    inputs = np.clip(_standardised(found.inputs, rows), -CLIP, CLIP)
    if found.kind == "classification":
        targets, outputs = torch.from_numpy(found.targets.astype(np.int64)), len(found.classes)
    else:
        targets, outputs = torch.from_numpy(_standardised(found.targets[:, None].astype(np.float64), rows)), 1
    given = torch.from_numpy(inputs)
    examples = given[rows], targets[rows], given[test_rows], targets[test_rows]
    problem = Problem(found.name, found.kind, *examples, outputs, activation)
    return Split(problem, rows, test_rows, found.fingerprint)


def _standardised(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    mean, deviation = values[rows].mean(axis=0), values[rows].std(axis=0)
    return (values - mean) / np.where(deviation > 0, deviation, 1.0)
