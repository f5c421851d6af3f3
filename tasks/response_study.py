"""A study of what leaving examples out does: its parameters, its name, its units, and what each seed chooses.

A unit is one file for each seed and each block of examples left out; a study that grows has more of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from storage.digests import code_revision, digest_of
from storage.errors import InputError
from storage.store import Store
from storage.studies import read_unit
from tasks.evaluation.correlation import POINTS, SEEDS
from tasks.evaluation.inverses import EXPLICIT, EffortParameters, Inverse
from tasks.evaluation.perceptron import Problem, Weights, loss_gradients, new_weights
from tasks.influence.exact import LARGEST
from tasks.influence.vectors import Vectors
from tasks.problems import NetworkParameters, ProblemParameters, Split, make_problem

Objective = Literal["loo", "cold", "warm", "proximity", "pbrf", "linearised"]
DAMPED: tuple[Objective, ...] = ("proximity", "pbrf", "linearised")  # whose networks depend on λ
MINIMISED: tuple[Objective, ...] = ("proximity", "pbrf")  # one example after another
BLOCK, SIDE_BY_SIDE = 8, 32  # examples left out in one unit: of what is minimised, of all else


class LeaveOutParameters(BaseModel):
    """Which examples are left out, one at a time, and what of their loss is predicted how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seeds: int = Field(5, ge=1, le=1000, description="splits, networks and choices of examples; at least 3")
    left_out: int = Field(32, ge=1, description="training examples left out, one at a time, for each seed")
    tests: int = Field(64, ge=1, description="test examples whose loss is asked about, for each seed")
    dampings: tuple[float, ...] = Field(
        (0.01, 0.001, 0.1), min_length=1, description="λ in the units of G; the first is the one of the main table"
    )
    methods: tuple[Inverse, ...] = Field(
        ("ekfac", "kfac", "lissa", "cg", "identity", "exact_blocks", "exact", "hessian"), min_length=1,
        description="of (G + λI)⁻¹",
    )  # fmt: skip
    start: Literal["same", "own"] = Field(
        "same", description="of what is trained again: the network's start and order, or a start of its own for each"
    )
    iterations: int = Field(500, ge=1, description="of L-BFGS for proximity and pbrf, at most")
    tolerance: float = Field(1e-3, gt=0, lt=1, description="of L-BFGS: gradient relative to the example's own term")
    effort: EffortParameters = EffortParameters()


@dataclass(frozen=True)
class ResponseStudy:
    """What a study is of; its id is of everything that decides its figures."""

    store: Store
    study_id: str
    problem: ProblemParameters
    network: NetworkParameters
    asked: LeaveOutParameters
    objectives: tuple[Objective, ...]


@dataclass(frozen=True)
class Unit:
    """One file of a study."""

    study: ResponseStudy
    name: str
    seed: int
    objective: Objective | None = None
    method: Inverse | None = None
    damping: float = 0.0
    block: int = 0


@dataclass(frozen=True, eq=False)
class Chosen:
    """A seed's problem, with the training examples that are left out and the test examples that are asked about."""

    split: Split
    left_out: torch.Tensor  # [m]
    tests: torch.Tensor  # [t]

    @property
    def problem(self) -> Problem:
        """The examples to learn, and all to ask about."""
        return self.split.problem

    def gradients(self, weights: Weights) -> Vectors:
        """∇L of the examples left out."""
        inputs, targets = self.problem.inputs[self.left_out], self.problem.targets[self.left_out]
        return loss_gradients(self.problem, weights, inputs, targets)

    def test_gradients(self, weights: Weights) -> Vectors:
        """∇L of the examples asked about."""
        inputs, targets = self.problem.test_inputs[self.tests], self.problem.test_targets[self.tests]
        return loss_gradients(self.problem, weights, inputs, targets)


