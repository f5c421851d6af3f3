"""A, S, K-FAC, EK-FAC and their damped inverses against curvlinops 3.0.1, in float64 up to our float32 sums.

What coincides, and why:
- A and S ("expand"): it takes every position of every sequence, so all sequences have one length and no padding,
  and every position counts;
- Λ: it sums each sequence's positions before it squares, as we do, in its compute_eigenvalue_correction_linear_
  weight_sharing. It refuses predictions of more than two dimensions, lest a caller take that for the Fisher of
  independent tokens; a model that hands its logits over as one row per token says that the sum is meant;
- its matrix is that of its own loss, c times the mean over sequences of the summed loss's: c = number of sequences
  for a summed loss, 1 / tokens for one averaged over tokens, 1 for one averaged over sequences of one scored token.
  Its K-FAC scales with c as well, so it confirms that A ⊗ S carries the positions per sequence;
- weights are [d_out, d_in], row-major, and W's bias follows as a block of its own in the matrix, though not in the
  factors (separate_weight_and_bias=False).

It knows nn.Linear and no Conv1D; Conv1D is compared with differentiation by the weights in test_gradients.py.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import cases
import oracles
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.influence.batches import Batch, TokenSequence, batches
from tasks.influence.modules import TrackedModule, select_modules
from tasks.influence.objectives import true_token_gradient
from tasks.influence.queries import preconditioned_gradients
from tasks.influence.sweep import sweep

pytest.importorskip("curvlinops", reason="an optional oracle: pip install headwater[oracles]")
from curvlinops import (
    EKFACLinearOperator,
    FisherType,
    GGNLinearOperator,
    KFACInverseLinearOperator,
    KFACLinearOperator,
    KFACType,
)

N, T = 24, 5  # sequences, and positions of each that count
QUERY = TokenSequence(0, [3, 1, 4, 15, 9, 2, 6], first_scored=3)
FAMILIES = {name: make for name, make in cases.BIASES.items() if name != "gpt2"}


class Rows(nn.Module):
    """A language model as curvlinops takes it: logits of one row per scored token."""

    def __init__(self, model: nn.Module, scored: str) -> None:
        super().__init__()
        self.model, self.scored = model, scored

    def forward(self, tokens: Tensor) -> Tensor:
        logits = self.model(input_ids=tokens, use_cache=False).logits
        return logits[:, -1] if self.scored == "last" else logits.flatten(0, 1)


def last_token_gradient(logits: Tensor, batch: Batch, rows: Tensor) -> Tensor:
    """Of −Σ log p of each sequence's last token, in the logits of all rows that predict a token."""
    last = rows % batch.token_ids.shape[1] == batch.token_ids.shape[1] - 2

    def loss(logits: Tensor) -> Tensor:
        return functional.cross_entropy(logits[last], batch.next_tokens.flatten()[rows[last]], reduction="sum")

    return torch.func.grad(loss)(logits)


@dataclass(frozen=True)
class Setup:
    """Which tokens are scored, how curvlinops' loss joins them, and its matrix as a multiple of ours."""

    scored: str
    reduction: str
    c: float


SETUPS = {
    "summed": Setup("every", "sum", N),
    "averaged over tokens": Setup("every", "mean", 1 / T),
    "one token each, averaged": Setup("last", "mean", 1),
}


class Both:
    """The fits of both on the same data, labels and model."""

    def __init__(self, family: str, setup: Setup) -> None:
        self.setup, self.model = setup, FAMILIES[family](seed=2)
        self.modules = select_modules(self.model, "all")
        sequences = cases.corpus(17, lengths=[T + 1] * N)
        objective = true_token_gradient if setup.scored == "every" else last_token_gradient
        # Batches of unequal size: 24 = 7 + 7 + 7 + 3.
        self.fit = cases.fit_passes(
            list(sweep(self.model, self.modules, batches(sequences, 7), objective)), self.modules
        )

        rows = Rows(copy.deepcopy(self.model), setup.scored)
        layers = {m.name: rows.model.get_submodule(m.name).requires_grad_() for m in self.modules}
        self.parameters = [p for layer in layers.values() for p in layer.parameters()]
        tokens = torch.tensor([s.token_ids for s in sequences])
        labels = tokens[:, 1:] if setup.scored == "every" else tokens[:, -1:]
        self.arguments = dict(
            model_func=rows,
            loss_func=nn.CrossEntropyLoss(reduction=setup.reduction),
            params=self.parameters,
            data=[(tokens[k : k + 7, :-1], labels[k : k + 7].flatten()) for k in range(0, N, 7)],
        )
        self.kfac, self.ekfac = (self.operator(kind) for kind in (KFACLinearOperator, EKFACLinearOperator))

    def operator(self, kind: type[KFACLinearOperator]) -> KFACLinearOperator:
        return kind(
            **self.arguments,
            fisher_type=FisherType.EMPIRICAL,
            kfac_approx=KFACType.EXPAND,
            separate_weight_and_bias=False,
            check_deterministic=False,
        )

    def matrix(self, operator: KFACLinearOperator) -> Tensor:
        """The operator written out."""
        return operator @ torch.eye(operator.shape[1], dtype=torch.float64)

    def blocks(self, matrix: Tensor) -> dict[str, Tensor]:
        """The diagonal block of each module in the matrix, in our order: rows of W, each with its bias last."""
        found, start = {}, 0
        for m in self.modules:
            end = start + m.d_out * m.columns
            found[m.name] = matrix[start:end, start:end][our_order(m)][:, our_order(m)]
            start = end
        assert start == len(matrix)
        return found


