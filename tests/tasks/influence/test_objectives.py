"""The losses in nats, and labels that depend on nothing but their seed, sequence and position."""

from __future__ import annotations

from functools import partial

import cases
import numpy as np
import oracles
import pytest
import torch
from scipy import stats

from tasks.influence import objectives
from tasks.influence.batches import TokenSequence, batches, collate
from tasks.influence.gradients import sequence_gradients
from tasks.influence.modules import select_modules
from tasks.influence.objectives import (
    counters,
    log_probabilities,
    negative_log_likelihood,
    sampled_token_gradient,
    splitmix64,
    true_token_gradient,
    true_token_loss,
    uniforms,
)


def logits_of(model, batch):
    return model(input_ids=batch.token_ids, use_cache=False).logits


def labels_of(model, sequences, batch_size, seed):
    """The sampled label of each scored position by sequence id."""
    found = {}
    for batch in batches(sequences, batch_size):
        labels = cases.sample_labels(torch.softmax(logits_of(model, batch).float(), -1), batch, seed)
        found |= {
            int(s): row[keep].tolist() for s, row, keep in zip(batch.sequence_ids, labels, batch.scored, strict=True)
        }
    return found


# Losses


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_the_loss_sums_nats_over_scored_tokens_and_not_over_padding(family):
    model = cases.FAMILIES[family]()
    sequences = [*cases.corpus(17), TokenSequence(1, [1, 2, 3, 4, 5], first_scored=3)]
    batch = collate(sequences)
    logits = logits_of(model, batch)
    expected = [
        oracles.negative_log_likelihood(logits_of(model, collate([s]))[0], s.token_ids, s.first_scored)
        for s in sequences
    ]
    oracles.assert_agree(true_token_loss(logits, batch), sum(expected), 1e-6)
    oracles.assert_agree(log_probabilities(logits, batch), -torch.stack(expected), 1e-6)
    labels = torch.full_like(batch.token_ids, 4)
    given = [
        oracles.negative_log_likelihood(logits[k], s.token_ids, s.first_scored, [4] * 12)
        for k, s in enumerate(sequences)
    ]
    oracles.assert_agree(negative_log_likelihood(logits, labels, batch), sum(given), 1e-6)


def test_the_loss_of_nothing_is_zero():
    batch = collate([TokenSequence(0, [3])])
    logits = torch.randn(1, 1, 5)
    assert true_token_loss(logits, batch) == 0
    assert log_probabilities(logits, batch).tolist() == [0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_in_the_logits_is_that_of_the_loss(dtype):
    batch = collate([*cases.corpus(17), TokenSequence(1, [1, 2, 3, 4, 5], first_scored=3)])
    logits = torch.randn(*batch.token_ids.shape, 17, dtype=dtype, generator=torch.Generator().manual_seed(0))
    expected = torch.func.grad(lambda x: true_token_loss(x, batch))(logits)
    rows, some = logits.flatten(0, 1), batch.scored.flatten().nonzero()[:, 0]
    assert not expected.flatten(0, 1)[~batch.scored.flatten()].any()
    oracles.assert_agree(true_token_gradient(rows[some], batch, some), expected.flatten(0, 1)[some], 1e-6)
    labels = cases.sample_labels(torch.softmax(logits.float(), -1), batch, seed=4)
    drawn = torch.func.grad(lambda x: negative_log_likelihood(x, labels, batch))(logits)
    found = sampled_token_gradient(rows[some], batch, some, seed=4)
    oracles.assert_agree(found, drawn.flatten(0, 1)[some], 1e-6)


# Uniform numbers


def test_the_reference_generator_is_splitmix64():
    state, golden = 1234567, 0x9E3779B97F4A7C15
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]  # of seed 1234567
    assert [oracles.splitmix64(state + k * golden) for k in range(3)] == published


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 17])
def test_uniforms_have_the_bits_of_splitmix64(seed):
    ids = [0, 1, 2, 12345, 2**31, 2**62 + 3]
    found = uniforms(counters(torch.tensor(ids), torch.arange(9), seed))
    expected = [[oracles.uniform(oracles.counter(seed, i, t)) for t in range(9)] for i in ids]
    assert found.tolist() == expected


