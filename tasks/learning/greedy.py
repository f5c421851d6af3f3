"""What a model says greedily, decided by one pass over what it should say."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.learning.batches import IGNORED, padded


def recall(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]) -> float:
    """The share of (prompt, completion) pairs whose prompt the model continues greedily with the completion.

    Greedy decoding says the completion exactly if each of its tokens is the likeliest after the true ones
    before it, so one forward pass over prompt and completion decides without decoding step by step.
    A token that straddles the boundary counts as completion.
    """
    encoded = [tokenizer(prompt + completion, return_offsets_mapping=True) for prompt, completion in pairs]
    batch = padded([encoding["input_ids"] for encoding in encoded], 0)  # any token: it is attended by none
    for row, ((prompt, _), encoding) in enumerate(zip(pairs, encoded, strict=True)):
        ends = torch.tensor([end for _, end in encoding["offset_mapping"]])
        batch["labels"][row, : len(ends)][ends <= len(prompt)] = IGNORED
    with torch.inference_mode():
        inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
        likeliest = model(**inputs).logits[:, :-1].argmax(-1).cpu()
    asked = batch["labels"][:, 1:]
    return ((likeliest == asked) | (asked == IGNORED)).all(-1).double().mean().item()
