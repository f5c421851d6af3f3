"""From a fit and a sample to (G + λI)⁻¹ ∇L_q by products of the exact Gauss-Newton matrix, for all modules together.

λ is EK-FAC's, module by module, so that one damping means one thing whatever the method; EK-FAC's inverse is also what
conjugate gradients are preconditioned with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from transformers import PreTrainedModel

from storage.factors import Fit
from storage.sequences import all_sequence_ids, corpus_parts, read_tokens
from tasks.influence.batches import Batch, TokenSequence, batches, collate
from tasks.influence.conjugate_gradients import Solved, conjugate_gradients
from tasks.influence.datainf import datainf, mean_squares
from tasks.influence.exact import explicit_matrix, solve_exactly
from tasks.influence.gauss_newton import Curvature, language_model_curvature
from tasks.influence.lanczos import leading_eigenpairs
from tasks.influence.lissa import choose_series, largest_eigenvalue, lissa
from tasks.influence.modules import TrackedModule
from tasks.influence.objectives import true_token_gradient
from tasks.influence.sweep import Objective, sweep
from tasks.influence.vectors import Product, Vectors, combine, damped, norm
from tasks.metrics import fit_objective, load_metric
from tasks.sampling import uniform_sample
from tasks.scoring import Scoring

POWER = 30  # products that the largest eigenvalue is estimated from


@dataclass(frozen=True)
class System:
    """(G + λI) of one model, with what solvers need of it."""

    scoring: Scoring
    network: PreTrainedModel
    modules: list[TrackedModule]
    fit: Fit

    @cached_property
    def sequences(self) -> list[TokenSequence]:
        """The sample that G is the mean of; a smaller one is part of the fit's."""
        store, size = self.scoring.store, self.scoring.measured.solver.sequences
        ids = uniform_sample(all_sequence_ids(corpus_parts(store)), size, self.seed)
        tokens = read_tokens(store, np.array(ids))
        return [TokenSequence(i, tokens[i]) for i in ids.tolist() if len(tokens[i]) > 1]

    @cached_property
    def batches(self) -> list[Batch]:
        """The sample, padded."""
        return list(batches(self.sequences, self.scoring.compute.batch_size, self.network.device))

    @cached_property
    def metrics(self):
        """EK-FAC's inverse of each module."""
        scoring = self.scoring
        return {
            m.name: load_metric(scoring.store, self.fit, m, "ekfac", scoring.damping, self.network.device)
            for m in self.modules
        }

    @property
    def damping(self) -> dict[str, float]:
        """λ of each module."""
        return {name: metric.damping for name, metric in self.metrics.items()}

    @property
    def product(self) -> Product:
        """v ↦ G v over the sample."""
        return self._over(self.batches)

    def batch_product(self, j: int) -> Product:
        """v ↦ G v over the j-th random batch."""
        generator = np.random.default_rng([self.seed, j])
        size = min(self.scoring.measured.solver.batch, len(self.sequences))
        chosen = [self.sequences[k] for k in generator.choice(len(self.sequences), size, replace=False)]
        return self._over([collate(chosen, self.network.device)])

    def precondition(self, vectors: Vectors) -> Vectors:
        """EK-FAC's answer."""
        return {name: self.metrics[name].precondition(value) for name, value in vectors.items()}

    def passes(self, objective: Objective):
        """The sample's calls under an objective."""
        return sweep(self.network, self.modules, iter(self.batches), objective)

    @property
    def objective(self) -> Objective:
        """What the fit differentiated."""
        return fit_objective(self.fit.made_from["parameters"]["fisher"], self.seed)

    @property
    def seed(self) -> int:
        """Of the fit's sample and labels."""
        return self.fit.made_from["parameters"]["seed"]

    def _over(self, some: Iterable[Batch]) -> Product:
        held = list(some)
        n = sum(len(batch.sequence_ids) for batch in held)
        curvature: Curvature[Batch] = language_model_curvature(self.network, self.modules, lambda: held, n)
        return curvature.gauss_newton


def solve(system: System, method: str, gradients: Vectors) -> Solved:
    """(G + λI)⁻¹ ∇L_q [q, o, i] of every module, and the residuals: of the iterations, or of the answer alone."""
    if method == "cg":
        asked = system.scoring.measured.solver
        product = damped(system.product, system.damping)
        return conjugate_gradients(product, gradients, system.precondition, asked.iterations, asked.tolerance)
    found = SOLVERS[method](system, gradients)
    if method in ("datainf", "diagonal"):  # they solve another system: of that of G nothing was promised
        return Solved(found, torch.full((1, len(next(iter(gradients.values())))), torch.nan))
    rest = combine(gradients, -1.0, damped(system.product, system.damping)(found))
    return Solved(found, (norm(rest) / norm(gradients).clamp_min(torch.finfo(torch.float64).tiny))[None])


def _exact(system: System, gradients: Vectors) -> Vectors:
    return solve_exactly(explicit_matrix(system.product, gradients), gradients, system.damping)


def _lissa(system: System, gradients: Vectors) -> Vectors:
    asked = system.scoring.measured.solver
    largest = largest_eigenvalue(system.product, gradients, POWER)
    series = choose_series(largest, system.damping, asked.depth, asked.rounds, asked.alpha)
    return lissa(system.batch_product, gradients, system.damping, series)


def _arnoldi(system: System, gradients: Vectors) -> Vectors:
    asked = system.scoring.measured.solver
    pairs = leading_eigenpairs(system.product, gradients, asked.steps, asked.eigenpairs, system.seed)
    return pairs.inverse(gradients, float(np.mean(list(system.damping.values()))))


def _datainf(system: System, gradients: Vectors) -> Vectors:
    return datainf(system.passes(true_token_gradient), system.modules, gradients, system.damping)


def _diagonal(system: System, gradients: Vectors) -> Vectors:
    squares = mean_squares(system.passes(system.objective), system.modules)
    return {name: (v / (squares[name] + system.damping[name])).to(v.dtype) for name, v in gradients.items()}


SOLVERS: dict[str, Callable[[System, Vectors], Vectors]] = {
    "exact": _exact,
    "lissa": _lissa,
    "arnoldi": _arnoldi,
    "datainf": _datainf,
    "diagonal": _diagonal,
}
