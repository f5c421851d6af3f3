"""The checkpoints of a training, our own or a foreign one: where they stand, their step, step size and second moments.

A trajectory is a directory whose sub-folders are models that were saved on the way. Ours are those of
`storage/trainings.py`; of a Hugging Face `Trainer` the folders `checkpoint-N` are read as they are, others by the
number in their name. Pickle is opened with `weights_only`, so no code of a file ever runs.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.trainer_pt_utils import get_parameter_names

from storage.checkpoints import MOMENTS, empty_model, tokenizer_fingerprint
from storage.errors import MismatchError, ModelError
from storage.store import read_json
from storage.tensors import read_tensors

log = logging.getLogger(__name__)

NOTE = "checkpoint.json"
OPTIMIZER = "optimizer.pt"  # what a Hugging Face Trainer leaves
UNDECAYED = ["bias", "layernorm", "rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]  # as that Trainer has them
_STEP = re.compile(r"(?:checkpoint|step|ckpt|iter|global_step)[-_]?(\d+)", re.IGNORECASE)
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Checkpoint:
    """A model as it was after `step` optimizer steps, 0 before the first.

    `learning_rate` is the mean step size since the checkpoint before, of a foreign training the one that was logged
    last, and None where nobody wrote it down.
    """

    path: Path
    step: int
    learning_rate: float | None
    second_moments: Path | None


def read_trajectory(directory: str | Path, model: Path | None = None) -> tuple[Checkpoint, ...]:
    """The checkpoints in a directory, by step; they must be of one model, of `model` if it is given."""
    folder = Path(directory).expanduser().resolve()
    if not folder.is_dir():
        raise ModelError(
            f"checkpoints {folder}", expected="a directory", found="none", remedy="Check the path of --checkpoints."
        )
    found: dict[int, Checkpoint] = {}
    for path in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        step = _step(path)
        if step is None:
            continue
        if step in found:
            raise ModelError(
                f"checkpoints {folder}",
                expected="one folder per step",
                found=f"{found[step].path.name} and {path.name}, both of step {step}",
                remedy="Move one of them away.",
            )
        found[step] = Checkpoint(path, step, _learning_rate(path, step), _moments(path))
    if not found:
        names = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
        raise ModelError(
            f"checkpoints {folder}",
            expected="sub-folders with a model each and the step in their name, as checkpoint-500",
            found=names,
            remedy="Name the directory that the training wrote its checkpoints into.",
        )
    ordered = tuple(found[step] for step in sorted(found))
    _require_one_shape([*([model] if model else []), *(checkpoint.path for checkpoint in ordered)])
    if model is not None:
        _require_tokenizer(model, ordered)
    if ordered[0].step == 0 and _STEP.search(ordered[0].path.name) is None and len(ordered) > 1:
        log.warning("%s counts as the model before training, whose step is 0", ordered[0].path)
    return ordered


def read_second_moments(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Adam's second moments v̂ by parameter name, each of its parameter's shape; corrected for their start at zero.

    Adam divides its step by √v̂, v̂ = v / (1 − β₂ᵗ): so early and late checkpoints are on one scale. Adafactor keeps
    row and column means, whose outer product over their mean is its v̂ (Shazeer & Stern 2018, arXiv 1804.04235,
    algorithm 4); its decay corrects itself.
    """
    path = checkpoint.second_moments
    if path is None:
        raise ModelError(
            f"checkpoint {checkpoint.path}",
            expected=f"second moments ({MOMENTS} or {OPTIMIZER})",
            found="none",
            remedy="Leave this checkpoint out, or do not divide by second moments.",
        )
    model = empty_model(checkpoint.path)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    moments = read_tensors(path) if path.name == MOMENTS else _from_optimizer(path, model)
    for name, shape in shapes.items():
        if name not in moments or moments[name].shape != shape:
            raise MismatchError(
                f"second moments {path}",
                expected=f"{name} of shape {tuple(shape)}, as in the model beside it",
                found=f"shape {tuple(moments[name].shape)}" if name in moments else "none",
                remedy="Do not divide by second moments: nobody can say which belong to which weight.",
            )
    return {name: moments[name].float() for name in shapes}


def _step(path: Path) -> int | None:
    """The step in a folder's name; None for a folder that is no checkpoint."""
    named = _STEP.search(path.name)
    if not (path / "config.json").exists():
        if named is None:
            return None
        raise ModelError(
            f"checkpoint {path}",
            expected="a model (config.json and *.safetensors)",
            found=", ".join(sorted(p.name for p in path.iterdir())[:6]) or "an empty folder",
            remedy="Remove the folder if its writing was broken off, or save the whole model in it.",
        )
    numbers = _NUMBER.findall(path.name)
    return int(named[1]) if named else int(numbers[-1]) if numbers else None


