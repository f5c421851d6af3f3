"""Model checkpoints: found, checked, loaded. Weights come from safetensors only and no foreign code runs."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import lru_cache
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from storage.digests import digest_of, digest_of_file
from storage.errors import ModelError
from storage.settings import settings

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

MOMENTS = "second_moments.safetensors"  # of the optimizer: beside a checkpoint's weights, and none of them
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._/-]{0,200}")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def find_checkpoint(name: str, revision: str | None = None) -> Path:
    """The directory of a model: `name` itself where it is one, else a snapshot of that hub repository."""
    path = Path(name).expanduser()
    if path.is_dir():
        _require_complete(path)
        return path.resolve()
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(f"model {name}", expected="a directory", found="none", remedy="Check the path of --model.")
    if revision is not None and not _REVISION.fullmatch(revision):  # the hub's cache keeps a file of this name
        raise ModelError(
            f"revision {revision!r} of model {name}",
            expected="a commit, branch or tag",
            found="what no repository calls one",
            remedy="Correct --revision.",
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = ["*.json", "*.safetensors", "*.model", "*.txt"]
        path = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"model {name}",
            expected="a local directory or a repository of the Hugging Face hub",
            found=f"no such directory, and the hub said: {str(error).splitlines()[0]}",
            remedy="Check the name, --revision and the network, or download the model and name its directory.",
        ) from error
    _require_complete(path)
    return path


def _require_complete(path: Path) -> None:
    if not (path / "config.json").exists():
        raise ModelError(
            f"model {path}",
            expected="config.json",
            found=_listing(path),
            remedy="Name the directory that save_pretrained wrote.",
        )
    if not any(path.glob("*.safetensors")):
        pickled = sorted(p.name for pattern in _PICKLED for p in path.glob(pattern))
        raise ModelError(
            f"model {path}",
            expected="weights in *.safetensors",
            found=f"only pickled weights ({', '.join(pickled)}), which can run code" if pickled else _listing(path),
            remedy="Convert them where you trust them: model.save_pretrained(directory, safe_serialization=True).",
        )
    if not any((path / name).exists() for name in _TOKENIZER_FILES):
        raise ModelError(
            f"model {path}",
            expected=f"a tokenizer ({' or '.join(_TOKENIZER_FILES[:3])})",
            found=_listing(path),
            remedy="Save it beside the weights: tokenizer.save_pretrained(directory).",
        )


def _listing(path: Path) -> str:
    names = sorted(entry.name for entry in path.iterdir())
    return ("only " + ", ".join(names[:6]) + (" …" if len(names) > 6 else "")) if names else "an empty directory"


def tokenizer_fingerprint(path: Path) -> str:
    """Digest of how text becomes token ids; saving a tokenizer again keeps it, whatever else its files gain."""
    pipeline = json.loads(load_tokenizer(path).backend_tokenizer.to_str())
    return digest_of({key: part for key, part in pipeline.items() if key not in {"padding", "truncation"}})[:16]


def model_fingerprint(path: Path) -> str:
    """Digest of configuration and weights: one changed weight changes it."""
    files = [path / "config.json", *sorted(file for file in path.glob("*.safetensors") if file.name != MOMENTS)]
    return digest_of({file.name: digest_of_file(file) for file in files})[:16]


def stored_precision(path: Path) -> str:
    """The dtype that most weights have on disk, as torch names it."""
    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    counts: Counter[str] = Counter()
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            counts.update(weights.get_slice(name).get_dtype() for name in list(weights.keys()))
    return names.get(found := counts.most_common(1)[0][0], found)


def context_length(path: Path) -> int:
    """Longest sequence that the model takes, in tokens."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    for name in ("max_position_embeddings", "n_positions", "n_ctx"):
        if getattr(config, name, None):
            return int(getattr(config, name))
    raise ModelError(
        f"model {path}",
        expected="a context length (max_position_embeddings) in config.json",
        found="none",
        remedy="Add it to config.json.",
    )


@lru_cache(maxsize=4)
def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `path`; a fast one, because character offsets are needed."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"tokenizer in {path}",
            expected="files that AutoTokenizer reads",
            found=str(error).splitlines()[0],
            remedy="Save it again with tokenizer.save_pretrained.",
        ) from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"tokenizer in {path}",
            expected="a fast tokenizer (tokenizer.json), which knows character offsets",
            found=type(tokenizer).__name__,
            remedy="Convert it: AutoTokenizer.from_pretrained(directory, use_fast=True).save_pretrained(directory)",
        )
    return tokenizer


def empty_model(path: Path) -> PreTrainedModel:
    """The model's modules without their weights, on the meta device: takes no memory, and shapes are right."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def load_model(path: Path, attention: str = "sdpa") -> PreTrainedModel:
    """The causal language model in `path`, in float32, on the settings' device, ready for attribution.

    Loaded once per process while the weights stay the same. Weights with NaN or infinity are refused.
    """
    return _load_model(path, model_fingerprint(path), str(device()), attention)


@lru_cache(maxsize=1)
def _load_model(path: Path, fingerprint: str, where: str, attention: str) -> PreTrainedModel:
    model = read_model(path, attention)
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            bad = int((~torch.isfinite(parameter)).sum())
            raise ModelError(
                f"model {path}, parameter {name}",
                expected="finite weights",
                found=f"{bad} of {parameter.numel()} NaN or infinite",
                remedy="Use an earlier checkpoint: this one diverged or was damaged.",
            )
    model.requires_grad_(False)
    return model.eval().to(where)


def read_model(path: Path, attention: str = "sdpa") -> PreTrainedModel:
    """The causal language model in `path`, in float32, as it was saved: a new one each time, to be changed at will."""
    try:
        return AutoModelForCausalLM.from_pretrained(
            path,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation=attention,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"model {path}",
            expected="a causal language model that transformers loads",
            found=str(error).splitlines()[0],
            remedy="Check that config.json and the weights belong together.",
        ) from error


def device() -> torch.device:
    """The device that the settings name; `auto` is CUDA where there is one."""
    wanted = settings().device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            "device cuda (HEADWATER_DEVICE)",
            expected="a CUDA device",
            found="none",
            remedy="Set HEADWATER_DEVICE=cpu or unset it.",
        )
    return torch.device(wanted)