def our_order(module: TrackedModule) -> Tensor:
    """Where each entry of our W stands in theirs: the weight row by row, then the bias."""
    o, i = module.d_out, module.d_in
    weight = torch.arange(o * i).view(o, i)
    return torch.cat([weight, o * i + torch.arange(o)[:, None]], dim=1).flatten() if module.bias else weight.flatten()


@pytest.fixture(scope="module", params=[(family, setup) for family in FAMILIES for setup in SETUPS], ids=" ".join)
def both(request) -> Both:
    family, setup = request.param
    return Both(family, SETUPS[setup])


def test_covariances_are_those_of_curvlinops(both):
    both.kfac.compute_kronecker_factors()
    theirs = both.kfac.state_dict()
    for module in both.modules:
        sums, name = both.fit.sums[module.name], f"model.{module.name}"
        assert (sums.positions, sums.sequences) == (N * T, N)
        oracles.assert_agree(sums.inputs.dense / sums.positions, theirs["input_covariances"][name], 1e-6)
        of_a_sequence = sums.deltas.dense / sums.sequences
        oracles.assert_agree(both.setup.c * of_a_sequence, theirs["gradient_covariances"][name], 1e-6)


def test_eigenvalues_are_those_of_curvlinops(both):
    both.ekfac.compute_eigenvalue_correction()
    theirs = both.ekfac.state_dict()["corrected_eigenvalues"]
    for module in both.modules:
        expected = theirs[f"model.{module.name}"]
        if not module.bias:
            (expected,) = expected.values()
        oracles.assert_agree(both.setup.c * both.fit.eigenvalues[module.name], expected, 1e-5)


@pytest.mark.parametrize("method", ["kfac", "ekfac"])
def test_the_matrix_is_that_of_curvlinops(both, method):
    whole = both.matrix(getattr(both, method))
    blocks = both.blocks(whole)
    for module in both.modules:
        basis = both.fit.bases[module.name]
        values = basis.kfac_eigenvalues if method == "kfac" else both.fit.eigenvalues[module.name]
        ours = oracles.spectral(basis.out.dense, basis.inp.dense, both.setup.c * values)
        oracles.assert_agree(ours, blocks[module.name], 1e-5)
    inside = sum(block.square().sum() for block in blocks.values())
    assert float(inside) == pytest.approx(float(whole.square().sum()), rel=1e-12), "modules are blocks of their own"


@pytest.mark.parametrize("method", ["kfac", "ekfac"])
def test_the_damped_inverse_applied_to_a_gradient_is_that_of_curvlinops(both, method):
    fit = both.fit
    if method == "kfac":
        fit = cases.Fit(fit.sums, fit.bases, {name: basis.kfac_eigenvalues for name, basis in fit.bases.items()})
    damping = 0.1 * float(torch.stack([values.mean() for values in fit.eigenvalues.values()]).mean())
    metrics = fit.metrics(damping)
    ours = preconditioned_gradients(both.model, both.modules, [QUERY], lambda module: metrics[module.name])

    gradients = {m.name: oracles.sequence_gradient(both.model, m.name, QUERY.token_ids, 3) for m in both.modules}
    flat = [entry for m in both.modules for entry in split(gradients[m.name], m)]
    c = both.setup.c  # (cG + cλI)⁻¹ = (G + λI)⁻¹ / c
    inverse = KFACInverseLinearOperator(getattr(both, method), damping=c * damping, use_exact_damping=True)
    theirs = iter(inverse @ flat)
    for module in both.modules:
        weight = next(theirs)
        expected = torch.cat([weight, next(theirs)[:, None]], dim=1) if module.bias else weight
        # The inverse enlarges what float32 rounded: its condition number reaches 1,400 here.
        oracles.assert_agree(ours[module.name][0], c * expected, 1e-4)


def split(gradient: Tensor, module: TrackedModule) -> list[Tensor]:
    """∇W as curvlinops takes it: of the weight, and of the bias where there is one."""
    weight, bias = gradient[:, : module.d_in].contiguous(), gradient[:, module.d_in :]
    return [weight, bias[:, 0].contiguous()] if module.bias else [weight]


@pytest.mark.parametrize("family", ["neox", "llama"])
def test_the_explicit_gauss_newton_matrix_of_these_tests_is_that_of_curvlinops(family):
    model = copy.deepcopy(FAMILIES[family](seed=2))
    model.set_attn_implementation("eager")
    module = select_modules(model, "mlp")[-1]
    sequences = [s.token_ids for s in cases.corpus(17, lengths=[4] * 3)]
    rows = Rows(copy.deepcopy(model), "every")
    tokens = torch.tensor(sequences)
    parameters = list(rows.model.get_submodule(module.name).requires_grad_().parameters())
    loss = nn.CrossEntropyLoss(reduction="sum")
    data = [(tokens[:, :-1], tokens[:, 1:].flatten())]
    operator = GGNLinearOperator(rows, loss, parameters, data, check_deterministic=False)
    order = our_order(module)
    theirs = (operator @ torch.eye(operator.shape[1], dtype=torch.float64))[order][:, order]
    oracles.assert_agree(len(sequences) * oracles.gauss_newton(model, module.name, sequences), theirs, 1e-6)
