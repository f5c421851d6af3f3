"""Response stages: small networks trained, trained again with one example less, and what influence says of that.

    problem ─▶ trained ─┬─▶ cold, warm, proximity, pbrf, linearised ─▶ networks with one example less
                        └─▶ (G + λI)⁻¹ ∇L by every method           ─▶ the networks that influence predicts

Each unit is a job that writes its own file: what is there is not done again, however the study was stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch

from storage.studies import has_unit, write_unit
from tasks.evaluation.inverses import System
from tasks.evaluation.perceptron import Problem, Weights, loss_gradients, new_weights
from tasks.evaluation.response import own_terms, respond, retrain, settle, train
from tasks.fanout import Workers, fan_out
from tasks.problems import make_problem
from tasks.response_study import (
    ResponseStudy,
    Unit,
    block_size,
    choose,
    retraining_units,
    solution_units,
    trained_network,
)
from tasks.stage import stage


@stage("networks")
def train_networks(study: ResponseStudy, workers: Workers) -> None:
    """One network for each seed."""
    _finish([Unit(study, f"seed-{s}-trained", s) for s in range(study.asked.seeds)], _train, workers, "networks")


@stage("retraining")
def retrain_networks(study: ResponseStudy, workers: Workers) -> None:
    """Networks with one example less, under every objective."""
    units = [unit for s in range(study.asked.seeds) for o in study.objectives for unit in retraining_units(study, s, o)]
    _finish(units, _retrain, workers, "retraining")


@stage("solutions")
def solve_systems(study: ResponseStudy, workers: Workers) -> None:
    """(G + λI)⁻¹ ∇L of the examples left out, by every method."""
    units = [unit for s in range(study.asked.seeds) for unit in solution_units(study, s)]
    _finish(units, _solve, workers, "solutions")


def _finish(units: Sequence[Unit], work: Callable[[Unit], None], workers: Workers, label: str) -> None:
    missing = [unit for unit in units if not has_unit(unit.study.store, unit.study.study_id, unit.name)]
    fan_out(workers.lexical, work, missing, label, workers.lexical_resources)  # of small networks a GPU has no use


def _write(unit: Unit, tensors: dict[str, torch.Tensor]) -> None:
    write_unit(unit.study.store, unit.study.study_id, unit.name, tensors)


def _train(unit: Unit) -> None:
    network = unit.study.network
    problem = make_problem(unit.study.problem, unit.seed, network.activation).problem
    _write(unit, train(problem, new_weights(problem, network.hidden, unit.seed), network.training, unit.seed))


def _retrain(unit: Unit) -> None:
    chosen, network, seed = choose(unit.study, unit.seed), unit.study.network, unit.seed
    problem, trained = chosen.problem, trained_network(unit.study, seed)
    assert unit.objective is not None  # of a unit of networks
    left_out = chosen.left_out.split(block_size(unit.objective))[unit.block]
    start = _start(unit, problem, left_out)
    again, further = (network.training, seed), (network.training.further, seed + 1)
    if unit.objective == "loo":
        found = retrain(problem, start, left_out, [again])
    elif unit.objective == "cold":
        found = retrain(problem, start, left_out, [again, further])
    elif unit.objective == "warm":
        found = retrain(problem, trained, left_out, [further])
    elif unit.objective == "linearised":
        inputs, targets = problem.inputs[left_out], problem.targets[left_out]
        gradients = loss_gradients(problem, trained, inputs, targets)
        solved = System(problem, trained).converged(gradients, unit.damping)
        found = {name: trained[name] + value / problem.n for name, value in solved.vectors.items()}
        found["residuals"] = solved.residuals
    else:
        found = _responses(unit, problem, trained, left_out)
    _write(unit, found)


def _start(unit: Unit, problem: Problem, left_out: torch.Tensor) -> Weights:
    """Where what is trained again starts: as the trained network did, or each example's somewhere else, [m, o, i]."""
    hidden = unit.study.network.hidden
    if unit.study.asked.start == "same":
        return new_weights(problem, hidden, unit.seed)
    seeds = [int(np.random.default_rng([unit.seed, 2, z]).integers(2**31)) for z in left_out.tolist()]
    every = [new_weights(problem, hidden, seed) for seed in seeds]
    return {name: torch.stack([start[name] for start in every]) for name in every[0]}


def _responses(unit: Unit, problem: Problem, trained: Weights, left_out: torch.Tensor) -> dict[str, torch.Tensor]:
    asked = unit.study.asked
    objective: Literal["proximity", "pbrf"] = "pbrf" if unit.objective == "pbrf" else "proximity"
    start = trained
    if objective == "proximity":
        smallest = asked.tolerance * float(np.median(own_terms(problem, trained, left_out)))
        start = settle(problem, trained, unit.damping, smallest)
    minima = [
        respond(problem, objective, trained, z, unit.damping, asked.iterations, asked.tolerance, start)
        for z in left_out.tolist()
    ]
    found = {name: torch.stack([minimum.weights[name] for minimum in minima]) for name in trained}
    return found | {"residuals": torch.tensor([minimum.residual for minimum in minima])}


def _solve(unit: Unit) -> None:
    chosen, trained = choose(unit.study, unit.seed), trained_network(unit.study, unit.seed)
    assert unit.method is not None  # of a unit of solutions
    system = System(chosen.problem, trained, unit.study.asked.effort, unit.seed)
    found = system.solve(unit.method, chosen.gradients(trained), unit.study.asked.dampings)
    tensors = {f"{damping!r} {name}": value for damping, s in found.items() for name, value in s.vectors.items()}
    tensors |= {f"{damping!r} residuals": s.residuals for damping, s in found.items()}
    _write(unit, tensors | {"seconds": torch.tensor([s.seconds for s in found.values()])})
