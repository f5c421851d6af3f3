"""The datasets that a corpus is a mixture of, the groups of queries that are asked, and what names their study."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from storage.checkpoints import model_fingerprint
from storage.database import rows, session
from storage.digests import code_revision, digest_of
from storage.errors import InputError
from storage.prompts import Prompt
from storage.sequences import Part, all_sequence_ids, corpus_fingerprint, corpus_parts
from storage.store import Store
from storage.text import printable
from tasks.learning.ascent import FORMULA, AscentParameters
from tasks.learning.loop import TrainingParameters
from tasks.subsets import Retraining, Study, encode, require_batches

FEWEST = 3  # datasets of which a correlation can be made
FILE = "file"  # what a dataset is where nothing else is said


class MixtureParameters(BaseModel):
    """What tells datasets and groups of queries apart."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str = Field(
        FILE, pattern=r"^[\w .-]+$",
        description="a document's dataset: its corpus `file`, its `source`, or a field of its metadata",
    )  # fmt: skip
    group: str = Field(
        "group", pattern=r"^[\w .-]+$", description="field of a query's metadata that names its group; none: one group"
    )


class UnlearningParameters(BaseModel):
    """How datasets and queries are unlearned; the defaults are those of Isonuma & Titov 2024 (arXiv 2401.15241)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    datasets: AscentParameters = Field(default_factory=AscentParameters)
    queries: AscentParameters = Field(default_factory=lambda: AscentParameters(epochs=50, batch_size=256))
    unlearned: int | None = Field(
        None, ge=1, description="sequences of each dataset that UnTrac unlearns, at most: equal steps; none: all"
    )
    measured: int = Field(
        256, ge=1, le=10_000_000, description="sequences of each dataset that UnTrac-Inverse measures, at most"
    )


@dataclass(frozen=True)
class Mixture:
    """The datasets of a corpus with their sequences, and the groups of queries with their ids."""

    by: str
    datasets: dict[str, tuple[int, ...]]
    groups: dict[str, tuple[str, ...]]

    def extent(self) -> list[list]:
        """What tells this mixture from others of the same corpus, in few words: sequence ids there are many."""
        return [[self.by, name, len(ids), ids[0], ids[-1]] for name, ids in self.datasets.items()]


@dataclass(frozen=True)
class Unlearning:
    """A trained model that unlearns each dataset, or each group of queries; its id is of what decides the losses."""

    store: Store
    study_id: str
    of: Literal["datasets", "queries"]
    model: Path
    mixture: Mixture
    prompts: tuple[Prompt, ...]
    ascent: AscentParameters
    most: int | None  # sequences of each dataset that are unlearned, or measured where queries are; none: all


def find_mixture(store: Store, parameters: MixtureParameters, prompts: Sequence[Prompt]) -> Mixture:
    """The datasets of the store's corpus and the groups of the queries; what cannot be compared is refused."""
    datasets = _files(corpus_parts(store)) if parameters.dataset == FILE else _named(store, parameters.dataset)
    if len(datasets) < FEWEST:
        raise InputError(
            f"corpus of store {store.root}",
            expected=f"at least {FEWEST} datasets, of which a correlation can be made",
            found=f"{len(datasets)} by {parameters.dataset}: {', '.join(map(printable, datasets))}",
            remedy="Give each dataset a file of its own, or name the field that tells them apart with --datasets-by.",
        )
    empty = next((name for name, ids in datasets.items() if not ids), None)
    if empty is not None:
        raise InputError(
            f"dataset {printable(empty)!r}",
            expected="training sequences",
            found="none: its documents are empty, or stand in sequences that begin in others",
            remedy="Leave it out, or cut the corpus by document (--packing document).",
        )
    return Mixture(parameters.dataset, datasets, _groups(prompts, parameters.group))


