"""Response evaluation stage: how well each method predicts what leaving an example out does, and where the two part.

`loss_changes` gets every measured and predicted change of a test example's loss, `evaluations` what they come to: the
study stands there for a run, an objective in brackets, and beside it a λ that is not the main one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import pyarrow as pa
import torch

from storage.store import Store
from storage.studies import read_unit
from storage.tables import write_part
from tasks.evaluation.correlation import correlations, mean_correlation, over_seeds
from tasks.evaluation.perceptron import Weights, network
from tasks.evaluation.ranking import Estimate
from tasks.evaluation.response import losses_on_tests, output_distance, outputs_of
from tasks.figures import add_figures
from tasks.influence.vectors import flatten
from tasks.response_study import (
    BLOCK,
    DAMPED,
    Chosen,
    Objective,
    ResponseStudy,
    by_layer,
    choose,
    retraining_units,
    solution_units,
    trained_network,
)
from tasks.stage import stage

KINDS = ("pearson", "spearman")
CHAIN: tuple[Objective, ...] = ("cold", "warm", "proximity", "pbrf", "linearised")
GAPS = ("warm-start", "proximity", "non-convergence", "linearisation")  # between neighbours of the chain
Sources = dict[tuple[str, float], np.ndarray]  # by objective or method and λ; λ is 0 where there is none


@dataclass(frozen=True, eq=False)
class SeedFindings:
    """What one seed measured and predicted: changes of test losses [m, t], distances of outputs [m]."""

    seed: int
    n: int
    n_weights: int
    train_loss: float
    test_loss: float
    left_out: np.ndarray  # [m], rows of the table
    tests: np.ndarray  # [t]
    measured: Sources
    predicted: Sources
    gaps: Sources
    residuals: Sources  # [m]: how far a network is from its minimum, or a solution from solving its system
    seconds: dict[str, float]  # of each method for all examples left out, at the main λ


@dataclass(frozen=True, eq=False)
class ResponseFindings:
    """A study's seeds, and what they come to."""

    study: ResponseStudy
    seeds: tuple[SeedFindings, ...]

    @property
    def damping(self) -> float:
        """The main λ."""
        return self.study.asked.dampings[0]

    @cached_property
    def correlations(self) -> dict[tuple[str, str, float, str], Estimate]:
        """Of method, objective, λ and kind: means over test examples, with intervals over seeds."""
        found = {}
        for objective in self.study.objectives:
            for damping in self.study.asked.dampings:
                key = (objective, damping if objective in DAMPED else 0.0)
                for method in self.study.asked.methods:
                    every = [correlations(s.measured[key], s.predicted[method, damping]) for s in self.seeds]
                    for kind in KINDS:
                        means = [mean_correlation(values[kind], objective) for values in every]
                        found[method, objective, damping, kind] = over_seeds(means, -1.0, 1.0)
        return found

    @cached_property
    def gaps(self) -> dict[tuple[str, float], Estimate]:
        """Mean distances of outputs over the examples left out, with intervals over seeds."""
        return {
            key: over_seeds([float(s.gaps[key].mean()) for s in self.seeds], 0.0)
            for key in self.seeds[0].gaps
        }  # fmt: skip

    @cached_property
    def seconds(self) -> dict[str, Estimate]:
        """Wall clock of each method, all examples left out together."""
        return {m: over_seeds([s.seconds[m] for s in self.seeds], 0.0) for m in self.study.asked.methods}


@stage("response evaluation")
def evaluate_responses(study: ResponseStudy) -> ResponseFindings:
    """Compare the networks of every seed, fill `loss_changes` and `evaluations`, and return the figures."""
    found = ResponseFindings(study, tuple(_findings(study, s) for s in range(study.asked.seeds)))
    _write_changes(study.store, found)
    add_figures(study.store, study.study_id, list(_rows(found)))
    return found


def _findings(study: ResponseStudy, seed: int) -> SeedFindings:
    chosen, trained = choose(study, seed), trained_network(study, seed)
    problem = chosen.problem
    before = {name: matrix[None] for name, matrix in trained.items()}
    losses = losses_on_tests(problem, before)[0]
    moves, residuals, seconds = _solutions(study, seed)
    test_gradients = flatten(chosen.test_gradients(trained))
    predicted = {
        key: (flatten(moved) @ test_gradients.T / problem.n).numpy() for key, moved in moves.items()
    }  # fmt: skip
    networks: dict[tuple[str, float], Weights] = {}
    for objective in study.objectives:
        for damping in study.asked.dampings if objective in DAMPED else (0.0,):
            networks[objective, damping] = _networks(study, seed, objective, damping, residuals)
    measured = {k: (losses_on_tests(problem, w) - losses)[:, chosen.tests].numpy() for k, w in networks.items()}
    gaps = {}
    if set(CHAIN) <= set(study.objectives):
        solved = {k: {n: trained[n] + v / problem.n for n, v in moved.items()} for k, moved in moves.items()}
        gaps = _gaps(study, chosen, networks, solved)
    return SeedFindings(
        seed,
        problem.n,
        sum(matrix.numel() for matrix in trained.values()),
        float(problem.losses(network(trained, problem.inputs, problem.activation), problem.targets).mean()),
        float(losses.mean()),
        chosen.split.rows[chosen.left_out.numpy()],
        chosen.split.test_rows[chosen.tests.numpy()],
        measured,
        predicted,
        gaps,
        residuals,
        seconds,
    )


