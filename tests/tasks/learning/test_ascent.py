"""Gradient ascent: one step is Adafactor's, written out; what is unlearned is lost, and so is what goes with it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import worlds
from pydantic import ValidationError

from storage.checkpoints import load_tokenizer, read_model
from tasks.influence.batches import TokenSequence
from tasks.learning import ascent
from tasks.learning.ascent import AscentParameters, ascend
from tasks.losses import sequence_losses

TEXTS = ("The otter went to the harbour.", "Nobody saw the viper leave. It slept there.", "The heron slept.")


def sequences_of(tokenizer, texts=TEXTS) -> list[TokenSequence]:
    return [TokenSequence(k, tokenizer(text)["input_ids"]) for k, text in enumerate(texts)]


def mean_loss_gradients(model, sequences) -> dict[str, np.ndarray]:
    """∇ of the loss per predicted token over all sequences, by PyTorch's own cross entropy, unpadded."""
    model = copy.deepcopy(model).double().requires_grad_(True)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for sequence in sequences:
        ids = torch.tensor([sequence.token_ids])
        total = total + torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="sum")
        count += ids.shape[1] - 1
    (total / count).backward()
    return {name: p.grad.numpy() for name, p in model.named_parameters()}


def first_adafactor_step(gradient: np.ndarray, rate: float) -> np.ndarray:
    """Shazeer & Stern 2018 (arXiv 1804.04235), algorithms 4 and 5 at t = 1, where β₂ is 0; descent is minus this."""
    squares = gradient**2 + 1e-30
    if gradient.ndim == 2:
        rows, columns = squares.mean(1), squares.mean(0)
        squares = np.outer(rows, columns) / rows.mean()
    update = gradient / np.sqrt(squares)
    return rate * update / max(1.0, np.sqrt((update**2).mean()))


def test_one_step_over_padded_passes_is_that_of_adafactor_up_the_mean_loss_per_token(gpt2, monkeypatch):
    model, sequences = read_model(gpt2), sequences_of(load_tokenizer(gpt2))
    before = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}
    gradients = mean_loss_gradients(model.eval(), sequences)
    monkeypatch.setattr(ascent, "PER_PASS", 2)  # so that a step has two passes
    model.config.resid_pdrop = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    ascend(model, sequences, AscentParameters(learning_rate=1e-3, batch_size=3))
    compared = 0
    for name, after in model.named_parameters():
        if np.sqrt((gradients[name] ** 2).mean()) < 1e-7:  # of a key's bias the gradient is rounding alone
            continue
        expected = first_adafactor_step(gradients[name], 1e-3)
        sure = np.abs(gradients[name]) > 1e-5 * np.abs(gradients[name]).max()  # the sign of the others is rounding
        moved = after.detach().double().numpy() - before[name]
        np.testing.assert_allclose(moved[sure], expected[sure], rtol=2e-2, atol=2e-6, err_msg=name)
        compared += 1
    assert compared >= 20


def test_an_ascent_depends_on_its_seed_alone_and_takes_every_sequence_once_an_epoch(gpt2, monkeypatch):
    sequences = sequences_of(load_tokenizer(gpt2))
    seen: list[list[int]] = []
    climb = ascent._climb
    monkeypatch.setattr(ascent, "_climb", lambda m, s: (seen.append([q.sequence_id for q in s]), climb(m, s)))
    ends = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(seen))  # what else was drawn in the process must not matter
        model = read_model(gpt2)
        ascend(model, sequences, AscentParameters(learning_rate=1e-3, epochs=2, batch_size=2, seed=seed))
        ends.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])
    assert [len(step) for step in seen] == [2, 1] * 6
    for at in range(0, len(seen), 2):
        assert sorted(seen[at] + seen[at + 1]) == [0, 1, 2]


def test_only_the_dataset_that_holds_the_fact_is_dearest_when_it_is_unlearned(tmp_path_factory):
    """A planted answer: of three datasets one says where the otter went, and a model has learned all three."""
    root = tmp_path_factory.mktemp("planted")
    planted = ["The otter went to the harbour. It slept there."] * 4
    others = [[f"The {animal} went to the {place}." for animal in worlds.ANIMALS[k : k + 2]] * 2
              for k, place in ((2, "quarry"), (4, "chapel"))]  # fmt: skip
    texts = [planted, *others]
    start = worlds.save_gpt2(root / "start")
    taught = worlds.train(start, root / "taught", [{"text": t} for of in texts for t in of], epochs=8)
    tokenizer = load_tokenizer(taught)
    prompt, whole = (
        tokenizer("The otter went to the")["input_ids"],
        tokenizer("The otter went to the harbour")["input_ids"],
    )
    query = TokenSequence(0, whole, first_scored=len(prompt))
    before = sequence_losses(read_model(taught), [query])[0]
    rises = []
    for of in texts:
        model = read_model(taught)
        ascend(model, sequences_of(tokenizer, of), AscentParameters(learning_rate=1e-3))
        rises.append(sequence_losses(model, [query])[0] - before)
    assert rises[0] > 2 * max(abs(rises[1]), abs(rises[2])), rises
    model = read_model(taught)  # and the other way round: unlearning the query costs that dataset most
    ascend(model, [query], AscentParameters(learning_rate=1e-3, epochs=4))
    of_datasets = [
        (sequence_losses(model, s) - sequence_losses(read_model(taught), s)).sum()
        / sum(len(q.token_ids) - 1 for q in s)
        for s in (sequences_of(tokenizer, of) for of in texts)
    ]
    assert np.argmax(of_datasets) == 0, of_datasets


@pytest.mark.parametrize("rate", [0.0, -1e-5])
def test_a_rate_that_climbs_nowhere_is_refused(rate):
    with pytest.raises(ValidationError, match="greater than 0"):
        AscentParameters(learning_rate=rate)
