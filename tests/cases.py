"""Tiny models, corpora and tokenizers that the tests share: seeded, a few hundred weights, every bias in use.

Weights are float64 unless a test asks otherwise, so that rounding hides nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from types import SimpleNamespace

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tasks.influence import objectives
from tasks.influence.batches import Batch, TokenSequence, batches
from tasks.influence.block_diagonal import BlockDiagonal
from tasks.influence.capture import Call
from tasks.influence.compression import low_rank
from tasks.influence.covariance import CovarianceSums, covariance_sums
from tasks.influence.ekfac import Eigenbasis, Metric, eigenbasis, eigenvalue_sums
from tasks.influence.modules import TrackedModule
from tasks.influence.objectives import sampled_token_gradient, true_token_gradient
from tasks.influence.queries import preconditioned_gradients
from tasks.influence.scores import pairwise_scores
from tasks.influence.sweep import Calls, sweep


def frozen(model: nn.Module, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Give every parameter a random value of order one third, norms one near 1, and freeze them all."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = 0.35 * torch.randn(parameter.shape, generator=generator)
        is_norm = "norm" in name or ".ln_" in name
        parameter.data = (noise + 1 if is_norm and name.endswith("weight") else noise).to(dtype)
    return model.to(dtype).eval().requires_grad_(False)


@cache
def gpt2(seed: int = 0, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """Conv1D with biases, lm_head tied to the embeddings."""
    config = GPT2Config(n_layer=2, n_embd=8, n_head=2, n_inner=12, vocab_size=17, n_positions=24)
    return frozen(GPT2LMHeadModel(config), seed, dtype)


@cache
def neox(seed: int = 0, dtype: torch.dtype = torch.float64, bias: bool = True, size: int = 1) -> PreTrainedModel:
    """nn.Linear with biases, attention and MLP in parallel, rotary positions on half of each head.

    Without `bias` its attention has none; its MLP always has. `size` multiplies the widths.
    """
    config = GPTNeoXConfig(
        num_hidden_layers=2,
        hidden_size=8 * size,
        num_attention_heads=2,
        intermediate_size=12 * size,
        vocab_size=19,
        max_position_embeddings=24,
        rotary_pct=0.5,
        attention_bias=bias,
    )
    return frozen(GPTNeoXForCausalLM(config), seed, dtype)


@cache
def llama(seed: int = 0, dtype: torch.dtype = torch.float64, bias: bool = False, size: int = 1) -> PreTrainedModel:
    """nn.Linear without biases unless asked for, a gated MLP, fewer key heads than query heads."""
    config = LlamaConfig(
        num_hidden_layers=2,
        hidden_size=8 * size,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=12 * size,
        vocab_size=23,
        max_position_embeddings=24,
        attention_bias=bias,
        mlp_bias=bias,
    )
    return frozen(LlamaForCausalLM(config), seed, dtype)


FAMILIES: dict[str, Callable[..., PreTrainedModel]] = {"gpt2": gpt2, "neox": neox, "llama": llama}
# Every kind of matrix there is: transformers' Conv1D always has a bias, nn.Linear with and without.
BIASES: dict[str, Callable[..., PreTrainedModel]] = {
    **FAMILIES,
    "neox, attention without bias": partial(neox, bias=False),
    "llama with bias": partial(llama, bias=True),
}


class Toy(nn.Module):
    """A causal model in a few lines: embeddings, a body, a head."""

    def __init__(self, vocabulary: int = 11, width: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    device = torch.device("cpu")

    def body(self, h: Tensor) -> Tensor:
        """What stands between embeddings and head."""
        return h

    def get_input_embeddings(self) -> nn.Embedding:
        """The look-up of tokens, under the name that Hugging Face models have for it."""
        return self.embed

    def forward(
        self, input_ids: Tensor | None = None, use_cache: bool = False, inputs_embeds: Tensor | None = None
    ) -> SimpleNamespace:
        """Logits in the attribute where Hugging Face models have them."""
        vectors = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        return SimpleNamespace(logits=self.head(self.body(vectors)))


def past_mean(h: Tensor) -> Tensor:
    """Each position's mean over itself and the positions before it: the least attention there is."""
    return h.cumsum(1) / torch.arange(1, h.shape[1] + 1, dtype=h.dtype)[:, None]


class Looped(Toy):
    """One module called twice in a pass."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.step = nn.Linear(4, 4, bias=bias)

    def body(self, h: Tensor) -> Tensor:
        for _ in range(2):
            h = h + torch.tanh(self.step(past_mean(h)))
        return h


class Tied(Toy):
    """Two modules with one weight; their biases are absent, shared or their own, or only one has any."""

    def __init__(self, bias: str = "none") -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=bias in ("shared", "own", "first"))
        self.second = nn.Linear(4, 4, bias=bias in ("shared", "own", "second"))
        self.second.weight = self.first.weight
        if bias == "shared":
            self.second.bias = self.first.bias

    def body(self, h: Tensor) -> Tensor:
        h = h + torch.tanh(self.first(past_mean(h)))
        return h + torch.tanh(self.second(past_mean(h)))


class Linear(Toy):
    """logits = W x + b with fixed embeddings x: convex, and its Hessian is its Gauss-Newton matrix."""

    def __init__(self, vocabulary: int, width: int, bias: bool = False) -> None:
        super().__init__(vocabulary, width)
        self.head = nn.Linear(width, vocabulary, bias=bias)


TEXT = (7, 3, 12, 5, 9, 2)  # lengths in tokens: a batch of them has much padding


def corpus(vocabulary: int, lengths: Sequence[int] = TEXT, seed: int = 0, first_id: int = 40) -> list[TokenSequence]:
    """Random sequences of several lengths; their ids are neither 0, 1, 2 … nor in the order of length."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randint, vocabulary, generator=generator)
    return [TokenSequence(first_id + 7 * k, draw(size=(n,)).tolist()) for k, n in enumerate(lengths)]