@pytest.mark.parametrize("axis", ["positions", "sequences", "seeds", "tokens", "groups and tokens"])
def test_uniforms_look_uniform_and_independent_along(axis):
    n = 4000
    ids = torch.arange(n)
    draws = {
        "positions": lambda: uniforms(counters(ids[:1], torch.arange(n), 0))[0],
        "sequences": lambda: uniforms(counters(ids, torch.arange(1), 0))[:, 0],
        "seeds": lambda: uniforms(torch.stack([counters(ids[:1], torch.arange(1), s)[0, 0] for s in range(n)])),
        "tokens": lambda: uniforms(counters(ids[:1], torch.arange(1), 0) ^ splitmix64(ids))[0],
        "groups and tokens": lambda: uniforms(splitmix64(counters(ids[:1], torch.arange(1), 0)) ^ splitmix64(ids))[0],
    }[axis]().numpy()
    assert draws.min() > 0
    assert draws.max() < 1
    assert stats.kstest(draws, "uniform").pvalue > 0.001
    for lag in (1, 2, 7):
        correlation = np.corrcoef(draws[:-lag], draws[lag:])[0, 1]
        assert abs(correlation) < 4 / np.sqrt(n), (lag, correlation)


def test_no_two_draws_are_equal():
    draws = uniforms(counters(torch.arange(300), torch.arange(300), 0)).flatten()
    assert len(draws.unique()) == len(draws)


# Sampled labels


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_sampled_labels_are_the_same_in_any_batch(family):
    model = cases.FAMILIES[family]()
    sequences = cases.corpus(17, lengths=(7, 3, 12, 5, 9, 2, 12))
    for seed in range(5):
        found = [
            labels_of(model, order, batch_size, seed)
            for order, batch_size in [
                (sequences, 1),
                (sequences, 7),
                (sequences[::-1], 3),
                (sequences[3:], 2),
            ]
        ]
        for other in found[1:]:
            assert {k: found[0][k] for k in other} == other


def test_sampled_labels_are_the_winners_of_the_race():
    model = cases.llama()
    sequences = cases.corpus(23)
    found = labels_of(model, sequences, 4, seed=3)
    for s in sequences:
        assert found[s.sequence_id] == oracles.sampled_labels(model, s.token_ids, s.sequence_id, 3)[:-1]


def test_seeds_sequences_and_positions_draw_different_labels():
    logits = torch.zeros(2, 64, 50)
    batch = collate([TokenSequence(0, [0] * 64), TokenSequence(1, [0] * 64)])
    one, other = (cases.sample_labels(torch.softmax(logits, -1), batch, seed) for seed in (0, 1))
    for a, b in [(one, other), (one[0], one[1]), (one[:, :-1], one[:, 1:])]:
        assert (a == b).float().mean() < 0.1  # equal by chance: 1 in 50


def test_label_frequencies_converge_to_the_softmax():
    logits = torch.linspace(-2, 2, 12).tile(1, 40_000, 1)
    probabilities = torch.softmax(logits[0, 0], -1).double()
    distances = []
    for n in (100, 2_000, 40_000):
        batch = collate([TokenSequence(5, [0] * n)])
        counts = cases.sample_labels(torch.softmax(logits[:, :n], -1), batch, seed=0)[0].bincount(minlength=12)
        distances.append(float((counts / n - probabilities).abs().sum() / 2))
        assert stats.chisquare(counts, n * probabilities / probabilities.sum()).pvalue > 0.001
    assert distances == sorted(distances, reverse=True), distances
    assert distances[-1] < 0.01, distances


def test_impossible_tokens_are_never_drawn():
    logits = torch.zeros(1, 5_000, 9)
    logits[..., [0, 4, 8]] = -torch.inf
    batch = collate([TokenSequence(0, [0] * 5_000)])
    assert set(cases.sample_labels(torch.softmax(logits, -1), batch, 0).unique().tolist()) == {1, 2, 3, 5, 6, 7}


