"""What inverting the damped curvature costs as a network grows: the matrix written out and solved, or its products.

python tests/benchmarks/solver_cost.py [--widths 12 24 48 96] [--wider 200 400 800] [--rounds 3] [-o cost.svg]

Networks with one hidden layer learn scikit-learn's digits (n = 1,438) for a few steps, and 2 gradients are solved for;
in the wider ones, whose matrix would not fit, by the other ways alone, because below some thousand weights most of
what a product takes is the calls that it is made of.
Written out, G takes D products of O(n·D) each and the solve D³/3 multiplications; conjugate gradients and LiSSA take a
fixed number of products, EK-FAC two passes and the eigenvectors of its factors. Seconds are a processor's, on one
thread, so that what else runs does not count; slopes are of log seconds against log D, by least squares.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.ticker import FuncFormatter

from tasks.evaluation.inverses import EffortParameters, System
from tasks.evaluation.perceptron import Weights, loss_gradients, new_weights
from tasks.evaluation.response import DescentParameters, train
from tasks.fact_plots import LIGHT, svg
from tasks.influence.exact import solve_exactly
from tasks.problems import ProblemParameters, make_problem

DAMPING = 0.01
EFFORT = EffortParameters(iterations=20, tolerance=1e-12, depth=100, rounds=1, batch=256, alpha=0.01)
LABELS = {
    "matrix": "G written out, D products",
    "solve": "dense solve, D³/3",
    "cg": "conjugate gradients, 20 products",
    "lissa": "LiSSA, 100 products of 256 examples",
    "ekfac": "EK-FAC, factors and solve",
}


def timings(width: int, rounds: int, explicit: bool) -> tuple[int, dict[str, float]]:
    """The number of weights, and the least seconds of each way, those that write the matrix out where it is asked."""
    problem = make_problem(ProblemParameters(), 0).problem
    weights = train(problem, new_weights(problem, (width,), 0), DescentParameters(epochs=3), 0)
    vectors = loss_gradients(problem, weights, problem.inputs[:2], problem.targets[:2])
    fresh = lambda: System(problem, weights, EFFORT)  # noqa: E731  # nothing is kept from one round to the next
    ways: dict[str, Callable[[], object]] = {}
    if explicit:
        matrix = fresh().matrix
        ways["matrix"] = lambda: fresh().matrix
        ways["solve"] = lambda: solve_exactly(matrix, vectors, dict.fromkeys(weights, DAMPING))
    ways |= {
        "cg": lambda: fresh().solve("cg", vectors, [DAMPING]),
        "lissa": lambda: fresh().solve("lissa", vectors, [DAMPING]),
        "ekfac": lambda: fresh().solve("ekfac", vectors, [DAMPING]),
    }
    return _size(weights), {name: min(_seconds(way) for _ in range(rounds)) for name, way in ways.items()}


def _size(weights: Weights) -> int:
    return sum(matrix.numel() for matrix in weights.values())


def _seconds(way: Callable[[], object]) -> float:
    began = time.process_time()
    way()
    return time.process_time() - began


def upper_slope(points: list[tuple[int, float]]) -> float:
    """Of log seconds against log D, over the largest three networks."""
    return float(np.polyfit(*np.log(points[-3:]).T, 1)[0])


def plot(found: dict[str, list[tuple[int, float]]], output: Path) -> None:
    """Seconds against D on logarithmic axes."""

    def draw(figure, theme) -> None:
        axes = figure.subplots()
        for k, (name, points) in enumerate(found.items()):
            d, seconds = [list(values) for values in zip(*points, strict=True)]
            label = f"{LABELS[name]}: slope {upper_slope(points):.1f}"
            axes.plot(d, seconds, marker="o", ms=4, lw=1.8, color=theme.colours[k], label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.set_xlabel("weights D")
        axes.set_ylabel("seconds")
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))

    output.write_bytes(svg(draw, 9.6, 3.6, LIGHT))


def main() -> None:
    """Measure, print a table, draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[12, 24, 48, 96])
    parser.add_argument("--wider", type=int, nargs="*", default=[200, 400, 800])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, default=None)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: [] for name in LABELS}
    for width in [*asked.widths, *asked.wider]:
        size, seconds = timings(width, asked.rounds, width in asked.widths)
        for name, value in seconds.items():
            found[name].append((size, value))
        print(f"D = {size:,}: " + ", ".join(f"{name} {value:.3g} s" for name, value in seconds.items()), flush=True)
    print("slope over the largest three networks:")
    for name, points in found.items():
        print(f"  {LABELS[name]:40} {upper_slope(points):5.2f}")
    if asked.output:
        plot(found, asked.output)


if __name__ == "__main__":
    main()
