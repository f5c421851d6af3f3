"""Input- and output-token influence: which tokens of a sequence answer when the weights move towards a query.

θ′ = θ + α (G + λI)⁻¹ ∇ log p(completion | prompt), in the tracked modules alone (Grosse et al. 2023, appendix B).

Output-token influence of token t (Eq. 36): [log p(z_t | z_<t; θ′) − log p(z_t | z_<t; θ)] / α. How much likelier the
move makes this very token, given those before it. As α → 0 it is the product of the Jacobian with the direction, and
its sum over the tokens is the influence of the sequence.
Input-token influence of token t (Eq. 38): [∂ log p(z; θ′)/∂ε_t − ∂ log p(z; θ)/∂ε_t] / α, where what the look-up of
token t gives is scaled by 1 + ε_t. As α → 0 it is ∂/∂ε_t of the sequence's influence: what the sequence would gain if
this token weighed more in it. Eq. 38 has no 1/α; with it both are in nats, on the scale of influences.

The limits come from one forward pass that carries the direction along through a forward and a backward pass: nothing
cancels, whatever the precision. A tied embedding keeps its own weights in the look-up, as in the influences.

Letters: t tokens of one sequence, n predicted tokens, d embedding width, v vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import grad, jvp
from transformers import PreTrainedModel

from tasks.influence.batches import TokenSequence, collate
from tasks.influence.errors import InfluenceError
from tasks.influence.modules import TrackedModule
from tasks.influence.weights import Weights, logits_under, weights_of

if TYPE_CHECKING:
    from jaxtyping import Float

AGREEMENT = 1e-3  # nats per token by which a model may differ when it is given embeddings in place of tokens


@dataclass(frozen=True)
class TokenInfluence:
    """Of one sequence, in nats: inputs by token, outputs by predicted token."""

    inputs: Float[Tensor, "t"]
    outputs: Float[Tensor, "n"]  # of the tokens from first_scored on


class MovedModel:
    """A model that can be moved by α towards a query; the weights that it has stay as they are."""

    def __init__(
        self, model: PreTrainedModel, modules: Sequence[TrackedModule], solutions: Mapping[str, Tensor]
    ) -> None:
        """`solutions` are (G + λI)⁻¹ ∇L_q of the query by module, [o, i]; L_q = −log p, so the move is against them."""
        self._model, self._modules = model, modules
        self._weights = weights_of(model, modules)
        self._direction: Weights = {m.name: -solutions[m.name].to(self._weights[m.name]) for m in modules}
        self._known = False

    def limit(self, sequence: TokenSequence) -> TokenInfluence:
        """Both influences as α → 0."""
        self._require_embeddings(sequence)
        shares = partial(self._shares, sequence)
        _, (inputs, outputs) = jvp(shares, (self._weights,), (self._direction,))
        return _finite(TokenInfluence(inputs, outputs), 0.0)

    def moved(self, sequence: TokenSequence, alpha: float) -> TokenInfluence:
        """Both at a step of length α, as the paper has them."""
        self._require_embeddings(sequence)
        steps = {name: value + alpha * self._direction[name] for name, value in self._weights.items()}
        after, before = self._shares(sequence, steps), self._shares(sequence, self._weights)
        inputs, outputs = ((new - old) / alpha for new, old in zip(after, before, strict=True))
        return _finite(TokenInfluence(inputs, outputs), alpha)

    def rise(self, query: TokenSequence) -> float:
        """By how many nats log p of the query rises for each unit of α, to first order: its influence on itself."""
        return float(self.limit(query).outputs.double().sum())

    def _shares(self, sequence: TokenSequence, weights: Weights) -> tuple[Float[Tensor, "t"], Float[Tensor, "n"]]:
        """∂ log p(z)/∂ε by token, and log p by predicted token."""
        vectors = self._looked_up(sequence)

        def total(scales: Float[Tensor, "t"]) -> tuple[Tensor, Tensor]:
            logs = self._log_probabilities(weights, sequence, {"inputs_embeds": vectors * (1 + scales)[:, None]})
            return logs.sum(), logs

        return grad(total, has_aux=True)(vectors.new_zeros(len(sequence.token_ids)))

    def _looked_up(self, sequence: TokenSequence) -> Float[Tensor, "1 t d"]:
        tokens = torch.as_tensor(sequence.token_ids, dtype=torch.long, device=self._model.device)
        with torch.no_grad():
            return self._model.get_input_embeddings()(tokens[None])

    def _log_probabilities(
        self, weights: Weights, sequence: TokenSequence, inputs: Mapping[str, Tensor]
    ) -> Float[Tensor, "n"]:
        logits = logits_under(self._model, self._modules, weights, inputs)[0]
        batch = collate([sequence], self._model.device)
        logs = torch.log_softmax(logits, -1, torch.promote_types(logits.dtype, torch.float32))
        return logs.gather(-1, batch.next_tokens[0, :, None])[:, 0][batch.scored[0]]

    @torch.no_grad()
    def _require_embeddings(self, sequence: TokenSequence) -> None:
        """Refuse a model that reads more from its tokens than their embeddings; looked at once."""
        if self._known:
            return
        if "inputs_embeds" not in inspect.signature(self._model.forward).parameters:
            raise InfluenceError(
                f"model {type(self._model).__name__}: expected one that takes embeddings (inputs_embeds) in place of "
                "tokens, found one that does not. Input-token influence cannot be had of this model."
            )
        batch = collate([sequence], self._model.device)
        of_tokens = self._log_probabilities(self._weights, sequence, batch.model_inputs)
        of_vectors = self._log_probabilities(self._weights, sequence, {"inputs_embeds": self._looked_up(sequence)})
        apart = float((of_tokens - of_vectors).abs().max())
        if not apart <= AGREEMENT:
            raise InfluenceError(
                "model: expected the same log-probabilities from the embeddings of tokens as from the tokens, found "
                f"{apart:.1e} nats between them: it reads its tokens in another place too. "
                "Input-token influence cannot be had of this model."
            )
        self._known = True


def _finite(found: TokenInfluence, alpha: float) -> TokenInfluence:
    if not (torch.isfinite(found.inputs).all() and torch.isfinite(found.outputs).all()):
        raise InfluenceError(
            f"token influences at α = {alpha:.3g}: expected finite numbers, found NaN or infinity. "
            f"{'Take a smaller step.' if alpha else 'Fit with more damping.'}"
        )
    return found