def _learning_rate(path: Path, step: int) -> float | None:
    if (path / NOTE).exists():
        return read_json(path / NOTE)["learning_rate"]
    if not (path / "trainer_state.json").exists():
        return None
    history = json.loads((path / "trainer_state.json").read_text(encoding="utf-8")).get("log_history", [])
    rates = [(entry["step"], entry["learning_rate"]) for entry in history if "learning_rate" in entry]
    return max((rate for rate in rates if rate[0] <= step), default=(0, None))[1]


def _moments(path: Path) -> Path | None:
    return next((path / name for name in (MOMENTS, OPTIMIZER) if (path / name).exists()), None)


def _require_one_shape(paths: Sequence[Path]) -> None:
    first, *others = paths
    expected = _shapes(first)
    for other in others:
        found = _shapes(other)
        if found != expected:
            name = min(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
            raise MismatchError(
                f"checkpoint {other}",
                expected=f"the weights of {first.name}: {name} {expected.get(name, 'absent')}",
                found=f"{name} {found.get(name, 'absent')}",
                remedy="Keep checkpoints of one training in a directory, and name the model that it made.",
            )


def _require_tokenizer(model: Path, checkpoints: Sequence[Checkpoint]) -> None:
    """Refuse checkpoints that have a tokenizer of their own, and not the model's: their tokens mean other words."""
    expected = tokenizer_fingerprint(model)
    for path in (checkpoint.path for checkpoint in checkpoints):
        if (path / "tokenizer.json").exists() and tokenizer_fingerprint(path) != expected:
            raise MismatchError(
                f"checkpoint {path}",
                expected=f"the tokenizer of {model}",
                found="another one",
                remedy="Name the model that the training of these checkpoints made.",
            )


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        for file in sorted(path.glob("*.safetensors")):
            if file.name != MOMENTS:
                with safe_open(file, framework="pt") as weights:
                    shapes |= {name: tuple(weights.get_slice(name).get_shape()) for name in list(weights.keys())}
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"checkpoint {path}", expected="readable *.safetensors", found=str(error).splitlines()[0],
            remedy="Remove the folder if its writing was broken off.",
        ) from error  # fmt: skip
    if not shapes:
        pickled = [p.name for pattern in ("*.bin", "*.pth") for p in sorted(path.glob(pattern))]
        raise ModelError(
            f"checkpoint {path}",
            expected="weights in *.safetensors",
            found=f"only pickled weights ({pickled[0]}), which can run code" if pickled else "none",
            remedy="Convert them where you trust them: model.save_pretrained(directory).",
        )
    return shapes


def _from_optimizer(path: Path, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        state, groups = saved["state"], saved["param_groups"]
    except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError, EOFError, OSError) as error:
        raise ModelError(
            f"optimizer state {path}",
            expected="what torch.save makes of an optimizer's state_dict, tensors and numbers only",
            found=str(error).splitlines()[0],
            remedy="Do not divide by second moments, or keep another checkpoint.",
        ) from error
    moments: dict[str, torch.Tensor] = {}
    for group, names in zip(groups, _names(model, len(groups)), strict=False):
        for index, name in zip(group["params"], group.get("param_names") or names, strict=False):
            moment = _moment(state.get(index, {}), group)
            if moment is not None:
                moments[name] = moment
    return moments


def _names(model: torch.nn.Module, n_groups: int) -> list[list[str]]:
    """Parameters by optimizer group in the order in which they are numbered: the model's order, or, as a Hugging
    Face Trainer has it, first the group with weight decay and then the one without.
    """
    names = [name for name, _ in model.named_parameters()]
    if n_groups == 1:
        return [names]
    decayed = set(get_parameter_names(model, [torch.nn.LayerNorm], UNDECAYED))
    return [[name for name in names if name in decayed], [name for name in names if name not in decayed]]


def _moment(state: dict, group: dict) -> torch.Tensor | None:
    if "exp_avg_sq" in state:
        decay = group["betas"][1] if "betas" in group else 0.0
        return state["exp_avg_sq"] / (1 - decay ** float(state["step"]))
    if "exp_avg_sq_row" in state:
        rows, columns = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
        return rows[..., :, None] * columns[..., None, :] / rows.mean(-1)[..., None, None]
    return None