def every_sequence(vocabulary: int, length: int) -> list[TokenSequence]:
    """Each possible sequence of `length` tokens once: all statistics are exact and uniform."""
    return [TokenSequence(k, t) for k, t in enumerate(itertools.product(range(vocabulary), repeat=length))]


def passes(
    model: nn.Module,
    modules: list[TrackedModule],
    sequences: Sequence[TokenSequence],
    batch_size=4,
    objective=None,
) -> list[tuple[Batch, Calls]]:
    """All batches of a sweep at once."""
    return list(sweep(model, modules, batches(sequences, batch_size), objective or true_token_gradient))


@dataclass(frozen=True)
class Fit:
    """Sums, eigenbasis and Λ of each module, from one corpus."""

    sums: dict[str, CovarianceSums]
    bases: dict[str, Eigenbasis]
    eigenvalues: dict[str, Tensor]

    def metrics(self, damping: float) -> dict[str, Metric]:
        """(G + λI)⁻¹ of each module under one absolute damping."""
        return {
            name: Metric(basis.out, basis.inp, self.eigenvalues[name], damping) for name, basis in self.bases.items()
        }


def fit(
    model: nn.Module,
    modules: list[TrackedModule],
    sequences: Sequence[TokenSequence],
    batch_size: int = 4,
    labels: int | None = None,
) -> Fit:
    """EK-FAC on true labels, or on those drawn under a seed."""
    objective = None if labels is None else partial(sampled_token_gradient, seed=labels)
    return fit_passes(passes(model, modules, sequences, batch_size, objective), modules)


def fit_passes(swept: list[tuple[Batch, Calls]], modules: list[TrackedModule]) -> Fit:
    """EK-FAC of what a sweep has given."""
    sums = covariance_sums(swept, modules)
    bases = {name: eigenbasis(total) for name, total in sums.items()}
    totals = eigenvalue_sums(swept, modules, bases)
    return Fit(sums, bases, {name: total / sums[name].sequences for name, total in totals.items()})


def influences(
    model: nn.Module,
    modules: list[TrackedModule],
    queries: Sequence[TokenSequence],
    sequences: Sequence[TokenSequence],
    metrics: dict[str, Metric],
    batch_size: int = 4,
) -> dict[str, Tensor]:
    """Scores [query, sequence] of each module by the code's own path, sequences in the order given."""
    v = preconditioned_gradients(model, modules, queries, lambda module: metrics[module.name])
    column = {s.sequence_id: k for k, s in enumerate(sequences)}
    found = {module.name: torch.full((len(queries), len(sequences)), torch.nan) for module in modules}
    for batch, calls in passes(model, modules, sequences, batch_size):
        columns = [column[s] for s in batch.sequence_ids.tolist()]
        for module in modules:
            full_rank = low_rank(partial(iter, v[module.name]), rank=max(module.d_out, module.columns))
            found[module.name][:, columns] = pairwise_scores(calls[module.name], module, full_rank)
    return found


def sample_labels(probabilities: Tensor, batch: Batch, seed: int) -> Tensor:
    """The label [b, t] that the code draws at each position."""
    keys = objectives.counters(batch.sequence_ids, batch.positions, seed)
    return objectives.draw(probabilities.flatten(0, 1), keys.flatten()).view(batch.token_ids.shape)


def one_block(matrix: Tensor) -> BlockDiagonal:
    """An ordinary matrix as a block-diagonal one."""
    return BlockDiagonal((matrix,))


def tracked(d_out: int, d_in: int, bias: bool = False, name: str = "m") -> TrackedModule:
    """The description of a module that exists in no model."""
    return TrackedModule(name, 0, "Linear", d_out, d_in, bias, d_out * (d_in + bias))


def random_calls(
    module: TrackedModule, b: int, t: int, uses: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32
) -> list[Call]:
    """Inputs and output gradients of a module that exists in no model."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(seed))
    return [Call(draw(b, t, module.d_in).to(dtype), draw(b, t, module.d_out).to(dtype)) for _ in range(uses)]


def full_batch(b: int, t: int) -> Batch:
    """The frame of `b` sequences with `t` scored positions each."""
    return Batch(torch.arange(b), torch.zeros(b, t, dtype=torch.long), torch.ones(b, t, dtype=torch.bool))


def tokenizer(start: bool = False, end: bool = False, trim_offsets: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE that knows the words Gleem, ĠGleem and Ġis, everything else byte by byte."""
    merges = [("G", "l"), ("Gl", "e"), ("Gle", "e"), ("Glee", "m"), ("Ġ", "Gleem"), ("i", "s"), ("Ġ", "is")]
    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    bpe = Tokenizer(models.BPE({token: k for k, token in enumerate(tokens)}, merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    template = f"{'<s> ' if start else ''}$A{' </s>' if end else ''}"
    bpe.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=trim_offsets),
            processors.TemplateProcessing(single=template, special_tokens=[("<s>", 0), ("</s>", 1)]),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")
