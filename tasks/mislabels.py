"""Mislabel stages: networks taught some wrong labels, and how soon each ranking of the examples finds them.

A seed is a unit of the study, one file of scores: what is there is not done again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from storage.digests import code_revision, digest_of
from storage.errors import InputError
from storage.store import Store
from storage.studies import has_unit, read_unit, write_unit
from tasks.evaluation.correlation import SEEDS, over_seeds
from tasks.evaluation.inspection import found_curve, inspection_places
from tasks.evaluation.inverses import System
from tasks.evaluation.perceptron import Problem, Weights, loss_gradients, network, new_weights
from tasks.evaluation.ranking import Estimate
from tasks.evaluation.response import train
from tasks.fanout import Workers, fan_out
from tasks.figures import write_figures
from tasks.influence.vectors import inner
from tasks.problems import NetworkParameters, ProblemParameters, make_problem
from tasks.stage import stage

METHODS = ("ekfac", "identity", "loss", "random")
INSPECTED = (0.1, 0.2, 0.3)  # shares of the examples, after which one asks how many wrong labels are found
TOGETHER = 256  # examples whose gradients are there at once


class MislabelParameters(BaseModel):
    """How many labels are wrong, and how they are looked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float = Field(0.1, gt=0, lt=1, description="of the training examples: labelled as another class")
    damping: float = Field(0.01, gt=0, description="λ in the units of G")
    seeds: int = Field(5, ge=1, le=1000, description="splits, networks and choices of wrong labels; at least 3")


@dataclass(frozen=True)
class MislabelStudy:
    """What a study is of; its id is of everything that decides its figures."""

    store: Store
    study_id: str
    problem: ProblemParameters
    network: NetworkParameters
    asked: MislabelParameters


@dataclass(frozen=True)
class SeedUnit:
    """One network and its wrong labels."""

    study: MislabelStudy
    seed: int

    @property
    def name(self) -> str:
        """Of the unit's file."""
        return f"seed-{self.seed}"


@dataclass(frozen=True, eq=False)
class MislabelFindings:
    """By seed and method, the share of examples that is looked at until each wrong label is found, ascending."""

    study: MislabelStudy
    n: int
    n_wrong: int
    learned: float  # share of the wrong labels that the network came to repeat, mean over seeds
    places: tuple[dict[str, np.ndarray], ...]

    @cached_property
    def estimates(self) -> dict[tuple[str, float], Estimate]:
        """Of method and share inspected: the share of wrong labels found, with intervals over seeds."""
        return {
            (method, share): over_seeds([float(found_curve(p[method], share)) for p in self.places], 0.0, 1.0)
            for method in METHODS
            for share in INSPECTED
        }

    def curve(self, method: str, inspected: np.ndarray) -> np.ndarray:
        """The share found against the share inspected, mean over seeds."""
        return np.mean([found_curve(places[method], inspected) for places in self.places], axis=0)


def describe_mislabels(
    store: Store, problem: ProblemParameters, network: NetworkParameters, asked: MislabelParameters
) -> MislabelStudy:
    """Name a study; what has no labels, or would give no interval, is refused before anything is trained."""
    split = make_problem(problem, 0)
    if split.problem.kind != "classification":
        raise InputError(
            f"table {split.problem.name}",
            expected="classes, of which one can be taken for another",
            found="numbers to be said",
            remedy="Name a table of classes, or say --kind classification.",
        )
    if asked.seeds < SEEDS:
        raise InputError(
            f"seeds of a study of {split.problem.name}",
            expected=f"at least {SEEDS}, of which an interval can be made",
            found=f"{asked.seeds}",
            remedy="Ask for more.",
        )
    if round(asked.share * split.problem.n) < 1:
        raise InputError(
            f"wrong labels among {split.problem.n:,} examples of {split.problem.name}",
            expected="at least one",
            found=f"a share of {asked.share:g}",
            remedy="Give a larger --share, or take a larger table.",
        )
    shared = asked.model_dump(exclude={"seeds"})
    made_from = ["mislabels", split.fingerprint, problem.model_dump(), network.model_dump(), shared, code_revision()]
    return MislabelStudy(store, f"study-{digest_of(made_from)[:12]}", problem, network, asked)


@stage("mislabelled networks")
def teach_mislabels(study: MislabelStudy, workers: Workers) -> None:
    """One network for each seed, taught the wrong labels, and the scores of its examples."""
    units = [SeedUnit(study, seed) for seed in range(study.asked.seeds)]
    missing = [unit for unit in units if not has_unit(study.store, study.study_id, unit.name)]
    fan_out(workers.lexical, _teach, missing, "mislabelled networks", workers.lexical_resources)


@stage("mislabel evaluation")
def find_mislabels(study: MislabelStudy) -> MislabelFindings:
    """Rank the examples of every seed by each method, fill `evaluations`, and return the figures."""
    places, learned, n, n_wrong = [], [], 0, 0
    for seed in range(study.asked.seeds):
        scores = {k: v.numpy() for k, v in read_unit(study.store, study.study_id, SeedUnit(study, seed).name).items()}
        wrong = scores["wrong"].astype(np.bool_)
        n, n_wrong = len(wrong), int(wrong.sum())
        names = [f"{seed} {row}" for row in range(n)]
        places.append({m: inspection_places(scores.get(m, np.zeros(n)), wrong, names) for m in METHODS})
        learned.append(float(scores["repeated"][wrong].mean()))
    found = MislabelFindings(study, n, n_wrong, float(np.mean(learned)), tuple(places))
    rows = [(method, f"found@{share:.0%}", e) for (method, share), e in found.estimates.items()]
    write_figures(study.store, study.study_id, rows)
    return found


def mislabel(problem: Problem, share: float, seed: int) -> tuple[Problem, torch.Tensor]:
    """The problem with that share of its labels turned into another class each, and which."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(problem.n, generator=generator)[: round(share * problem.n)]
    by = torch.randint(1, problem.outputs, (len(chosen),), generator=generator)
    targets = problem.targets.clone()
    targets[chosen] = (targets[chosen] + by) % problem.outputs
    return replace(problem, targets=targets), torch.zeros(problem.n, dtype=torch.bool).index_fill(0, chosen, True)


def _teach(unit: SeedUnit) -> None:
    study = unit.study
    problem, wrong = mislabel(
        make_problem(study.problem, unit.seed, study.network.activation).problem, study.asked.share, unit.seed
    )
    start = new_weights(problem, study.network.hidden, unit.seed)
    trained = train(problem, start, study.network.training, unit.seed)
    outputs = network(trained, problem.inputs, problem.activation)
    scores = _self_influences(problem, trained, study.asked.damping)
    scores |= {"loss": problem.losses(outputs, problem.targets), "wrong": wrong.to(torch.uint8)}
    scores["repeated"] = (outputs.argmax(-1) == problem.targets).to(torch.uint8)
    write_unit(study.store, study.study_id, unit.name, scores)


def _self_influences(problem: Problem, trained: Weights, damping: float) -> dict[str, torch.Tensor]:
    """∇Lᵀ (G + λI)⁻¹ ∇L of every example, and ‖∇L‖²."""
    metrics, curved, plain = System(problem, trained).metrics(damping), [], []
    for rows in torch.arange(problem.n).split(TOGETHER):
        gradients = loss_gradients(problem, trained, problem.inputs[rows], problem.targets[rows])
        curved.append(inner(gradients, {n: metrics[n].precondition(g.float()) for n, g in gradients.items()}))
        plain.append(inner(gradients, gradients))
    return {"ekfac": torch.cat(curved), "identity": torch.cat(plain)}