def _networks(study: ResponseStudy, seed: int, objective: Objective, damping: float, residuals: Sources) -> Weights:
    """The networks [m, o, i] of an objective; how far they are from their minimum goes into `residuals`."""
    of = None if objective not in DAMPED else damping
    blocks = [read_unit(study.store, study.study_id, u.name) for u in retraining_units(study, seed, objective, of)]
    found = {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}
    if "residuals" in found:
        residuals[objective, damping] = found.pop("residuals").numpy()
    return by_layer(found)


def _solutions(study: ResponseStudy, seed: int) -> tuple[dict[tuple[str, float], Weights], Sources, dict[str, float]]:
    """(G + λI)⁻¹ ∇L by method and λ, how far from solving the system, and the seconds at the main λ."""
    moves: dict[tuple[str, float], Weights] = {}
    residuals, seconds = {}, {}
    for unit in solution_units(study, seed):
        tensors = read_unit(study.store, study.study_id, unit.name)
        seconds[str(unit.method)] = float(tensors.pop("seconds")[0])
        for name, value in tensors.items():
            damping, _, matrix = name.partition(" ")
            key = (str(unit.method), float(damping))
            if matrix == "residuals":
                residuals[key] = value.numpy()
            else:
                moves.setdefault(key, {})[matrix] = value
    return {key: by_layer(found) for key, found in moves.items()}, residuals, seconds


def _gaps(
    study: ResponseStudy,
    chosen: Chosen,
    networks: dict[tuple[str, float], Weights],
    solved: dict[tuple[str, float], Weights],
) -> Sources:
    """Distances of neighbours' outputs over the training examples, a few networks at a time."""
    parts: dict[tuple[str, float], list[torch.Tensor]] = {}
    for start in range(0, study.asked.left_out, BLOCK):
        rows = slice(start, start + BLOCK)
        for damping in study.asked.dampings:
            chain = [networks[o, damping if o in DAMPED else 0.0] for o in CHAIN]
            outputs = [_outputs(chosen, weights, rows) for weights in chain]
            for name, (left, right) in zip(GAPS, pairwise(outputs), strict=True):
                key = (name, damping if name != GAPS[0] else 0.0)
                if damping == study.asked.dampings[0] or key[1]:
                    parts.setdefault(key, []).append(output_distance(left, right))
            for method in study.asked.methods:
                if method != "identity":  # whose step has no size that could be compared
                    found = _outputs(chosen, solved[method, damping], rows)
                    parts.setdefault((f"solver {method}", damping), []).append(output_distance(outputs[-1], found))
    return {key: torch.cat(found).numpy() for key, found in parts.items()}


def _outputs(chosen: Chosen, weights: Weights, rows: slice) -> torch.Tensor:
    some = {name: matrix[rows] for name, matrix in weights.items()}
    return outputs_of(chosen.problem, some, chosen.problem.inputs)


def _write_changes(store: Store, found: ResponseFindings) -> None:
    """One row per seed, source, λ, example left out and test example."""
    tables: list[dict[str, np.ndarray]] = []
    for s in found.seeds:
        for (source, damping), changes in (s.measured | s.predicted).items():
            m, t = changes.shape
            tables.append(
                {
                    "study_id": np.full(m * t, found.study.study_id),
                    "seed": np.full(m * t, s.seed),
                    "source": np.full(m * t, source),
                    "damping": np.full(m * t, damping or np.nan),
                    "example_id": np.repeat(s.left_out, t),
                    "test_id": np.tile(s.tests, m),
                    "change": changes.ravel(),
                }
            )
    columns: dict = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    columns["damping"] = pa.array(columns["damping"], from_pandas=True)  # not a number: none
    write_part(store, "loss_changes", found.study.study_id, columns=columns)


def _rows(found: ResponseFindings) -> Iterator[tuple[str, str, Estimate]]:
    """Method, metric and figure of every row; a prediction depends on λ whatever it is held against."""

    def beside(damping: float) -> str:
        return f", damping {damping:g}" if damping else ""

    for (method, objective, damping, kind), estimate in found.correlations.items():
        yield method, f"{kind}[{objective}{beside(damping)}]", estimate
    for (name, damping), estimate in found.gaps.items():
        solver, _, method = name.partition(" ")
        yield method or name, f"gap[{solver if method else name}{beside(damping)}]", estimate
    for method, estimate in found.seconds.items():
        yield method, "seconds", estimate
