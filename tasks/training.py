"""Trains a small causal language model from scratch on given sequences.

The demo needs a model whose training data is known to the last token; evaluations retrain one on subsets.
What the trajectory methods ask for later is kept: a checkpoint per epoch with its optimizer state, in which
`exp_avg_sq` holds Adam's second moments under the parameter's name, and the learning rate of that epoch.
"""

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.utils.logging import disable_progress_bar

from tasks.influence.sweep import native_precision

END_OF_TEXT = "<|endoftext|>"
WINDOW = 8  # batches that are sorted by length together
STEP = 8  # tokens; batches of few lengths, because oneDNN keeps a gigabyte of bfloat16 kernels for all of them
IGNORED = -100  # the label that PyTorch's cross entropy leaves out

Probe = Callable[[PreTrainedModel], float]
Progress = Callable[[int, int], None]


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


class Epoch(BaseModel):
    """What one pass over the sequences left behind."""

    model_config = ConfigDict(frozen=True)

    epoch: int = Field(description="1 for the first pass")
    checkpoint: Path = Field(description="folder with weights, tokenizer and optimizer state")
    learning_rate: float = Field(description="mean step size over the pass, dimensionless")
    loss: float = Field(description="mean over the pass, nats per predicted token")
    probe: float = Field(description="what the probe said of the model after the pass")
    seconds: float = Field(description="wall clock of the pass without its probe and checkpoint")


class TrainingReport(BaseModel):
    """How a training went; `reached` says whether the probe met its target before the epochs ran out."""

    model_config = ConfigDict(frozen=True)

    epochs: tuple[Epoch, ...]
    target: float
    reached: bool
    seconds: float


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that begins every text with the end-of-text token.

    Bytes make decoding lossless; no space is put before a text, so a prompt and a completion joined as
    strings are tokenised as they stood in training. Offsets keep the space that belongs to a token: the
    spans of consecutive tokens tile the text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{END_OF_TEXT} $A",
                special_tokens=[(END_OF_TEXT, tokenizer.token_to_id(END_OF_TEXT))],
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


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


def padded(sequences: Sequence[Sequence[int]], pad: int, step: int = 1) -> dict[str, torch.Tensor]:
    """One batch, filled up on the right to a multiple of `step`; what is filled up counts in no loss.

    The label decides what counts, not the token: the end-of-text token pads and also begins texts.
    Returns input_ids, attention_mask and labels, each [sequence, position].
    """
    longest = -(-max(len(sequence) for sequence in sequences) // step) * step
    input_ids = torch.full((len(sequences), longest), pad)
    labels = torch.full_like(input_ids, IGNORED)
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence)] = labels[row, : len(sequence)] = torch.tensor(sequence)
    return {"input_ids": input_ids, "attention_mask": (labels != IGNORED).long(), "labels": labels}


def length_batches(lengths: Sequence[int], batch_size: int, generator: random.Random) -> list[list[int]]:
    """Indices in batches of like length: every index once, batches in random order.

    Only WINDOW batches at a time are sorted, so that the company of a sequence changes between epochs.
    The Trainer's own `group_by_length` leaves the batches sorted, from long to short and over again: on half
    the demo corpus, three epochs of that ended at 5.9 nats per token, of these batches in random order at 5.3.
    """
    order = generator.sample(range(len(lengths)), len(lengths))
    windows = [order[at : at + WINDOW * batch_size] for at in range(0, len(order), WINDOW * batch_size)]
    order = [index for window in windows for index in sorted(window, key=lambda index: lengths[index])]
    batches = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    return generator.sample(batches, len(batches))


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


