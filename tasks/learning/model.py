"""An untrained GPT-2 of a given shape, for any tokenizer."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase, set_seed


class ModelShape(BaseModel):
    """A new model: its weights are drawn, and its tokenizer is made of the texts; the defaults suit the demo corpus."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int = Field(4, ge=1, le=48, description="transformer blocks")
    width: int = Field(128, ge=8, le=4096, description="dimensions of the residual stream")
    heads: int = Field(4, ge=1, le=64, description="attention heads per block; divides the width")
    context: int = Field(128, ge=2, le=8192, description="tokens in the longest sequence")
    vocabulary: int = Field(4096, ge=257, le=1_000_000, description="tokens of a tokenizer that is made, at most")
    initial_scale: float = Field(0.06, gt=0, le=1, description="standard deviation of the initial weights")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ModelShape:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is no multiple of heads={self.heads}: change one of them.")
        return self


def new_model(tokenizer: PreTrainedTokenizerBase, shape: ModelShape, seed: int) -> GPT2LMHeadModel:
    """An untrained GPT-2 of the given shape, without dropout; draws its weights from the seed.

    Positions start at a fifth of the scale: at first a token should look like itself wherever it stands.
    """
    set_seed(seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=shape.context,
            n_embd=shape.width,
            n_layer=shape.layers,
            n_head=shape.heads,
            initializer_range=shape.initial_scale,
            activation_function="gelu_pytorch_tanh",  # what "gelu_new" computes, in one kernel
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        )
    )
    torch.nn.init.normal_(model.transformer.wpe.weight, std=shape.initial_scale / 5)
    return model
