"""Trains a small causal language model from scratch on given sequences.

The demo needs a model whose training data is known to the last token; evaluations retrain one on subsets.
What the trajectory methods ask for later is kept: a checkpoint per epoch with its optimizer state, in which
`exp_avg_sq` holds Adam's second moments under the parameter's name, and the learning rate of that epoch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils.logging import disable_progress_bar

from tasks.influence.sweep import native_precision
from tasks.learning.batches import LengthBatches, padded
from tasks.learning.model import TrainingParameters, new_model
from tasks.learning.tokenizer import END_OF_TEXT

STEP = 8  # tokens; batches of few lengths, because oneDNN keeps a gigabyte of bfloat16 kernels for all of them

Probe = Callable[[PreTrainedModel], float]
Progress = Callable[[int, int], None]


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
        batches=LengthBatches([len(s) for s in sequences], parameters.batch_size, parameters.seed),
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
