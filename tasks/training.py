"""Training stage: a model taught a store's sequences, from scratch or from what it knows, with checkpoints on the way.

The demo, fact tracing and whatever trains a model on a subset share it. A training that was killed goes on from its
last checkpoint; one that is complete is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from storage.checkpoints import load_tokenizer, model_fingerprint, read_model, tokenizer_fingerprint
from storage.digests import digest_of
from storage.inputs import CorpusFile, Document, find_inputs, read_documents
from storage.locks import locked
from storage.sequences import all_sequence_ids, corpus_fingerprint, corpus_parts, read_tokens
from storage.store import Store
from storage.trainings import (
    begin,
    checkpoint_notes,
    find_untrained,
    keep_checkpoint,
    keep_start,
    keep_trained,
    keep_untrained,
    read_account,
    resumable_checkpoint,
)
from tasks.learning.loop import Leg, Progress, TrainingParameters, checkpoint_steps, train
from tasks.learning.model import ModelShape, new_model
from tasks.learning.tokenizer import train_tokenizer
from tasks.progress import progress
from tasks.stage import stage

PARTS = 1000  # of a training in its progress bar
Examine = Callable[[PreTrainedModel, PreTrainedTokenizerBase], float]
log = logging.getLogger(__name__)


class TrainingReport(BaseModel):
    """How a training went; `reached` says whether the probe met its target before the epochs ran out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    legs: tuple[Leg, ...] = Field(description="the start, then one for each checkpoint")
    n_sequences: int
    reached: bool

    @property
    def seconds(self) -> float:
        """Wall clock of all steps, without probes and checkpoints."""
        return sum(leg.seconds for leg in self.legs)


@stage("new model")
def make_untrained(
    directory: Path, inputs: tuple[str, ...], shape: ModelShape, seed: int, tokenizer_of: Path | None = None
) -> Path:
    """A model that knows nothing, with a tokenizer trained on the texts of the inputs; returns its directory.

    Args:
        tokenizer_of: directory of a model whose tokenizer is taken instead; the inputs then decide nothing
    """
    files = find_inputs(inputs) if tokenizer_of is None else []
    made_from: dict = {"texts": [file.digest() for file in files], "shape": shape.model_dump(), "seed": seed}
    if tokenizer_of is not None:
        made_from |= {"tokenizer": tokenizer_fingerprint(tokenizer_of)}
    known = find_untrained(directory, made_from)
    if known is not None:
        return known
    tokenizer = _made_tokenizer(files, shape) if tokenizer_of is None else load_tokenizer(tokenizer_of)
    return keep_untrained(directory, new_model(tokenizer, shape, seed), tokenizer, made_from)


def _made_tokenizer(files: list[CorpusFile], shape: ModelShape) -> PreTrainedTokenizerBase:
    documents = (item for file in files for batch in read_documents(file) for item in batch)
    return train_tokenizer((item.text for item in documents if isinstance(item, Document)), shape.vocabulary)


@stage("training")
def train_model(store: Store, start: Path, parameters: TrainingParameters, directory: Path) -> TrainingReport:
    """The model in `start` taught every sequence of the store, one a row; saved in `directory` with its checkpoints."""
    return teach(store, start, parameters, directory)


def teach(
    store: Store,
    start: Path,
    parameters: TrainingParameters,
    directory: Path,
    examine: Examine | None = None,
    target: float | None = None,
) -> TrainingReport:
    """Train on the store's sequences until the epochs run out or the examination reaches its target.

    A complete training of the same model, sequences and parameters is kept as it is; any other in its place is
    refused.
    """
    parts = corpus_parts(store)
    plan = {
        "corpus": corpus_fingerprint(parts),
        "start": model_fingerprint(start),
        "parameters": parameters.model_dump(),
        "target": target,
    }
    with locked(store, f"training-{digest_of(plan)[:16]}"):
        scratch = begin(directory, plan)
        account = read_account(directory)
        if account is not None:
            return TrainingReport.model_validate(account)
        tokenizer, model = load_tokenizer(start), read_model(start)
        keep_start(
            directory,
            model,
            tokenizer,
            Leg(step=0, epoch=0, learning_rate=0, loss=None, probe=None, seconds=0).model_dump(),
        )
        ids = all_sequence_ids(parts)
        tokens = read_tokens(store, ids)
        resume = resumable_checkpoint(directory)
        if resume is not None:
            log.info("training in %s goes on from %s", directory, resume.name)
        if _is_over(directory, parameters, len(ids), target):  # killed while the trained model was saved
            model = read_model(resume or start)
        else:
            with progress("training", PARTS) as advance:
                train(
                    model,
                    tokenizer,
                    [tokens[i] for i in ids.tolist()],
                    parameters,
                    scratch,
                    keep=lambda path, leg, moments: keep_checkpoint(directory, path, leg.model_dump(), moments),
                    resume=resume,
                    probe=(lambda network: examine(network, tokenizer)) if examine else None,
                    target=target,
                    progress=_in_parts(advance),
                )
        legs = _legs(directory)
        report = TrainingReport(legs=legs, n_sequences=len(ids), reached=_reached(legs, target))
        keep_trained(directory, model, tokenizer, report.model_dump())
    return report


def _legs(directory: Path) -> tuple[Leg, ...]:
    return tuple(Leg.model_validate(note) for note in checkpoint_notes(directory))


def _reached(legs: tuple[Leg, ...], target: float | None) -> bool:
    probe = legs[-1].probe
    return target is not None and probe is not None and probe >= target


def _is_over(directory: Path, parameters: TrainingParameters, n_sequences: int, target: float | None) -> bool:
    legs = _legs(directory)
    last = checkpoint_steps(parameters, -(-n_sequences // parameters.batch_size))[-1]
    return legs[-1].step == last or _reached(legs, target)


def _in_parts(advance: Callable[[int], None]) -> Progress:
    """Report steps as parts of PARTS: how many steps there will be is known to the loop alone."""
    done = 0

    def report(step: int, steps: int) -> None:
        nonlocal done
        now = PARTS * step // max(steps, 1)
        advance(now - done)
        done = now

    return report
