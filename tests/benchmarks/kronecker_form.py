"""When does EK-FAC's Kronecker form fail? Networks that learn digits, early and late, with right and random labels.

    python tests/benchmarks/kronecker_form.py [--epochs 2 20 100] [--noise 0 0.3] [--seeds 3]

Both sides work layer by layer, so that the Kronecker form alone tells them apart: EK-FAC, and G's blocks written out.
Beside the correlation of their predicted changes of test losses (24 examples left out, 48 test examples) stand
how many examples carry G, (Σ t)² / Σ t² of each example's share t of its trace; and what of G, relative to it, is
missing in A ⊗ S, in the Frobenius norm, the mean over layers. With random labels for a share of the examples a network
stays unsure of many, whatever it has learned: if few hard examples were what breaks the form, it should hold there.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import torch

from tasks.evaluation.correlation import correlations, over_seeds
from tasks.evaluation.inverses import System
from tasks.evaluation.perceptron import Problem, fisher_passes, loss_gradients, network, new_weights
from tasks.evaluation.response import DescentParameters, train
from tasks.influence.exact import solve_exactly
from tasks.influence.vectors import flatten
from tasks.problems import ProblemParameters, make_problem

LEFT_OUT, TESTS = 24, 48


def measure(epochs: int, noise: float, seed: int, width: int, relative: float) -> dict[str, float]:
    """What one network says."""
    problem = _noisy(make_problem(ProblemParameters(), seed).problem, noise, seed)
    weights = train(problem, new_weights(problem, (width,), seed), DescentParameters(epochs=epochs), seed)
    system = System(problem, weights)
    draw = np.random.default_rng([seed, 1])
    out = torch.from_numpy(draw.choice(problem.n, LEFT_OUT, replace=False))
    asked = torch.from_numpy(draw.choice(len(problem.test_inputs), TESTS, replace=False))
    vectors = loss_gradients(problem, weights, problem.inputs[out], problem.targets[out])
    tests = flatten(loss_gradients(problem, weights, problem.test_inputs[asked], problem.test_targets[asked]))
    outputs = network(weights, problem.inputs, problem.activation)
    found = {"loss": float(problem.losses(outputs, problem.targets).mean())}
    sizes = [matrix.numel() for matrix in weights.values()]
    blocks = [rows.split(sizes, dim=1)[k] for k, rows in enumerate(system.matrix.split(sizes))]
    trace = float(sum(block.trace() for block in blocks)) / sum(sizes)
    for name, damping in (("λ .01", 0.01), ("λ relative", relative * trace)):
        exact = flatten(solve_exactly(torch.block_diag(*blocks), vectors, system.equal(damping)))
        ekfac = flatten(system.solve("ekfac", vectors, [damping])[damping].vectors)
        found[name] = float(np.nanmean(correlations((exact @ tests.T).numpy(), (ekfac @ tests.T).numpy())["pearson"]))
    found["examples"] = _carrying(system)
    missing = []
    for block, basis in zip(blocks, system.bases.values(), strict=True):
        q = torch.kron(basis.out.dense.double(), basis.inp.dense.double())
        form = q @ (basis.kfac_eigenvalues.double().flatten()[:, None] * q.T)
        missing.append(float((block - form).norm() / block.norm()))
    return found | {"missing": float(np.mean(missing))}


def _noisy(problem: Problem, noise: float, seed: int) -> Problem:
    """A share of the training examples with a class drawn at random."""
    draw = np.random.default_rng([seed, 3])
    chosen = torch.from_numpy(draw.choice(problem.n, round(noise * problem.n), replace=False))
    targets = problem.targets.clone()
    targets[chosen] = torch.from_numpy(draw.integers(problem.outputs, size=len(chosen)))
    return replace(problem, targets=targets)


def _carrying(system: System) -> float:
    """(Σ t)² / Σ t², t an example's share of G's trace: Σ over labels and layers of ‖δ‖² ‖ā‖²."""
    share = torch.zeros(system.problem.n, dtype=torch.float64)
    for _, calls in fisher_passes(system.problem, system.weights):
        for [call] in calls.values():
            inputs = call.inputs[:, 0].double().square().sum(1) + 1
            share += call.deltas[:, 0].double().square().sum(1) * inputs
    return float(share.sum() ** 2 / share.square().sum())


def main() -> None:
    """A line for each number of epochs and each noise; means over seeds with 95 % t-intervals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, nargs="+", default=[2, 20, 100])
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.3], help="share of random labels")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--width", type=int, default=32, help="of the hidden layer")
    parser.add_argument("--relative", type=float, default=1.0, help="the other λ, in means of G's diagonal")
    asked = parser.parse_args()
    for noise in asked.noise:
        for epochs in asked.epochs:
            seeds = [measure(epochs, noise, seed, asked.width, asked.relative) for seed in range(asked.seeds)]
            print(f"noise {noise:g}, {epochs} epochs:", end=" ")
            for name in seeds[0]:
                e = over_seeds([found[name] for found in seeds])
                print(f"{name} {e.value:.3f} ± {e.ci_high - e.value:.3f}", end="; ", flush=True)
            print(flush=True)


if __name__ == "__main__":
    main()
