"""The whole path against kronfluence 1.0.1 (github.com/pomonam/kronfluence), and three of its faults, not ours.

Its conventions, next to ours:
- covariance files hold Σ ā āᵀ and Σ δ δᵀ over positions, and how many positions those are, as ours do. Which
  positions count is said by an attention mask: ours are the scored ones, so the last token of a text is not;
- the Λ file holds Σ over sequences of (Q_Sᵀ ∇W Q_A)², and their number; its mean is our Λ;
- W is [d_out, d_in + 1] with the bias last, eigenvalues ascend, an absolute damping is added to the mean Λ;
- the score is ∇fᵀ (G + λI)⁻¹ ∇L with f its "measurement". Ours has L_q = −log p(completion) there, so the
  measurement is −log p too, and a positive score says that more of the text makes the completion likelier.
"""

from __future__ import annotations

import copy
import gc
import warnings
from types import SimpleNamespace

import cases
import oracles
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from tasks.influence.batches import Batch, TokenSequence, collate
from tasks.influence.capture import Call
from tasks.influence.covariance import covariance_sums
from tasks.influence.modules import coverage, select_modules
from tasks.influence.objectives import true_token_gradient
from tasks.influence.sweep import sweep

pytest.importorskip("kronfluence", reason="an optional oracle: pip install headwater[oracles]")
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.module.utils import get_tracked_module_names
from kronfluence.task import Task
from kronfluence.utils.exceptions import IllegalTaskConfigurationError

pytestmark = pytest.mark.filterwarnings("ignore:.*GradScaler:FutureWarning")

LENGTHS = (9, 3, 14, 6, 11, 2, 8, 17, 5, 12, 4, 10, 7, 15, 3, 9, 13, 6, 16, 8, 5, 11, 20, 4)  # 24 sequences
SEED = 6  # of the labels


