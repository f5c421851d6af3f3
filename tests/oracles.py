"""What the code must compute, written a second time the slow way: explicit matrices, loops, float64.

Nothing here calls tasks.influence. Weights are seen as W [o, i], bias as the last column; vec is row-major, so
vec(δ āᵀ) = δ ⊗ ā and the matrices of one module have (o·i)² entries, output index first.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev
from transformers.pytorch_utils import Conv1D


def assert_agree(found, expected, tolerance: float) -> None:
    """Equal up to `tolerance` of the largest expected magnitude; on failure, where and by how much."""
    found, expected = (np.asarray(torch.as_tensor(x).detach().double()) for x in (found, expected))
    assert found.shape == expected.shape, f"shape {found.shape}, expected {expected.shape}"
    error, scale = np.abs(found - expected), np.abs(expected).max(initial=0)
    if not (error <= tolerance * scale).all():
        worst = np.unravel_index(np.argmax(np.nan_to_num(error, nan=np.inf)), error.shape)
        raise AssertionError(
            f"at {tuple(map(int, worst))}: found {found[worst]:.9g}, expected {expected[worst]:.9g}; "
            f"error {error[worst]:.3g} > {tolerance:.1g} × {scale:.3g}, the largest expected"
        )


# Gradients


def _homogeneous(layer: nn.Module, weights: dict[str, Tensor]) -> Tensor:
    weight = weights["weight"].T if isinstance(layer, Conv1D) else weights["weight"]
    return torch.cat([weight, weights["bias"][:, None]], dim=1) if "bias" in weights else weight


def negative_log_likelihood(logits: Tensor, tokens: Sequence[int], first_scored: int, labels=None) -> Tensor:
    """−Σ log p over the scored positions of one sequence; `labels[t]` replaces the token after t."""
    logs = torch.log_softmax(logits.double(), dim=-1)
    targets = list(tokens[1:]) if labels is None else list(labels)
    return -sum((logs[t, targets[t]] for t in range(first_scored - 1, len(tokens) - 1)), start=logs.sum() * 0)


def sequence_gradient(model: nn.Module, name: str, tokens, first_scored: int = 1, labels=None) -> Tensor:
    """∇W [o, i] of one sequence alone, by differentiating the model as a function of its weights."""
    model = copy.deepcopy(model).double()
    layer = model.get_submodule(name)
    weights = {key: p.detach() for key, p in layer.named_parameters(recurse=False)}

    def loss(weights: dict[str, Tensor]) -> Tensor:
        swapped = {f"{name}.{key}": value for key, value in weights.items()}
        logits = functional_call(model, swapped, (), _inputs(tokens), tie_weights=True).logits[0]
        return negative_log_likelihood(logits, tokens, first_scored, labels)

    return _homogeneous(layer, grad(loss)(weights))


def _inputs(tokens) -> dict:
    return {"input_ids": torch.tensor([list(tokens)]), "use_cache": False}


class _Probe(nn.Module):
    """A module that notes what came in and adds a zero to what goes out, to be differentiated by."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.inputs, self.zeros = inner, [], []

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        self.inputs.append(x[0].detach())
        self.zeros.append(torch.zeros_like(y, requires_grad=True))
        return y + self.zeros[-1]


def positions(model: nn.Module, name: str, tokens, labels=None) -> list[tuple[Tensor, Tensor]]:
    """(ā_t, δ_t) at each scored position of each use of a module, for one sequence alone."""
    model = copy.deepcopy(model).double().requires_grad_(False)
    layer = model.get_submodule(name)
    probe = _Probe(layer)
    model.set_submodule(name, probe)
    loss = negative_log_likelihood(model(**_inputs(tokens)).logits[0], tokens, 1, labels)
    deltas = torch.autograd.grad(loss, probe.zeros)
    one = [] if layer.bias is None else [torch.ones(1, dtype=torch.float64)]
    return [
        (torch.cat([a[t], *one]), d[0, t])
        for a, d in zip(probe.inputs, deltas, strict=True)
        for t in range(len(tokens) - 1)
    ]


# Curvature


def fisher(gradients: Tensor) -> Tensor:
    """Mean over sequences of vec(∇W) vec(∇W)ᵀ."""
    flat = gradients.double().flatten(1)
    return flat.T @ flat / len(flat)


def gauss_newton(model: nn.Module, name: str, corpus: Sequence[Sequence[int]]) -> Tensor:
    """Mean over sequences of Σ_t J_tᵀ (diag p_t − p_t p_tᵀ) J_t, J_t the Jacobian of the logits in vec(W)."""
    model = copy.deepcopy(model).double()
    layer = model.get_submodule(name)
    weights = {key: p.detach() for key, p in layer.named_parameters(recurse=False)}
    blocks = []
    for tokens in corpus:

        def logits(weights: dict[str, Tensor], tokens=tokens) -> Tensor:
            swapped = {f"{name}.{key}": value for key, value in weights.items()}
            return functional_call(model, swapped, (), _inputs(tokens)).logits[0]

        probabilities = torch.softmax(logits(weights), dim=-1)
        jacobian = jacrev(logits)(weights)
        block = 0
        for t in range(len(tokens) - 1):
            p = probabilities[t]
            rows = [_homogeneous(layer, {k: j[t, v] for k, j in jacobian.items()}).flatten() for v in range(len(p))]
            j_t = torch.stack(rows)
            block = block + j_t.T @ (torch.diag(p) - torch.outer(p, p)) @ j_t
        blocks.append(block)
    return torch.stack(blocks).mean(0)


