"""Queries as tokens, their preconditioned gradients, and what influence promises: the change after retraining."""

from __future__ import annotations

import cases
import oracles
import pytest
import torch

from tasks.influence.batches import TokenSequence
from tasks.influence.compression import low_rank
from tasks.influence.covariance import covariance_sums
from tasks.influence.ekfac import IdentityMetric, Metric, eigenbasis, eigenvalue_sums
from tasks.influence.errors import InfluenceError
from tasks.influence.gradients import sequence_gradients
from tasks.influence.modules import select_modules
from tasks.influence.queries import (
    compressed_gradients,
    encode_query,
    log_probability,
    preconditioned_gradients,
    query_calls,
)
from tasks.influence.scores import pairwise_scores, token_scores

# Tokens


def said(tokenizer, query):
    """The text of the scored tokens and of those before them."""
    tokens = tokenizer.convert_ids_to_tokens(list(query.token_ids))
    return "".join(tokens[: query.first_scored]), "".join(tokens[query.first_scored :])


@pytest.mark.parametrize(
    ("prompt", "completion", "before", "scored"),
    [
        ("ab", "cd", "ab", "cd"),
        ("the Gleem", " is", "theĠGleem", "Ġis"),
        ("the Gl", "eem is", "the", "ĠGleemĠis"),  # ĠGleem straddles
        ("the ", "Gleem", "the", "ĠGleem"),  # so it does where the prompt ends in its space
        ("the Gleem ", "is", "theĠGleem", "Ġis"),
        ("x", "é", "x", "Ã©"),  # one character, two tokens
        ("é", "x", "Ã©", "x"),
        ("x", "  Gleem ", "x", "ĠĠGleemĠ"),
        ("x\n", "\n", "xĊ", "Ċ"),
        ("x", " ", "x", "Ġ"),
        ("x", "a</s>", "x", "a</s>"),  # an end token that the completion says itself
    ],
)
@pytest.mark.parametrize("trim_offsets", [False, True])
@pytest.mark.parametrize("special", ["none", "start", "both"])
def test_completion_tokens_are_scored_and_no_other(prompt, completion, before, scored, trim_offsets, special):
    tokenizer = cases.tokenizer(special != "none", special == "both", trim_offsets)
    query = encode_query(tokenizer, prompt, completion, context=20, name="q1")
    start = "" if special == "none" else "<s>"
    assert said(tokenizer, query) == (start + before, scored)


def test_prompt_and_completion_are_tokenised_together():
    tokenizer = cases.tokenizer()
    whole = tokenizer("a Gleem is")["input_ids"]
    query = encode_query(tokenizer, "a Gle", "em is", context=20, name="q1")
    assert list(query.token_ids) == whole


def test_a_query_may_fill_the_context_and_no_more():
    tokenizer = cases.tokenizer()
    assert len(encode_query(tokenizer, "abc", "de", context=5, name="q1").token_ids) == 5
    with pytest.raises(InfluenceError, match=r"query q1: expected at most 4 tokens.*found 5.*Shorten the prompt"):
        encode_query(tokenizer, "abc", "de", context=4, name="q1")


def test_an_end_token_that_the_tokenizer_adds_takes_no_room():
    query = encode_query(cases.tokenizer(start=True, end=True), "abc", "d", context=5, name="q1")
    assert len(query.token_ids) == 5


@pytest.mark.parametrize("prompt", ["abc", ""])
def test_an_empty_completion_is_refused(prompt):
    with pytest.raises(InfluenceError, match=r"query q1: expected a completion of at least one token"):
        encode_query(cases.tokenizer(start=True), prompt, "", context=20, name="q1")


def test_a_completion_that_nothing_precedes_is_refused():
    with pytest.raises(InfluenceError, match=r"query q1: expected a token before the completion"):
        encode_query(cases.tokenizer(), "", "abc", context=20, name="q1")
    with pytest.raises(InfluenceError, match=r"query q1: expected a token before the completion"):
        encode_query(cases.tokenizer(), "Gl", "eem", context=20, name="q1")  # one token holds all
    assert encode_query(cases.tokenizer(start=True), "", "abc", context=20, name="q1").first_scored == 1


# Gradients

