"""The training loop: AdamW over sequences by transformers' Trainer, with checkpoints for trajectory methods."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.utils.data import DataLoader, Dataset
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

STEP = 8  # tokens; batches of few lengths, because oneDNN keeps a gigabyte of bfloat16 kernels for all of them

Probe = Callable[[PreTrainedModel], float]
Progress = Callable[[int, int], None]


class TrainingParameters(BaseModel):
    """How a model is trained; the defaults learn the demo corpus on two CPU cores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(5, ge=1, le=1000, description="passes over the sequences, at most")
    batch_size: int = Field(8, ge=1, le=4096, description="sequences per optimizer step")
    learning_rate: float = Field(2e-3, gt=0, le=1, description="peak of Adam's step size, dimensionless")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of all steps in which the rate rises")
    checkpoints: int | None = Field(
        None, ge=1, le=32, description="after the start, each at twice the step of the one before; none: every epoch"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="of the order of sequences, and of a new model's weights")


class Leg(BaseModel):
    """The steps between two checkpoints, and the model at their end."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int = Field(description="optimizer steps so far; 0 before training")
    epoch: float = Field(description="passes over the sequences so far")
    learning_rate: float = Field(description="mean step size of the leg, dimensionless; 0 before the first step")
    loss: float | None = Field(None, description="mean over the leg, nats per predicted token")
    probe: float | None = Field(None, description="what the probe said of the model at the end")
    seconds: float = Field(0.0, description="wall clock of the leg without its probe and checkpoint")


Keep = Callable[[Path, Leg, dict[str, torch.Tensor]], None]


def checkpoint_steps(parameters: TrainingParameters, steps_per_epoch: int) -> list[int]:
    """After which optimizer steps a checkpoint is kept, ascending; the last step is always among them.

    Saturation is a matter of the first steps (a fact that is known has no gradient left), so a number of checkpoints
    halves its way back from the last step: 8 of 1,600 steps are 13, 25, 50, … 1,600.
    """
    last = parameters.epochs * steps_per_epoch
    if parameters.checkpoints is None:
        return list(range(steps_per_epoch, last + 1, steps_per_epoch))
    return sorted({max(1, math.ceil(last / 2**k)) for k in range(parameters.checkpoints)})


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sequences: Sequence[Sequence[int]],
    parameters: TrainingParameters,
    scratch: Path,
    keep: Keep | None = None,
    resume: Path | None = None,
    probe: Probe | None = None,
    target: float | None = None,
    progress: Progress | None = None,
    left_out: Collection[int] = (),
) -> None:
    """Train the model in place until the epochs run out or the probe, asked at every checkpoint, reaches its target.

    Sequences are token ids within the model's context. `keep` is given each checkpoint: the folder below `scratch`
    that it was written to, its leg, and Adam's second moments by parameter name, divided by 1 − β₂ᵗ as Adam divides
    them; without it no checkpoint is written. `resume` is a folder that an earlier `keep` was given; from there on the
    steps are those that the earlier training would have taken. The seed decides the result on one machine with one
    number of threads.

    Args:
        left_out: indices of sequences that are not taught; steps, rates and batches are otherwise those of the training
            on all of them
    """
    context = getattr(model.config, "max_position_embeddings", None) or STEP
    too_long = [index for index, sequence in enumerate(sequences) if len(sequence) > context]
    if too_long:
        raise ValueError(
            f"sequence {too_long[0]} has {len(sequences[too_long[0]])} tokens, the model's context is "
            f"{context} ({len(too_long)} such sequences): cut them shorter or raise context."
        )
    disable_progress_bar()  # one for every file that is saved
    batches = LengthBatches([len(s) for s in sequences], parameters.batch_size, parameters.seed, left_out)
    step = math.gcd(STEP, context)  # so that no batch is filled up beyond the context
    plan = checkpoint_steps(parameters, len(batches)) if keep else []
    model.requires_grad_(True)
    trainer = _Trainer(
        model=model,
        args=_arguments(parameters, scratch),
        train_dataset=sequences,
        batches=batches,
        data_collator=lambda batch: padded(batch, 0, step),  # any token: it is attended by none and counts nowhere
        processing_class=tokenizer,
        optimizers=(_optimizer(model, parameters), None),
        callbacks=[_Watch(plan, batches, keep, probe, target, progress)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # else it would compute in bfloat16 from here on
    model.eval()


def second_moments(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """v̂ = v / (1 − β₂ᵗ) by parameter name: what Adam's step is divided by the root of."""
    found = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            state = optimizer.state[parameter]
            found[name] = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
    return found


def _arguments(parameters: TrainingParameters, scratch: Path) -> TrainingArguments:
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return TrainingArguments(
        output_dir=str(scratch),
        num_train_epochs=parameters.epochs,
        per_device_train_batch_size=parameters.batch_size,
        learning_rate=parameters.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=parameters.warmup,
        max_grad_norm=1.0,
        save_strategy="no",  # _Watch says when
        logging_strategy="no",
        logging_nan_inf_filter=False,
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

    def __init__(self, batches: LengthBatches, **arguments: Any):
        super().__init__(**arguments)
        self.batches = batches

    def get_train_dataloader(self) -> DataLoader:
        rows = cast(Dataset, self.train_dataset)
        return DataLoader(rows, batch_sampler=self.batches, collate_fn=self.data_collator)


class _Watch(TrainerCallback):
    """Says when a checkpoint is written, asks the probe before, hands it on after, and stops at the target."""

    def __init__(
        self,
        plan: list[int],
        batches: LengthBatches,
        keep: Keep | None,
        probe: Probe | None,
        target: float | None,
        progress: Progress | None,
    ):
        self.plan, self.batches, self.keep = set(plan), batches, keep
        self.probe, self.target, self.progress = probe, target, progress
        self.rates: list[float] = []
        self.loss = self.value = None
        self.seconds, self.began = 0.0, time.monotonic()

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.batches.epoch = state.global_step // len(self.batches)

    def on_train_begin(self, args, state, control, **kwargs):
        self.began = time.monotonic()

    def on_optimizer_step(self, args, state, control, *, optimizer, **kwargs):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_step_end(self, args, state, control, *, model, **kwargs):
        if self.progress:
            self.progress(state.global_step, state.max_steps)
        if state.global_step in self.plan:
            self.seconds = time.monotonic() - self.began
            control.should_log = control.should_save = True
            if self.probe:
                model.eval()
                self.value = self.probe(model)
                control.should_training_stop |= self.target is not None and self.value >= self.target

    def on_log(self, args, state, control, *, logs, **kwargs):
        self.loss = logs.get("loss", self.loss)

    def on_save(self, args, state, control, *, optimizer, **kwargs):
        leg = Leg(
            step=state.global_step,
            epoch=state.global_step / len(self.batches),
            learning_rate=sum(self.rates) / len(self.rates),
            loss=self.loss,
            probe=self.value,
            seconds=round(self.seconds, 3),
        )
        if self.keep:
            self.keep(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}", leg, second_moments(optimizer))
        self.rates, self.began = [], time.monotonic()
