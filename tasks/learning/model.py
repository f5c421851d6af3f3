"""An untrained model of a given shape, and how it is to be trained."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase, set_seed

from tasks.learning.tokenizer import END_OF_TEXT


class TrainingParameters(BaseModel):
    """The model's shape and how it is trained; the defaults learn the demo corpus on two CPU cores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int = Field(4, ge=1, le=48, description="transformer blocks")
    width: int = Field(128, ge=8, le=4096, description="dimensions of the residual stream")
    heads: int = Field(4, ge=1, le=64, description="attention heads per block; divides the width")
    context: int = Field(128, ge=2, le=8192, description="tokens in the longest sequence")
    epochs: int = Field(5, ge=1, le=1000, description="passes over the sequences, at most")
    batch_size: int = Field(8, ge=1, le=4096, description="sequences per optimizer step")
    learning_rate: float = Field(2e-3, gt=0, le=1, description="peak of Adam's step size, dimensionless")
    initial_scale: float = Field(0.06, gt=0, le=1, description="standard deviation of the initial weights")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of all steps in which the rate rises")
    seed: int = Field(0, ge=0, lt=2**32, description="of the initial weights and the order of sequences")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "TrainingParameters":
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is no multiple of heads={self.heads}: change one of them.")
        return self


def new_model(tokenizer: PreTrainedTokenizerBase, parameters: TrainingParameters) -> GPT2LMHeadModel:
    """An untrained GPT-2 of the given shape, without dropout; draws its weights from the seed.

    Positions start at a fifth of the scale: at first a token should look like itself wherever it stands.
    """
    set_seed(parameters.seed)
    end = tokenizer.get_vocab()[END_OF_TEXT]
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=parameters.context,
            n_embd=parameters.width,
            n_layer=parameters.layers,
            n_head=parameters.heads,
            initializer_range=parameters.initial_scale,
            activation_function="gelu_pytorch_tanh",  # what "gelu_new" computes, in one kernel
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
        )
    )
    torch.nn.init.normal_(model.transformer.wpe.weight, std=parameters.initial_scale / 5)
    return model