QUERIES = [
    TokenSequence(0, [1, 2, 3, 4, 5], 3),
    TokenSequence(1, [6, 1, 8], 1),
    TokenSequence(2, [3, 7, 3, 9], 3),
]


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_log_probability_is_that_of_the_completion_alone(family):
    model = cases.FAMILIES[family]()
    for query in QUERIES:
        logits = model(torch.tensor([query.token_ids]), use_cache=False).logits[0]
        expected = -oracles.negative_log_likelihood(logits, query.token_ids, query.first_scored)
        assert log_probability(model, query) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_preconditioned_gradients_solve_the_fitted_system(family):
    model = cases.FAMILIES[family]()
    modules = select_modules(model, "mlp")
    metrics = fitted(model, modules, cases.corpus(17), "ekfac", relative=0.1)
    found = preconditioned_gradients(model, modules, QUERIES, lambda m: metrics[m.name])
    for module in modules:
        metric = metrics[module.name]
        g = oracles.spectral(metric.out.dense, metric.inp.dense, metric.eigenvalues)
        for query, v in zip(QUERIES, found[module.name], strict=True):
            gradient = oracles.sequence_gradient(model, module.name, query.token_ids, query.first_scored)
            oracles.assert_agree(v, oracles.damped_solve(g, metric.damping, gradient), 1e-4)


def test_preconditioned_gradients_do_not_depend_on_the_other_queries():
    model = cases.gpt2()
    modules = select_modules(model, "mlp")
    metrics = {m.name: IdentityMetric() for m in modules}
    together = preconditioned_gradients(model, modules, QUERIES, lambda m: metrics[m.name])
    for k, query in enumerate(QUERIES):
        alone = preconditioned_gradients(model, modules, [query], lambda m: metrics[m.name])
        for name, v in alone.items():
            assert torch.equal(v[0], together[name][k])


def test_the_identity_metric_gives_the_gradient_of_the_completion_loss():
    model = cases.llama()
    modules = select_modules(model, "all")
    found = preconditioned_gradients(model, modules, QUERIES, lambda m: IdentityMetric())
    for module in modules:
        for query, v in zip(QUERIES, found[module.name], strict=True):
            expected = oracles.sequence_gradient(model, module.name, query.token_ids, query.first_scored)
            oracles.assert_agree(v, expected, 1e-6)


@pytest.mark.parametrize("family", cases.FAMILIES)
@pytest.mark.parametrize("rank", [1, 99])
@pytest.mark.parametrize("room", [0, 2**30])
def test_compressed_gradients_are_the_preconditioned_ones_compressed(family, rank, room):
    model = cases.FAMILIES[family]()
    modules = select_modules(model, "mlp")
    metrics = fitted(model, modules, cases.corpus(17), "ekfac", relative=0.1)
    dense = preconditioned_gradients(model, modules, QUERIES, lambda m: metrics[m.name])
    calls = query_calls(model, modules, QUERIES)
    for module in modules:
        form = compressed_gradients(calls[module.name], module, metrics[module.name], rank, positions=20, room=room)
        v = dense[module.name]
        measured = (v - form.dense).norm(dim=(1, 2)) / v.norm(dim=(1, 2))
        oracles.assert_agree(form.residual + 1, measured.double() + 1, 1e-5)
        assert (rank == 1) == bool((form.residual > 1e-3).all())


# What influence promises


def fitted(model, modules, sequences, method, relative=None, damping=None):
    """The metric of each module from a whole fit on true labels."""
    passes = cases.passes(model, modules, sequences, 16)
    bases = {name: eigenbasis(sums) for name, sums in covariance_sums(passes, modules).items()}
    sums = eigenvalue_sums(passes, modules, bases)
    metrics = {}
    for name, basis in bases.items():
        values = basis.kfac_eigenvalues if method == "kfac" else sums[name] / len(sequences)
        strength = damping if relative is None else relative * float(values.mean())
        metrics[name] = Metric(basis.out, basis.inp, values, strength)
    return metrics