def describe_responses(
    store: Store,
    problem: ProblemParameters,
    network: NetworkParameters,
    asked: LeaveOutParameters,
    objectives: tuple[Objective, ...],
) -> ResponseStudy:
    """Name a study; what cannot be left out, or would give no interval, is refused before anything is trained."""
    split = make_problem(problem, 0)
    for what, number, least, most in (
        ("seeds", asked.seeds, SEEDS, None),
        ("examples left out", asked.left_out, POINTS, split.problem.n),
        ("test examples", asked.tests, POINTS, len(split.test_rows)),
    ):
        if number < least:
            raise InputError(
                f"{what} of a study of {split.problem.name}",
                expected=f"at least {least}, of which an interval can be made",
                found=f"{number}",
                remedy="Ask for more.",
            )
        if most is not None and number > most:
            raise InputError(
                f"{what} of a study of {split.problem.name}",
                expected=f"at most as many as there are, {most:,}",
                found=f"{number:,}",
                remedy="Ask for fewer, or take a larger table.",
            )
    _require_damping(asked.dampings)
    weights = new_weights(split.problem, network.hidden, 0)
    _require_small(asked.methods, sum(matrix.numel() for matrix in weights.values()))
    shared = asked.model_dump(exclude={"seeds", "dampings", "methods"})  # these only add units
    made_from = [split.fingerprint, problem.model_dump(), network.model_dump(), shared, objectives, code_revision()]
    return ResponseStudy(store, f"study-{digest_of(made_from)[:12]}", problem, network, asked, objectives)


def _require_damping(dampings: Sequence[float]) -> None:
    least = min(dampings)
    if not least > 0:
        raise InputError(
            "damping",
            expected="λ above zero: G is singular, and without it nothing keeps a network near the trained one",
            found=f"{least:g}",
            remedy="Give a positive --damping.",
        )


def _require_small(methods: Sequence[Inverse], weights: int) -> None:
    explicit = [name for name in methods if name in EXPLICIT]
    if explicit and weights > LARGEST:
        raise InputError(
            f"{', '.join(explicit)}, which write a matrix out",
            expected=f"a network of at most {LARGEST:,} weights",
            found=f"{weights:,}",
            remedy="Leave them out of --methods, or ask for narrower --hidden layers.",
        )


def retraining_units(
    study: ResponseStudy, seed: int, objective: Objective, damping: float | None = None
) -> Iterator[Unit]:
    """The units of an objective, those of one λ where one is named."""
    asked = study.asked.dampings if damping is None else (damping,)
    for value in asked if objective in DAMPED else (0.0,):
        of = f"seed-{seed}-{objective}" + (f"-{value!r}" if objective in DAMPED else "")
        for block in range(-(-study.asked.left_out // block_size(objective))):
            yield Unit(study, f"{of}-{block}", seed, objective, None, value, block)


def block_size(objective: Objective) -> int:
    """Examples left out in one unit: of small networks a step of many takes little longer than one of a few."""
    return BLOCK if objective in MINIMISED else SIDE_BY_SIDE


def solution_units(study: ResponseStudy, seed: int) -> list[Unit]:
    """The units of all methods: one each, with every λ, because what is made for one serves them all."""
    values = "-".join(f"{value!r}" for value in study.asked.dampings)
    return [Unit(study, f"seed-{seed}-{m}-{values}", seed, None, m) for m in study.asked.methods]


def choose(study: ResponseStudy, seed: int) -> Chosen:
    """What a seed learns, leaves out and asks about."""
    split = make_problem(study.problem, seed, study.network.activation)
    random = np.random.default_rng([seed, 1])
    left_out = random.choice(split.problem.n, study.asked.left_out, replace=False)
    tests = random.choice(len(split.test_rows), study.asked.tests, replace=False)
    return Chosen(split, torch.from_numpy(left_out), torch.from_numpy(tests))


def trained_network(study: ResponseStudy, seed: int) -> Weights:
    """θˢ of a seed."""
    return by_layer(read_unit(study.store, study.study_id, f"seed-{seed}-trained"))


def by_layer(tensors: dict[str, torch.Tensor]) -> Weights:
    """Matrices of a file in the order of their layers, which a file forgets."""
    return dict(sorted(tensors.items(), key=lambda item: int(item[0].split()[-1])))