@pytest.mark.parametrize("draw", [2.0**-53, 1 - 2.0**-53], ids=["smallest", "largest"])
def test_the_extreme_draws_pick_possible_tokens(draw, monkeypatch):
    monkeypatch.setattr(objectives, "uniforms", lambda counters: torch.full(counters.shape, draw, dtype=torch.float64))
    logits = torch.zeros(1, 1, 9)
    logits[..., [0, 4, 8]] = -torch.inf
    assert int(cases.sample_labels(torch.softmax(logits, -1), collate([TokenSequence(0, [0])]), 0)) not in {0, 4, 8}


@pytest.mark.parametrize("v", [1, 2, 3, 31, 64, 65, 257])
def test_every_token_of_any_vocabulary_is_drawn_in_its_share(v):
    n = 400 * v
    logits = torch.randn(v, generator=torch.Generator().manual_seed(v)).tile(1, n, 1)
    counts = cases.sample_labels(torch.softmax(logits, -1), collate([TokenSequence(5, [0] * n)]), seed=0)[0].bincount(
        minlength=v
    )
    assert len(counts) == v
    if v > 1:
        assert stats.chisquare(counts, n * torch.softmax(logits[0, 0].double(), -1)).pvalue > 0.001


def test_rounded_logits_change_few_labels():
    """The share that changes is near the distance of the two distributions, the least that any draw could have."""
    g = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(40, 100, 512, generator=g)
    batch = collate([TokenSequence(k, [0] * 100) for k in range(40)])
    exact, rounded = (
        cases.sample_labels(torch.softmax(x, -1), batch, seed=0) for x in (logits, logits.bfloat16().float())
    )
    changed = float((exact != rounded).float().mean())
    distance = float(
        (torch.softmax(logits, -1) - torch.softmax(logits.bfloat16().float(), -1)).abs().sum(-1).mean() / 2
    )
    assert distance / 2 < changed < 4 * distance, (changed, distance)


# The Fisher matrix of sampled labels


def sampled_gradients(model, module, tokens, n):
    """Pseudo-gradients of one text under n sequence ids, that is n independent draws of all its labels."""
    copies = [TokenSequence(k, tokens) for k in range(n)]
    passes = cases.passes(model, [module], copies, 500, partial(sampled_token_gradient, seed=0))
    return torch.cat([sequence_gradients(calls[module.name], module) for _, calls in passes])


def test_the_sampled_fisher_converges_to_the_gauss_newton_matrix_like_one_over_root_n():
    model = cases.llama()
    module = select_modules(model, r"model\.layers\.1\.mlp\.down_proj")[0]
    tokens = [3, 1, 4, 15, 9]
    exact = oracles.gauss_newton(model, module.name, [tokens])
    gradients = sampled_gradients(model, module, tokens, 16_384)
    sizes = [64, 1024, 16_384]
    errors = [float((oracles.fisher(gradients[:n]) - exact).norm() / exact.norm()) for n in sizes]
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert errors[0] > 2 * errors[1] > 4 * errors[2], errors
    assert -0.6 < slope < -0.4, (errors, slope)


def test_pseudo_gradients_have_mean_zero():
    model = cases.llama()
    module = select_modules(model, r"model\.layers\.1\.mlp\.down_proj")[0]
    gradients = sampled_gradients(model, module, [3, 1, 4, 15, 9], 4096).double().flatten(1)
    z = gradients.mean(0) / (gradients.std(0) / 64)
    assert z.abs().max() < 4.5, z.abs().max()  # 96 entries: the chance of one beyond is 1 in 1,500


def test_the_pseudo_gradient_is_that_of_the_sampled_labels():
    model = cases.gpt2()
    module = select_modules(model, "mlp")[0]
    sequences = cases.corpus(17)
    for batch, calls in cases.passes(model, [module], sequences, 3, partial(sampled_token_gradient, seed=2)):
        tokens = {s.sequence_id: s.token_ids for s in sequences}
        for s, gradient in zip(
            batch.sequence_ids.tolist(), sequence_gradients(calls[module.name], module), strict=True
        ):
            labels = oracles.sampled_labels(model, tokens[s], s, 2)
            oracles.assert_agree(gradient, oracles.sequence_gradient(model, module.name, tokens[s], 1, labels), 1e-6)
