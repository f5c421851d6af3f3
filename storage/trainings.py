"""What a training leaves in its directory: checkpoints that are whole or absent, and at last the trained model.

plan.json            what the training is of; written first
untrained/           the model that a training from scratch begins with
checkpoint-<step>/   weights, tokenizer, checkpoint.json and, after the first step, second_moments.safetensors; the last
                     one holds what a training that was killed goes on from
config.json …        the trained model and its tokenizer
training.json        the account; it exists when the training is complete
.writing/            what is being written; never read
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from storage.checkpoints import MOMENTS
from storage.errors import InputError, MismatchError
from storage.store import explain_write, read_json, write_json
from storage.trajectory import NOTE, OPTIMIZER

PLAN, ACCOUNT, WRITING, UNTRAINED = "plan.json", "training.json", ".writing", "untrained"
RESUMED_FROM = (OPTIMIZER, "scheduler.pt", "rng_state.pth", "scaler.pt", "training_args.bin")


def begin(directory: Path, plan: dict[str, Any]) -> Path:
    """Make a directory that of one training, or find it so; returns where its files are written before they count."""
    known = read_plan(directory)
    if known is None and directory.exists() and any(p.name not in (UNTRAINED, WRITING) for p in directory.iterdir()):
        raise InputError(
            f"training directory {directory}",
            expected="an empty place, or a training that was begun there",
            found=", ".join(sorted(p.name for p in directory.iterdir())[:6]),
            remedy="Name another directory.",
        )
    if known is not None and known != plan:
        differing = sorted(key for key in known.keys() | plan.keys() if known.get(key) != plan.get(key))
        raise MismatchError(
            f"training directory {directory}",
            expected=f"a training with the same {', '.join(differing)}",
            found=f"one with {', '.join(f'{key} {known.get(key)}' for key in differing)}",
            remedy="Name another directory, or remove this one.",
        )
    write_json(directory / PLAN, plan)
    return _cleared(directory / WRITING)


def read_plan(directory: Path) -> dict[str, Any] | None:
    """What the training in a directory is of; None where none was begun."""
    return read_json(directory / PLAN) if (directory / PLAN).exists() else None


def read_account(directory: Path) -> dict[str, Any] | None:
    """The account of a complete training; None of any other."""
    return read_json(directory / ACCOUNT) if (directory / ACCOUNT).exists() else None


def checkpoint_notes(directory: Path) -> list[dict[str, Any]]:
    """What was noted of each whole checkpoint, by step."""
    notes = [read_json(path) for path in directory.glob(f"checkpoint-*/{NOTE}")]
    return sorted(notes, key=lambda note: note["step"])


def resumable_checkpoint(directory: Path) -> Path | None:
    """The checkpoint that a killed training goes on from; None where it begins anew."""
    whole = [directory / f"checkpoint-{note['step']}" for note in checkpoint_notes(directory)]
    return next((path for path in reversed(whole) if (path / OPTIMIZER).exists()), None)


def keep_start(directory: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, note: dict) -> None:
    """Keep the model as it is before the first step, if that was not done."""
    if not (directory / "checkpoint-0").exists():
        written = _cleared(directory / WRITING) / "checkpoint-0"
        _save(written, model, tokenizer)
        keep_checkpoint(directory, written, note, {})


def keep_checkpoint(directory: Path, written: Path, note: dict, moments: dict[str, torch.Tensor]) -> None:
    """Let a checkpoint that was written elsewhere appear, and drop what only the one before was to be resumed from."""
    earlier = checkpoint_notes(directory)
    final = directory / f"checkpoint-{note['step']}"
    with explain_write(final):
        if moments:
            tensors = {name: moment.detach().float().contiguous().cpu() for name, moment in moments.items()}
            save_file(tensors, written / MOMENTS)
        write_json(written / NOTE, note)
        written.replace(final)
        _drop_state(directory, earlier)


def keep_trained(directory: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, account: dict) -> None:
    """Save the trained model where AutoModelForCausalLM finds it, and then the account that says it is complete."""
    written = _cleared(directory / WRITING)
    _save(written, model, tokenizer)
    with explain_write(directory):
        for path in sorted(written.iterdir(), key=lambda p: p.name == "config.json"):  # without it, it is no model
            path.replace(directory / path.name)
        write_json(directory / ACCOUNT, account)
        _drop_state(directory, checkpoint_notes(directory))
        shutil.rmtree(directory / WRITING)


def keep_untrained(
    directory: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, made_from: dict
) -> Path:
    """Save the model that a training from scratch begins with; returns its directory."""
    final = directory / UNTRAINED
    written = _cleared(directory / WRITING) / UNTRAINED
    _save(written, model, tokenizer)
    with explain_write(final):
        write_json(written / "made_from.json", made_from)
        written.replace(final)
    return final


def find_untrained(directory: Path, made_from: dict) -> Path | None:
    """The untrained model in a directory, if it was made; one that was made otherwise is refused."""
    path = directory / UNTRAINED
    if not path.exists():
        return None
    if read_json(path / "made_from.json") != made_from:
        raise MismatchError(
            f"untrained model {path}",
            expected="that of the same texts, shape and seed",
            found="another",
            remedy="Name another directory, or remove this one.",
        )
    return path


def _drop_state(directory: Path, notes: list[dict[str, Any]]) -> None:
    for note in notes:
        for name in RESUMED_FROM:
            (directory / f"checkpoint-{note['step']}" / name).unlink(missing_ok=True)


def _save(path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with explain_write(path):
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)


def _cleared(path: Path) -> Path:
    with explain_write(path):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    return path