def influences(model, module, query, metric, sequences):
    """Influence of each sequence on a query by the whole path of the code, and its shares by token."""
    v = preconditioned_gradients(model, [module], [query], lambda m: metric)[module.name]
    found = {}
    for batch, calls in cases.passes(model, [module], sequences, 16):
        scores = pairwise_scores(calls[module.name], module, low_rank(lambda: v, 99))[0]
        for row, sequence_id in enumerate(batch.sequence_ids.tolist()):
            shares = token_scores(calls[module.name], module, row, v)[0]
            oracles.assert_agree(shares.sum() + 1, scores[row] + 1, 1e-5)
            found[sequence_id] = float(scores[row])
    return found


def retrained(w, x, tokens, query, l2, z, epsilon=1e-4):
    """d log p(completion) / dε when the mean loss gains ε·L(z), by retraining at ±ε."""
    values = []
    for sign in (1, -1):
        weights = torch.full((len(tokens),), 1 / len(tokens), dtype=torch.float64)
        weights[z] += sign * epsilon
        optimum = oracles.linear_optimum(x, tokens, weights, l2, start=w)
        values.append(oracles.linear_log_probability(optimum, x, query.token_ids, query.first_scored))
    return (values[0] - values[1]) / (2 * epsilon)


@pytest.mark.parametrize("seed", [0, 1])
def test_influence_is_the_change_of_log_probability_after_retraining(seed):
    l2, sequences = 0.05, cases.corpus(5, lengths=(4, 6, 3, 5, 7, 2, 6, 4), seed=seed)
    tokens = [s.token_ids for s in sequences]
    model = cases.frozen(cases.Linear(vocabulary=5, width=3), seed)
    x = model.embed.weight
    uniform = torch.full((len(tokens),), 1 / len(tokens), dtype=torch.float64)
    w = oracles.linear_optimum(x, tokens, uniform, l2, start=torch.zeros(5, 3, dtype=torch.float64))
    model.head.weight.data = w
    head = select_modules(model, "head")[0]
    query = TokenSequence(0, [1, 2, 3, 0], first_scored=2)
    g = oracles.gauss_newton(model, "head", tokens)
    q = preconditioned_gradients(model, [head], [query], lambda m: IdentityMetric())["head"][0]
    v = oracles.damped_solve(g, l2, q)
    predicted, measured = [], []
    for z, s in enumerate(sequences):
        ((_, calls),) = cases.passes(model, [head], [s])
        predicted.append(float((v * sequence_gradients(calls["head"], head)[0]).sum()))
        measured.append(retrained(w, x, tokens, query, l2, z))
    oracles.assert_agree(predicted, measured, 1e-5)
    assert min(measured) < 0 < max(measured)


@pytest.mark.parametrize("method", ["ekfac", "kfac"])
@pytest.mark.parametrize("length", [2, 3])
def test_fitted_influence_is_the_change_after_retraining_where_the_factors_are_exact(method, length):
    # All sequences once: the optimum is W = 0, predictions are uniform, labels independent of inputs, and the
    # Gauss-Newton matrix is (length − 1) · S ⊗ A, the Fisher of the true labels too.
    l2, vocabulary = 0.03, 5
    sequences = cases.every_sequence(vocabulary, length)
    tokens = [s.token_ids for s in sequences]
    model = cases.frozen(cases.Linear(vocabulary, width=3), seed=2)
    model.head.weight.data.zero_()
    w, x = model.head.weight, model.embed.weight
    head = select_modules(model, "head")[0]
    metric = fitted(model, [head], sequences, method, damping=l2)["head"]
    fit = oracles.spectral(metric.out.dense, metric.inp.dense, metric.eigenvalues)
    oracles.assert_agree(fit, oracles.gauss_newton(model, "head", tokens), 1e-5)
    query = TokenSequence(0, [4, 1, 2], first_scored=2)
    found = influences(model, head, query, metric, sequences)
    chosen = list(range(0, len(tokens), len(tokens) // 12))
    predicted = [found[sequences[z].sequence_id] for z in chosen]
    measured = [retrained(w, x, tokens, query, l2, z) for z in chosen]
    oracles.assert_agree(predicted, measured, 1e-4)
    same = next(s.sequence_id for s in sequences if tuple(s.token_ids[-2:]) == (1, 2))
    other = next(s.sequence_id for s in sequences if tuple(s.token_ids[-2:]) == (1, 3))
    assert found[same] > 0 > found[other]
