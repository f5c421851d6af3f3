"""Unlearning by gradient ascent: Adafactor up the mean loss of some sequences, as UnTrac does it.

    θ_{t+1} = θ_t + η · u(∇ L_t),  u: Adafactor's update, whose root mean square per matrix is at most 1

Isonuma & Titov 2024 (arXiv 2401.15241). As in their programs the rate is constant and relative neither to the step nor
to the size of the weights, and gradients are not clipped.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedModel
from transformers.optimization import Adafactor

from tasks.influence.batches import TokenSequence, batches
from tasks.influence.objectives import log_probabilities

FORMULA = "Adafactor, mean over scored tokens"  # part of every id: change it with what an ascent computes
PER_PASS = 32  # sequences that memory holds at a time; a step may have more


class AscentParameters(BaseModel):
    """How far a model climbs; the defaults are those of UnTrac."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: float = Field(
        5e-5, gt=0, le=1, description="of Adafactor, constant: the root mean square of a matrix's step, at most"
    )
    epochs: int = Field(1, ge=1, le=10_000, description="passes over the sequences")
    batch_size: int = Field(1, ge=1, le=100_000, description="sequences per step")
    seed: int = Field(0, ge=0, lt=2**32, description="of the order of sequences, and of dropout where the model has it")


def ascend(
    model: PreTrainedModel,
    sequences: Sequence[TokenSequence],
    parameters: AscentParameters,
) -> None:
    """Change the model in place so that the mean loss per scored token of the sequences rises."""
    optimizer = Adafactor(
        model.parameters(), lr=parameters.learning_rate, scale_parameter=False, relative_step=False, warmup_init=False
    )
    model.requires_grad_(True).train()
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(parameters.seed)
        for epoch in range(parameters.epochs):
            order = random.Random(f"{parameters.seed} {epoch}").sample(list(sequences), len(sequences))
            for at in range(0, len(order), parameters.batch_size):
                optimizer.zero_grad()
                _climb(model, order[at : at + parameters.batch_size])
                optimizer.step()
    optimizer.zero_grad()
    model.requires_grad_(False).eval()


def _climb(model: PreTrainedModel, sequences: Sequence[TokenSequence]) -> None:
    """Leave −∇ of the mean loss per token in the parameters: the optimizer descends."""
    passes = list(batches(sequences, PER_PASS, model.device))
    n_tokens = sum(int(batch.scored.sum()) for batch in passes)
    for batch in passes:
        logits = model(**batch.model_inputs, use_cache=False).logits
        (log_probabilities(logits, batch).sum() / n_tokens).backward()
