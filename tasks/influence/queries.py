"""Queries as the model sees them, and their preconditioned gradients.

f(q) = log p(completion | prompt) over the completion's tokens only; L_q = −f.
Influence ∇L_qᵀ (G + λI)⁻¹ ∇L_z is positive when more of z makes the completion likelier
(Grosse et al. 2023, Eqs. 24-25).

Letters: q queries, o output width, i homogeneous input width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.influence.batches import TokenSequence, collate
from tasks.influence.capture import Call
from tasks.influence.compression import ROOM, Compressed, Gradients, compress
from tasks.influence.ekfac import IdentityMetric, Metric
from tasks.influence.errors import InfluenceError
from tasks.influence.gradients import sequence_gradients
from tasks.influence.modules import TrackedModule
from tasks.influence.objectives import log_probabilities, true_token_gradient
from tasks.influence.sweep import sweep

if TYPE_CHECKING:
    from jaxtyping import Float


def encode_query(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str, context: int, name: str
) -> TokenSequence:
    """Prompt and completion tokenised together; a token that straddles their boundary counts as completion."""
    encoded = tokenizer(
        prompt + completion, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False
    )
    tokens, special = encoded["input_ids"], encoded["special_tokens_mask"]
    # A token's end decides: some tokenizers leave the space that begins a token out of its span.
    ends = [k for k, (_, end) in enumerate(encoded["offset_mapping"]) if end > len(prompt) and not special[k]]
    if not ends:
        raise InfluenceError(
            f"query {name}: expected a completion of at least one token, found none in {completion!r}. "
            "Give a completion that the tokenizer keeps."
        )
    last = ends[-1] + 1  # an end-of-text token that the tokenizer appends was not said by the completion
    if last > context:
        raise InfluenceError(
            f"query {name}: expected at most {context} tokens, the model's context, found {last}. "
            "Shorten the prompt from its beginning."
        )
    if ends[0] == 0:
        raise InfluenceError(
            f"query {name}: expected a token before the completion to predict it from, found none. "
            "Give a prompt, or use a tokenizer that begins with a start token."
        )
    return TokenSequence(0, tokens[:last], first_scored=ends[0])


def log_probability(model: PreTrainedModel, query: TokenSequence) -> float:
    """log p(completion | prompt), in nats."""
    with torch.no_grad():
        batch = collate([query], model.device)
        return float(log_probabilities(model(**batch.model_inputs, use_cache=False).logits, batch))


def query_calls(
    model: PreTrainedModel, modules: list[TrackedModule], queries: Sequence[TokenSequence]
) -> dict[str, list[list[Call]]]:
    """Inputs and output gradients of each query by module, in float32 whatever the policy: queries are short and few.

    They are the query gradients before any curvature, at rank t: t·(o + i) numbers per query and module.
    """
    found: dict[str, list[list[Call]]] = {module.name: [] for module in modules}
    # One query per pass, so that each gets the same numbers whatever the others are.
    batches = (collate([query], model.device) for query in queries)
    for _, calls in sweep(model, modules, batches, true_token_gradient):
        for module in modules:
            found[module.name].append(calls[module.name])
    return found


def compressed_gradients(
    calls: list[list[Call]],
    module: TrackedModule,
    metric: Metric | IdentityMetric,
    rank: int,
    positions: int,
    room: int = ROOM,
) -> Compressed:
    """(G + λI)⁻¹ ∇L_q of one module and every query, in the form that scores sequences of `positions` quickest.

    Found in the eigenbasis, where the solution is a division, and rotated back when it is small.
    """
    if isinstance(metric, IdentityMetric):
        return compress(lambda: (sequence_gradients(uses, module)[0] for uses in calls), rank, positions, room)
    found: Gradients = lambda: (metric.solved(uses, module)[0] for uses in calls)  # noqa: E731
    if 4 * len(calls) * module.d_out * module.columns <= room:
        held = list(found())
        found = partial(iter, held)
    return compress(found, rank, positions, room).rotated_back(metric.out, metric.inp)


def preconditioned_gradients(
    model: PreTrainedModel,
    modules: list[TrackedModule],
    queries: Sequence[TokenSequence],
    metric_of: Callable[[TrackedModule], Metric | IdentityMetric],
) -> dict[str, Float[Tensor, "q o i"]]:
    """(G + λI)⁻¹ ∇L_q of every module at once, o·i numbers each; one metric is held at a time."""
    calls = query_calls(model, modules, queries)
    found = {}
    for module in modules:
        metric = metric_of(module)
        gradients = [metric.precondition(sequence_gradients(uses, module)[0]) for uses in calls[module.name]]
        found[module.name] = torch.stack(gradients)
    return found
