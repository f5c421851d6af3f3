"""What sequences cost a model: −log p of their scored tokens, in nats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from transformers import PreTrainedModel

from tasks.influence.batches import TokenSequence, batches
from tasks.influence.objectives import log_probabilities

PER_PASS = 32  # sequences


@torch.inference_mode()
def sequence_losses(model: PreTrainedModel, sequences: Sequence[TokenSequence]) -> np.ndarray:
    """The loss of each sequence, in their order."""
    numbered = [replace(sequence, sequence_id=k) for k, sequence in enumerate(sequences)]
    losses = np.empty(len(numbered))
    for batch in batches(numbered, PER_PASS, model.device):
        logits = model(**batch.model_inputs, use_cache=False).logits
        losses[batch.sequence_ids.tolist()] = -log_probabilities(logits, batch).double().cpu().numpy()
    return losses