def train(
    sequences: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    parameters: TrainingParameters,
    directory: Path,
    probe: Probe,
    target: float,
    progress: Progress | None = None,
) -> TrainingReport:
    """Train a model on the sequences until the probe reaches its target or the epochs run out.

    Sequences are token ids, already cut to the context. After every epoch a checkpoint is saved below
    `directory`; the last model and the tokenizer are saved in it, where AutoModelForCausalLM finds them.
    The seed decides the result on one machine with one number of threads.
    """
    too_long = [index for index, sequence in enumerate(sequences) if len(sequence) > parameters.context]
    if too_long:
        raise ValueError(
            f"sequence {too_long[0]} has {len(sequences[too_long[0]])} tokens, the model's context is "
            f"{parameters.context} ({len(too_long)} such sequences): cut them shorter or raise context."
        )
    began = time.monotonic()
    disable_progress_bar()  # one for every file that is saved
    model = new_model(tokenizer, parameters)
    pad = tokenizer.get_vocab()[END_OF_TEXT]
    step = math.gcd(STEP, parameters.context)  # so that no batch is filled up beyond the context
    watch = _Watch(probe, target, progress)
    trainer = _Trainer(
        model=model,
        args=_arguments(parameters, directory),
        train_dataset=sequences,
        batches=_LengthBatches([len(sequence) for sequence in sequences], parameters),
        data_collator=lambda batch: padded(batch, pad, step),
        processing_class=tokenizer,
        optimizers=(_optimizer(model, parameters), None),
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model(str(directory))
    return TrainingReport(
        epochs=tuple(watch.epochs),
        target=target,
        reached=watch.epochs[-1].probe >= target,
        seconds=time.monotonic() - began,
    )


def _arguments(parameters: TrainingParameters, directory: Path) -> TrainingArguments:
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return TrainingArguments(
        output_dir=str(directory),
        num_train_epochs=parameters.epochs,
        per_device_train_batch_size=parameters.batch_size,
        learning_rate=parameters.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=parameters.warmup,
        save_strategy="epoch",
        logging_strategy="epoch",
        seed=parameters.seed,
        bf16=native_precision(where) == torch.bfloat16,
        use_cpu=where.type == "cpu",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def _optimizer(model: PreTrainedModel, parameters: TrainingParameters) -> torch.optim.Optimizer:
    """AdamW over named parameters in one group: its saved state says which moments belong to which weight."""
    return torch.optim.AdamW(
        model.named_parameters(),
        lr=parameters.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=0.01,
        fused=True,
    )


class _LengthBatches(Sampler[list[int]]):
    """Batches of sequences of like length in random order, new in every epoch; repeats from the seed."""

    def __init__(self, lengths: Sequence[int], parameters: TrainingParameters):
        self.lengths, self.batch_size = lengths, parameters.batch_size
        self.random = random.Random(parameters.seed)

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        yield from length_batches(self.lengths, self.batch_size, self.random)


class _Trainer(Trainer):
    """The Trainer with batches of our own."""

    def __init__(self, batches: Sampler[list[int]], **arguments):
        super().__init__(**arguments)
        self.batches = batches

    def get_train_dataloader(self) -> DataLoader:
        rows = cast(Dataset, self.train_dataset)
        return DataLoader(rows, batch_sampler=self.batches, collate_fn=self.data_collator)


class _Watch(TrainerCallback):
    """Asks the probe after every epoch, stops the training at its target and keeps an account."""

    def __init__(self, probe: Probe, target: float, progress: Progress | None):
        self.probe, self.target, self.progress = probe, target, progress
        self.epochs: list[Epoch] = []

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.began = time.monotonic()
        self.rates: list[float] = []

    def on_optimizer_step(self, args, state, control, *, optimizer, **kwargs):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_step_end(self, args, state, control, **kwargs):
        if self.progress:
            self.progress(state.global_step, state.max_steps)

    def on_epoch_end(self, args, state, control, *, model, **kwargs):
        self.seconds = time.monotonic() - self.began
        model.eval()
        self.value = self.probe(model)
        control.should_training_stop |= self.value >= self.target

    def on_log(self, args, state, control, *, logs, **kwargs):
        if "loss" in logs:
            self.loss = logs["loss"]

    def on_save(self, args, state, control, **kwargs):
        self.epochs.append(
            Epoch(
                epoch=len(self.epochs) + 1,
                checkpoint=Path(str(args.output_dir)) / f"checkpoint-{state.global_step}",
                learning_rate=sum(self.rates) / len(self.rates),
                loss=self.loss,
                probe=self.value,
                seconds=self.seconds,
            )
        )