def joint_jacobians(model: nn.Module, names: Sequence[str], tokens: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """(p_t, J_t) at each scored position of a sequence; J_t [v, d] in all weights of the named modules, one by one."""
    model = copy.deepcopy(model).double()
    layers = [model.get_submodule(name) for name in names]
    weights = [{key: p.detach() for key, p in layer.named_parameters(recurse=False)} for layer in layers]

    def logits(weights: list[dict[str, Tensor]]) -> Tensor:
        swapped = {f"{n}.{key}": value for n, own in zip(names, weights, strict=True) for key, value in own.items()}
        return functional_call(model, swapped, (), _inputs(tokens), tie_weights=True).logits[0]

    probabilities, jacobians = torch.softmax(logits(weights), dim=-1), jacrev(logits)(weights)
    found = []
    for t in range(len(tokens) - 1):
        rows = [
            torch.cat(
                [
                    _homogeneous(layer, {key: j[t, v] for key, j in own.items()}).flatten()
                    for layer, own in zip(layers, jacobians, strict=True)
                ]
            )
            for v in range(probabilities.shape[1])
        ]
        found.append((probabilities[t], torch.stack(rows)))
    return found


def joint_gauss_newton(model: nn.Module, names: Sequence[str], corpus: Sequence[Sequence[int]]) -> Tensor:
    """Mean over sequences of Σ_t J_tᵀ (diag p_t − p_t p_tᵀ) J_t in the weights of several modules together."""
    return sum(
        j.T @ (torch.diag(p) - torch.outer(p, p)) @ j for z in corpus for p, j in joint_jacobians(model, names, z)
    ) / len(corpus)


def spectral(q_out: Tensor, q_in: Tensor, eigenvalues: Tensor) -> Tensor:
    """(Q_S ⊗ Q_A) diag(Λ) (Q_S ⊗ Q_A)ᵀ as a matrix."""
    q = torch.kron(q_out.double().contiguous(), q_in.double().contiguous())
    return q @ torch.diag(eigenvalues.double().flatten()) @ q.T


def damped_solve(matrix: Tensor, damping: float, gradient: Tensor) -> Tensor:
    """(G + λI)⁻¹ vec(V), by Gaussian elimination."""
    damped = matrix.double() + damping * torch.eye(len(matrix), dtype=torch.float64)
    return torch.linalg.solve(damped, gradient.double().flatten()).view(gradient.shape)


# Random labels


def splitmix64(state: int) -> int:
    """The output after `state` of Steele, Lea & Flood 2014's generator, in Python's unbounded integers."""
    mask = (1 << 64) - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
    return z ^ (z >> 31)


MASK = (1 << 64) - 1


def counter(seed: int, sequence_id: int, position: int) -> int:
    """The key of one position."""
    return splitmix64(splitmix64(splitmix64(seed) ^ (sequence_id & MASK)) ^ splitmix64(position))


def uniform(key: int) -> float:
    """The draw of one key: its top 52 bits, and a half, as a fraction."""
    return ((splitmix64(key) >> 12) + 0.5) / 2.0**52


def race(masses: Sequence[float], key: int) -> int:
    """Which of independent exponential clocks with these rates rings first."""
    arrivals = [-math.log(uniform(key ^ splitmix64(j))) / m if m > 0 else math.inf for j, m in enumerate(masses)]
    return arrivals.index(min(arrivals))


def sampled_labels(model: nn.Module, tokens, sequence_id: int, seed: int) -> list[int]:
    """The label of each position: a race of groups of neighbouring tokens, then one inside the winner."""
    logits = copy.deepcopy(model).double()(**_inputs(tokens)).logits[0]
    size = 2 ** round(math.log2(logits.shape[1]) / 2)
    labels = []
    for t, row in enumerate(torch.softmax(logits, dim=-1).tolist()):
        groups = [row[k : k + size] for k in range(0, len(row), size)]
        key = counter(seed, sequence_id, t)
        g = race([sum(group) for group in groups], key)
        labels.append(g * size + race(groups[g], splitmix64(key)))
    return labels


# Convex training


def linear_optimum(x: Tensor, corpus: Sequence[Sequence[int]], weights: Tensor, l2: float, start: Tensor) -> Tensor:
    """argmin of Σ_n weight_n L_n(W) + l2/2 ‖W‖² for logits W x_token, by Newton's method to the last digit."""
    pairs = [(w, z[t], z[t + 1]) for w, z in zip(weights, corpus, strict=True) for t in range(len(z) - 1)]
    share = torch.stack([w for w, _, _ in pairs])
    before, after = (torch.tensor([p[k] for p in pairs]) for k in (1, 2))

    def objective(flat: Tensor) -> Tensor:
        logits = x[before] @ flat.view(start.shape).T
        losses = torch.logsumexp(logits, 1) - logits.gather(1, after[:, None])[:, 0]
        return share @ losses + l2 / 2 * flat @ flat

    flat = start.flatten().double()
    for _ in range(30):
        step = torch.linalg.solve(hessian(objective)(flat), grad(objective)(flat))
        flat = flat - step
        if step.abs().max() < 1e-15:
            break
    return flat.view(start.shape)


def linear_log_probability(w: Tensor, x: Tensor, tokens, first_scored: int) -> float:
    """log p of the scored tokens under logits W x_token."""
    logits = x[torch.tensor(list(tokens))] @ w.T
    return -float(negative_log_likelihood(logits, tokens, first_scored))
