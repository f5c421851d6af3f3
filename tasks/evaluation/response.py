"""Networks trained again with one example less: the five objectives between retraining and influence functions.

Bae et al. 2022 (arXiv 2209.05364). J is the mean loss, ε = 1/N the weight of an example z, θˢ the trained network:

cold        min J(θ) − ε L(z, θ)                                          from the start: leave-one-out retraining
warm        the same                                                      from θˢ
proximity   + λ/2 ‖θ − θˢ‖²                                               from θˢ
pbrf        min 1/N Σ D_L(f(θ, x), f(θˢ, x)) − ε L(z, θ) + λ/2 ‖θ − θˢ‖²  the proximal Bregman response function
linearised  the same with f linearised and D_L squared at θˢ:             θˢ + ε (G + λI)⁻¹ ∇L(z, θˢ)

Each step changes one thing, so that the distances between neighbours say where an influence and a retraining part.
The first two are trained as the network was, in its order of examples, many side by side: matrices carry an axis for
them. The next two are minimised to convergence, because what is left of their gradient would pass for a difference.

Letters: m examples left out, n training and t test examples, d weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from scipy.optimize import minimize
from torch import Tensor
from torch.func import vmap

from tasks.evaluation.perceptron import Problem, Weights, loss_gradients, network
from tasks.influence.errors import InfluenceError
from tasks.influence.vectors import flatten, norm, unflatten

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Retrained = Literal["cold", "warm"]
Minimised = Literal["proximity", "pbrf"]
LARGE = 1e6  # times the loss at the start, or nats, past which a training has diverged
MEMORY = 50  # steps that L-BFGS remembers
SETTLING = 5000  # of its iterations, at most, with every example


class DescentParameters(BaseModel):
    """How a network is trained: by steps on batches in a seeded order, the step's size falling as half a cosine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(20, ge=1, le=100_000, description="passes over the training examples")
    batch_size: int = Field(128, ge=1, le=1_000_000, description="examples per step")
    learning_rate: float = Field(0.02, gt=0, description="step size at the start")
    optimizer: Literal["sgd", "adam"] = Field("sgd", description="sgd with momentum .9, or adam")

    @property
    def further(self) -> DescentParameters:
        """Half as many epochs more at a tenth of the step: what follows where training went on."""
        return self.model_copy(update={"epochs": -(-self.epochs // 2), "learning_rate": self.learning_rate / 10})


@dataclass(frozen=True)
class Minimum:
    """A network that minimises an objective, and how far it is from that."""

    weights: Weights
    residual: float  # ‖∇‖ at the end relative to that of the example's own term, ε ‖∇L(z, θˢ)‖


def train(problem: Problem, start: Weights, descent: DescentParameters, seed: int) -> Weights:
    """The network that minimises the mean loss, from `start`."""
    rows = {name: matrix[None] for name, matrix in start.items()}
    found = _descend(problem, rows, None, descent, seed)
    return {name: matrix[0] for name, matrix in found.items()}


def retrain(
    problem: Problem, start: Weights, left_out: Int[Tensor, "m"], phases: Sequence[tuple[DescentParameters, int]]
) -> Weights:
    """Networks [m, o, i], each trained without one example in descents that follow one another, each with its seed.

    They start at one network [o, i], or at one each.
    """
    rows = {name: matrix.expand(len(left_out), *matrix.shape[-2:]) for name, matrix in start.items()}
    for descent, seed in phases:
        rows = _descend(problem, rows, left_out, descent, seed)
    return rows


def respond(
    problem: Problem,
    objective: Minimised,
    trained: Weights,
    left_out: int,
    damping: float,
    iterations: int,
    tolerance: float,
    start: Weights | None = None,
) -> Minimum:
    """The minimum of an objective near the trained network, sought from there or from `start`.

    It stops where the residual is below the tolerance or the iterations are over.
    """
    own = max(own_terms(problem, trained, torch.tensor([left_out]))[0], torch.finfo(torch.float64).tiny)
    start = trained if start is None else start
    found, left = _minimise(problem, objective, trained, left_out, damping, start, iterations, tolerance * own)
    return Minimum(found, left / own)


def settle(problem: Problem, trained: Weights, damping: float, smallest: float) -> Weights:
    """The minimum of the proximity objective with every example, from the trained network: none is left out.

    Those with one less lie near it. Sought from the trained network, which has not converged, they would be hundreds
    of steps away and in valleys of their own, whose distances would pass for what the example does.
    """
    return _minimise(problem, "proximity", trained, None, damping, trained, SETTLING, smallest)[0]


def own_terms(problem: Problem, trained: Weights, left_out: Int[Tensor, "m"]) -> list[float]:
    """‖∇L(z, θˢ)‖ of each example."""
    return norm(loss_gradients(problem, trained, problem.inputs[left_out], problem.targets[left_out])).tolist()


def _minimise(
    problem: Problem,
    objective: Minimised,
    trained: Weights,
    left_out: int | None,
    damping: float,
    start: Weights,
    iterations: int,
    smallest: float,
) -> tuple[Weights, float]:
    """By L-BFGS over all examples (Liu & Nocedal 1989), until N times the gradient is as small; and that gradient."""
    like = {name: matrix[None] for name, matrix in trained.items()}
    before = network(trained, problem.inputs, problem.activation)

    def value(place: np.ndarray) -> tuple[float, np.ndarray]:
        rows = torch.tensor(place, requires_grad=True)
        outputs = network(_moved(trained, rows, like), problem.inputs, problem.activation)
        losses = problem.losses(outputs, problem.targets)
        whole = (problem.divergences(outputs, before) if objective == "pbrf" else losses).mean()
        # N times the objective, whose gradient is of the size of 1/N.
        total = problem.n * (whole + damping / 2 * rows.square().sum())
        if left_out is not None:
            total = total - losses[left_out]
        [gradient] = torch.autograd.grad(total, rows)
        return float(total.detach()), gradient.numpy()

    step = flatten({name: (start[name] - trained[name])[None] for name in trained})[0].numpy()
    found = minimize(
        value,
        step,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": iterations, "maxfun": 2 * iterations, "maxcor": MEMORY, "ftol": 0.0,
                 "gtol": smallest / math.sqrt(len(step))},
    )  # fmt: skip
    if not found.fun > -LARGE:
        raise InfluenceError(
            f"{problem.name}: expected a minimum of the objective {objective} near the trained network, found that the "
            f"loss of example {left_out}, left out, grows without end with λ = {damping:g}. Use a larger --damping, or "
            "--activation tanh."
        )
    return _moved(trained, torch.tensor(found.x), like), float(np.linalg.norm(found.jac))


def output_distance(left: Float[Tensor, "m n v"], right: Float[Tensor, "m n v"]) -> Float[Tensor, "m"]:
    """The mean over training examples of ‖f(θ, x) − f(θ', x)‖, network by network."""
    return (left - right).norm(dim=-1).mean(-1)


def outputs_of(problem: Problem, weights: Weights, inputs: Float[Tensor, "n d"]) -> Float[Tensor, "m n v"]:
    """What each of m networks gives."""
    return vmap(lambda some: network(some, inputs, problem.activation))(weights)


def losses_on_tests(problem: Problem, weights: Weights) -> Float[Tensor, "m t"]:
    """The loss of every test example under each of m networks."""
    outputs = outputs_of(problem, weights, problem.test_inputs)
    return vmap(lambda some: problem.losses(some, problem.test_targets))(outputs)


def _moved(trained: Weights, rows: Float[Tensor, "d"], like: Weights) -> Weights:
    """The trained network with a step added."""
    return {name: trained[name] + step[0] for name, step in unflatten(rows[None], like).items()}


def _descend(
    problem: Problem, rows: Weights, left_out: Int[Tensor, "m"] | None, descent: DescentParameters, seed: int
) -> Weights:
    """Minimise J, or J − ε L(z), for every row at once: their gradients do not meet in a sum."""
    held = {name: matrix.clone().requires_grad_() for name, matrix in rows.items()}
    optimizer = _optimizer(descent, list(held.values()))
    steps = descent.epochs * -(-problem.n // descent.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    first = math.nan
    for batch in _batches(problem.n, descent, seed):
        optimizer.zero_grad()
        values = vmap(lambda some, batch=batch: _mean_loss(problem, some, batch))(held)
        if left_out is not None:
            values = values - vmap(_own_loss(problem))(held, problem.inputs[left_out], problem.targets[left_out])
        total = float(values.detach().abs().sum())
        first = total if math.isnan(first) else first
        if not total <= LARGE * max(1.0, first):  # also where it is not a number
            raise InfluenceError(
                f"training on {problem.name}: expected a loss that falls, found {total:.3g} after {first:.3g} at the "
                f"start. Use a learning rate below {descent.learning_rate:g}, as {descent.learning_rate / 10:g}."
            )
        values.sum().backward()
        optimizer.step()
        schedule.step()
    return {name: matrix.detach() for name, matrix in held.items()}


def _mean_loss(problem: Problem, weights: Weights, batch: Tensor) -> Tensor:
    return problem.losses(network(weights, problem.inputs[batch], problem.activation), problem.targets[batch]).mean()


def _own_loss(problem: Problem) -> Callable[[Weights, Tensor, Tensor], Tensor]:
    """ε L(z, θ) of one network and its own example."""

    def loss(weights: Weights, given: Tensor, target: Tensor) -> Tensor:
        return problem.losses(network(weights, given[None], problem.activation), target[None])[0] / problem.n

    return loss


def _optimizer(descent: DescentParameters, parameters: list[Tensor]) -> torch.optim.Optimizer:
    if descent.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=descent.learning_rate)
    return torch.optim.SGD(parameters, lr=descent.learning_rate, momentum=0.9)


def _batches(n: int, descent: DescentParameters, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(descent.epochs):
        yield from torch.randperm(n, generator=generator).split(descent.batch_size)
