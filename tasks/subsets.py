"""Subsets of a corpus that models are retrained on: which ones a study plans, and what names it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from storage.checkpoints import context_length, load_tokenizer, model_fingerprint
from storage.digests import digest_of
from storage.errors import InputError
from storage.prompts import Prompt
from storage.sequences import all_sequence_ids, corpus_fingerprint, corpus_parts
from storage.store import Store
from tasks.evaluation.datamodels import ENOUGH, draw_left_out
from tasks.influence.batches import TokenSequence
from tasks.influence.queries import encode_query
from tasks.learning.loop import TrainingParameters

FEWEST = 5  # queries whose loss rises an interval is made of
WHOLE = "full"  # the retraining that lacks nothing
OWN_SEEDS = 1000  # between the seeds of trainings on everything and those of subsets with an order of their own


class SubsetParameters(BaseModel):
    """Which sequences models are retrained without, and how often."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    subsets: int = Field(40, ge=1, le=100_000, description="random subsets, one retraining each")
    kept: float | None = Field(0.5, gt=0, lt=1, description="share of the sequences that a subset keeps")
    size: int | None = Field(None, ge=1, description="sequences that a subset keeps, instead")
    order: Literal["same", "own"] = Field(
        "same", description="of sequences: that of the traced model's training, less what is left out; or its own"
    )
    seeds: int = Field(5, ge=0, le=1000, description="retrainings on everything in other orders: the noise")
    queries: int = Field(10, ge=0, le=10_000, description="asked again without the first sequences of each method")
    top: float = Field(0.01, gt=0, lt=1, description="share of the sequences that are a method's first")
    seed: int = Field(0, ge=0, lt=2**32, description="of the subsets")

    @model_validator(mode="after")
    def _measurable(self) -> SubsetParameters:
        if (self.kept is None) == (self.size is None):
            raise ValueError("subsets: expected either kept or size, found both or neither. Set one to null.")
        if self.subsets < ENOUGH:
            raise ValueError(
                f"subsets: expected at least {ENOUGH} retrainings, of which an interval can be made, found "
                f"{self.subsets}. Ask for {ENOUGH} or more."
            )
        if 0 < self.queries < FEWEST:
            raise ValueError(
                f"queries: expected none, or at least {FEWEST} that are asked again, of which an interval can be made, "
                f"found {self.queries}. Ask for {FEWEST} or more."
            )
        return self


@dataclass(frozen=True)
class Retraining:
    """One model to be trained: its name in the study, and which sequences it is not taught."""

    name: str
    kind: Literal["full", "subset", "top", "dataset"]
    seed: int  # of the order of sequences
    left_out: tuple[int, ...] = ()


@dataclass(frozen=True)
class Study:
    """What all retrainings of a study share; its id is of everything that decides their losses."""

    store: Store
    study_id: str
    start: Path
    training: TrainingParameters
    prompts: tuple[Prompt, ...]


def describe_study(
    store: Store, start: Path, training: TrainingParameters, prompts: Sequence[Prompt], subsets: SubsetParameters
) -> Study:
    """Name a study; queries that the model cannot be asked are refused before anything is trained."""
    asked = [[p.query_id, p.prompt, p.completion] for p in prompts]
    encode(start, prompts)
    parts = corpus_parts(store)
    drawn = [n_left_out(len(all_sequence_ids(parts)), subsets), subsets.order, subsets.seed]
    taught = training.model_dump(exclude={"checkpoints"})  # where it was saved on the way changes no loss
    made_from = [model_fingerprint(start), corpus_fingerprint(parts), taught, asked, drawn]
    return Study(store, f"study-{digest_of(made_from)[:12]}", start, training, tuple(prompts))


def n_left_out(n: int, subsets: SubsetParameters) -> int:
    """How many of a corpus's n sequences each subset lacks; at least one, never all. Refuses what cannot be drawn."""
    if n < 2:
        raise InputError(
            "subsets of the corpus",
            expected="at least two training sequences, of which a subset can lack one",
            found=f"{n}",
            remedy="Add documents with --corpus, or cut them shorter with --sequence-length.",
        )
    if subsets.size is not None and subsets.size >= n:
        raise InputError(
            f"subsets of {subsets.size:,} sequences",
            expected=f"fewer than the corpus has: at most {n - 1:,}",
            found=f"{n:,} sequences in the corpus",
            remedy="Lower --size, or give a share with --kept.",
        )
    stays = subsets.size if subsets.size is not None else round(n * (subsets.kept or 0.0))
    lacked = min(max(n - stays, 1), n - 1)
    if math.comb(n, lacked) < subsets.subsets:
        raise InputError(
            f"{subsets.subsets:,} random subsets of {n - lacked:,} sequences",
            expected="different ones",
            found=f"{math.comb(n, lacked):,} different ones in a corpus of {n:,}",
            remedy="Lower --subsets, or take a larger corpus.",
        )
    return lacked


def plan_subsets(study: Study, subsets: SubsetParameters) -> list[Retraining]:
    """The model on everything, the same in other orders, and one model for each random subset."""
    ids = all_sequence_ids(corpus_parts(study.store))
    lacked, base = n_left_out(len(ids), subsets), study.training.seed
    planned = [Retraining(WHOLE, "full", base + k) for k in range(subsets.seeds + 1)]
    for k in range(subsets.subsets):
        seed = base if subsets.order == "same" else base + OWN_SEEDS + k
        left_out = draw_left_out(ids, lacked, subsets.seed, k)
        planned.append(Retraining(f"subset {k}", "subset", seed, tuple(left_out.tolist())))
    require_batches(len(ids), max(len(r.left_out) for r in planned), study.training.batch_size)
    return planned


def require_batches(n: int, lacked: int, batch_size: int) -> None:
    """Refuse a retraining on so few of n sequences that a step of an epoch on all of them would have none."""
    n_batches = -(-n // batch_size)
    if n - lacked < n_batches:
        raise InputError(
            f"retraining on {n - lacked:,} of {n:,} sequences",
            expected=f"a sequence for each of the {n_batches:,} steps of an epoch on all of them",
            found=f"steps of {batch_size} sequences",
            remedy=f"Raise --batch-size to {-(-n // (n - lacked))} or more, or keep more sequences.",
        )


def encode(model: Path, prompts: Sequence[Prompt]) -> list[TokenSequence]:
    """The queries as the model sees them, numbered; one that it cannot be asked is an error."""
    tokenizer, context = load_tokenizer(model), context_length(model)
    found = [encode_query(tokenizer, p.prompt, p.completion, context, p.query_id) for p in prompts]
    return [TokenSequence(k, query.token_ids, query.first_scored) for k, query in enumerate(found)]