class Completions(Task):
    """Summed nats over the positions whose label is not −100; labels are given, true or drawn."""

    def __init__(self, modules: list[str] | None) -> None:
        self.modules = modules

    def compute_train_loss(self, batch: dict[str, Tensor], model: nn.Module, sample: bool = False) -> Tensor:
        logits = model(input_ids=batch["tokens"], use_cache=False).logits
        labels = batch["drawn" if sample else "true"]
        return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")

    def compute_measurement(self, batch: dict[str, Tensor], model: nn.Module) -> Tensor:
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self) -> list[str] | None:
        return self.modules

    def get_attention_mask(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["counted"]


def rows(model, sequences: list[TokenSequence], side: str = "right") -> list[dict[str, Tensor]]:
    """The sequences as kronfluence reads them, padded to the longest of all, with true and with drawn labels."""
    width, padded = max(len(s.token_ids) for s in sequences), []
    for s in sequences:
        n = len(s.token_ids)
        drawn = oracles.sampled_labels(model, s.token_ids, s.sequence_id, SEED)
        row = torch.full((3, width), -100)
        for t in range(n):
            at = t if side == "right" else t + width - n
            row[0, at] = s.token_ids[t]
            if s.first_scored <= t + 1 < n:
                row[1, at], row[2, at] = s.token_ids[t + 1], drawn[t]
        tokens, true, drawn = row
        padded.append({"tokens": tokens.clamp_min(0), "true": true, "drawn": drawn, "counted": (true >= 0).long()})
    return padded


def theirs(model, names, train, queries, damping, path, fisher="empirical", shared=False) -> SimpleNamespace:
    """Kronfluence's factors and its scores by module; the model is copied, because it wraps modules in place."""
    gc.freeze()  # kronfluence collects garbage twelve times a run: a fifth of a second each, were all of torch searched
    task = Completions(names)
    wrapped = prepare_model(copy.deepcopy(model), task)
    analyzer = Analyzer("parity", wrapped, task, cpu=True, disable_tqdm=True, output_dir=str(path))
    factors = FactorArguments(
        strategy="ekfac",
        use_empirical_fisher=fisher == "empirical",
        amp_dtype=None,
        has_shared_parameters=shared,
    )
    analyzer.fit_all_factors("fit", train, per_device_batch_size=5, factor_args=factors)
    scores = ScoreArguments(damping_factor=damping, amp_dtype=None, compute_per_module_scores=True)
    analyzer.compute_pairwise_scores(
        "scores",
        "fit",
        query_dataset=queries,
        train_dataset=train,
        per_device_query_batch_size=2,
        per_device_train_batch_size=5,
        score_args=scores,
    )
    gc.unfreeze()
    return SimpleNamespace(
        **analyzer.load_covariance_matrices("fit"),
        **analyzer.load_eigendecomposition("fit"),
        **analyzer.load_lambda_matrices("fit"),
        scores=analyzer.load_pairwise_scores("scores"),
    )


def queries_of(vocabulary: int) -> list[TokenSequence]:
    texts = cases.corpus(vocabulary, lengths=(6, 9, 4, 12), seed=3)
    return [TokenSequence(s.sequence_id, s.token_ids, first) for s, first in zip(texts, (3, 1, 3, 8), strict=True)]


# Parity


@pytest.fixture(scope="module", params=["neox-empirical", "llama-empirical", "neox-sampled"])
def pair(request, tmp_path_factory) -> SimpleNamespace:
    """Both fits and both sets of scores, of one float32 model with eager attention."""
    family, fisher = request.param.split("-")
    model = copy.deepcopy(cases.FAMILIES[family](seed=1, dtype=torch.float32, size=3))
    model.set_attn_implementation("eager")
    modules = select_modules(model, "mlp")
    train, queries = cases.corpus(17, LENGTHS), queries_of(17)
    fit = cases.fit(model, modules, train, batch_size=7, labels=None if fisher == "empirical" else SEED)
    damping = 0.1 * float(torch.stack([values.mean() for values in fit.eigenvalues.values()]).mean())
    names = [module.name for module in modules]
    args = (rows(model, train), rows(model, queries), damping, tmp_path_factory.mktemp("kronfluence"), fisher)
    return SimpleNamespace(
        modules=modules,
        fit=fit,
        scores=cases.influences(model, modules, queries, train, fit.metrics(damping)),
        other=theirs(model, names, *args),
    )


def test_covariances_are_those_of_kronfluence(pair):
    for module in pair.modules:
        sums, name = pair.fit.sums[module.name], module.name
        oracles.assert_agree(sums.inputs.dense, pair.other.activation_covariance[name], 2e-6)
        oracles.assert_agree(sums.deltas.dense, pair.other.gradient_covariance[name], 2e-6)
        counts = [
            pair.other.num_activation_covariance_processed[name],
            pair.other.num_gradient_covariance_processed[name],
        ]
        assert [int(n) for n in counts] == [sums.positions] * 2 == [sum(LENGTHS) - len(LENGTHS)] * 2


def test_eigenvalues_are_those_of_kronfluence(pair):
    for module in pair.modules:
        their_mean = pair.other.lambda_matrix[module.name] / pair.other.num_lambda_processed[module.name]
        oracles.assert_agree(pair.fit.eigenvalues[module.name], their_mean, 1e-5)


def test_scores_are_those_of_kronfluence(pair):
    for module in pair.modules:
        oracles.assert_agree(pair.scores[module.name], pair.other.scores[module.name], 1e-5)
    ours, other = (torch.stack([by[m.name] for m in pair.modules]).sum(0) for by in (pair.scores, pair.other.scores))
    oracles.assert_agree(ours, other, 1e-5)
    assert ours.min() < 0 < ours.max(), "scores of one sign would not show a wrong one"
    ranks = [float(stats.spearmanr(a, b).statistic) for a, b in zip(ours, other, strict=True)]
    assert min(ranks) >= 0.9999, f"rank correlation of each query: {ranks}"


def test_kfac_of_kronfluence_is_on_the_scale_of_one_position_and_ours_of_a_sequence(pair):
    for module in pair.modules:
        eigenvalues = (by[module.name] for by in (pair.other.gradient_eigenvalues, pair.other.activation_eigenvalues))
        of_a_position = torch.outer(*(values.clamp_min(0) for values in eigenvalues))
        positions_per_sequence = (sum(LENGTHS) - len(LENGTHS)) / len(LENGTHS)
        expected = of_a_position * positions_per_sequence
        oracles.assert_agree(pair.fit.bases[module.name].kfac_eigenvalues, expected, 1e-5)


# Its faults


def test_conv1d_is_tracked_where_kronfluence_passes_over_it_in_silence():
    model = cases.gpt2(dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrapped = prepare_model(copy.deepcopy(model), Completions(None))
    assert get_tracked_module_names(wrapped) == ["lm_head"], (
        "the fault is gone: every matrix of the blocks was left out"
    )
    modules = select_modules(model, "all")
    assert [m.kind for m in modules] == ["Conv1D"] * 8
    inside = [row for row in coverage(model, modules, "all") if row.module.startswith("transformer.h.")]
    matrices = [row.module for row in inside if row.kind == "Conv1D"]
    assert [row.module for row in inside if row.tracked] == matrices == [m.name for m in modules]
    assert all(row.reason for row in inside), "what is left out is left out for a reason that one can read"
    with pytest.raises(IllegalTaskConfigurationError):  # it is not silent about modules that one names
        prepare_model(copy.deepcopy(model), Completions([m.name for m in modules]))


def test_a_module_used_twice_scores_both_uses_where_kronfluence_scores_the_last(tmp_path):
    model = cases.frozen(cases.Looped(), seed=1, dtype=torch.float32)
    module, train, queries = select_modules(model, "step")[0], cases.corpus(11, LENGTHS), queries_of(11)
    fit = cases.fit(model, [module], train)
    damping = 0.1 * float(fit.eigenvalues["step"].mean())
    ours = cases.influences(model, [module], queries, train, fit.metrics(damping))["step"]
    args = (rows(model, train), rows(model, queries), damping, tmp_path)
    other = theirs(model, ["step"], *args, shared=True).scores["step"]

    basis = fit.bases["step"]
    g = oracles.spectral(basis.out.dense, basis.inp.dense, fit.eigenvalues["step"])
    gradients = [oracles.sequence_gradient(model, "step", q.token_ids, q.first_scored) for q in queries]
    v = torch.stack([oracles.damped_solve(g, damping, gradient) for gradient in gradients])
    # The probe's pairs stand in call order: the first half belongs to the first use.
    uses = [torch.stack([torch.outer(d, a) for a, d in oracles.positions(model, "step", s.token_ids)]) for s in train]
    both = torch.einsum("qoi,zoi->qz", v, torch.stack([shares.sum(0) for shares in uses]))
    last = torch.einsum("qoi,zoi->qz", v, torch.stack([shares[len(shares) // 2 :].sum(0) for shares in uses]))
    oracles.assert_agree(ours, both, 1e-5)
    oracles.assert_agree(other, last, 1e-5)
    missing = float((other - both).abs().max() / both.abs().max())
    assert missing > 0.1, f"the fault is gone: kronfluence misses {missing:.3g} of the largest score only"


def test_padding_that_the_model_sees_stays_out_of_s_where_kronfluence_sums_it(tmp_path):
    """Padding on the left and no mask for the model: padded positions change the loss, so they have gradients."""
    model, train = cases.llama(seed=1, dtype=torch.float32), cases.corpus(17, LENGTHS)
    modules = select_modules(model, r"model\.layers\.0\.mlp\..*")  # what follows attends to its outputs
    masked = collate(train, padding="left")
    batch = Batch(masked.sequence_ids, masked.token_ids, masked.scored)
    swept = list(sweep(model, modules, [batch], true_token_gradient))
    ((_, calls),) = swept
    sums = covariance_sums(swept, modules)
    padded = rows(model, train, side="left")
    other = theirs(model, [m.name for m in modules], padded, padded[:1], 1.0, tmp_path)
    for name in (m.name for m in modules):
        everywhere = call_of(calls[name]).deltas.flatten(0, 1).double()
        scored = everywhere[batch.scored.flatten()]
        oracles.assert_agree(sums[name].deltas.dense, scored.T @ scored, 1e-5)
        oracles.assert_agree(other.gradient_covariance[name], everywhere.T @ everywhere, 1e-5)
        oracles.assert_agree(other.activation_covariance[name], sums[name].inputs.dense, 1e-5)  # this one it masks
        assert int(other.num_gradient_covariance_processed[name]) == sums[name].positions  # and so its divisor
        excess = float(everywhere.square().sum() / scored.square().sum()) - 1
        assert excess > 0.01, f"the fault is gone: in {name} padding adds {excess:.3g} of the trace of S only"


def call_of(calls: list[Call]) -> Call:
    (call,) = calls
    return call