def leave_datasets_out(
    store: Store,
    start: Path,
    training: TrainingParameters,
    prompts: Sequence[Prompt],
    mixture: Mixture,
    seeds: Sequence[int],
) -> tuple[Study, list[Retraining]]:
    """The study, and one retraining for each seed and each dataset that a model is not taught."""
    encode(start, prompts)
    parts = corpus_parts(store)
    asked = [[p.query_id, p.prompt, p.completion] for p in prompts]
    taught = training.model_dump(exclude={"checkpoints", "seed"})
    made_from = [model_fingerprint(start), corpus_fingerprint(parts), taught, asked, mixture.extent()]
    study = Study(store, f"study-{digest_of(made_from)[:12]}", start, training, tuple(prompts))
    n, largest = len(all_sequence_ids(parts)), max(map(len, mixture.datasets.values()))
    require_batches(n, largest, training.batch_size)
    planned = [
        Retraining(retraining_of(name), "dataset", seed, ids)
        for seed in seeds
        for name, ids in mixture.datasets.items()
    ]
    return study, planned


def retraining_of(dataset: str) -> str:
    """What the retraining without a dataset is called."""
    return f"without {dataset}"


def describe_unlearning(
    store: Store, model: Path, mixture: Mixture, prompts: Sequence[Prompt], parameters: UnlearningParameters
) -> tuple[Unlearning, Unlearning]:
    """Name UnTrac and UnTrac-Inverse of a trained model: each is done again only where its own parameters change."""
    asked = [[p.query_id, p.prompt, p.completion] for p in prompts]
    fingerprints = [model_fingerprint(model), corpus_fingerprint(corpus_parts(store))]
    shared = [fingerprints, asked, mixture.extent(), FORMULA, code_revision()]
    untrac = digest_of([*shared, parameters.datasets.model_dump(), parameters.unlearned])[:12]
    inverse = digest_of([*shared, mixture.groups, parameters.queries.model_dump(), parameters.measured])[:12]
    common = (model, mixture, tuple(prompts))
    return (
        Unlearning(store, f"untrac-{untrac}", "datasets", *common, parameters.datasets, parameters.unlearned),
        Unlearning(store, f"inverse-{inverse}", "queries", *common, parameters.queries, parameters.measured),
    )


def _files(parts: Sequence[Part]) -> dict[str, tuple[int, ...]]:
    """The sequences of each corpus file, by its name without folder and ending where that tells the files apart."""
    count = Counter(Path(part.source).stem for part in parts)
    return {
        Path(part.source).stem if count[Path(part.source).stem] == 1 else part.source: tuple(
            range(part.first_sequence_id, part.end_sequence_id)
        )
        for part in parts
    }


def _named(store: Store, field: str) -> dict[str, tuple[int, ...]]:
    """The sequences of each dataset that documents name; those that name none are an error."""
    with session(store) as connection:
        found = rows(connection, "validation/datasets", by=field)
    nameless = next((row for row in found if row["dataset"] is None), None)
    if nameless is not None:
        raise InputError(
            f"corpus of store {store.root}",
            expected=f"documents whose metadata name their dataset in {field!r}",
            found=f"{nameless['n_documents']:,} without it, among them {printable(nameless['first_document'])!r}",
            remedy="Add the field to every document, or name another one with --datasets-by.",
        )
    return {row["dataset"]: tuple(row["sequence_ids"] or ()) for row in found}


def _groups(prompts: Sequence[Prompt], field: str) -> dict[str, tuple[str, ...]]:
    """Query ids by group, in the order of the queries; all in one where none names a group."""
    groups: dict[str, list[str]] = {}
    for prompt in prompts:
        named = json.loads(prompt.metadata).get(field)
        groups.setdefault("" if named is None else str(named), []).append(prompt.query_id)
    if "" in groups and len(groups) > 1:
        raise InputError(
            f"query {printable(groups[''][0])}",
            expected=f"a field {field!r} that names its group, as other queries have",
            found="none",
            remedy="Give it to every query or to none, or name another field with --groups-by.",
        )
    return {name or "all queries": tuple(ids) for name, ids in groups.items()}
