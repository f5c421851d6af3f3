"""What studies of retraining begin with: a store with its corpus, and a model that is taught all of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flows.cluster import open_workers
from flows.parameters import ModelParameters
from flows.training import TrainParameters, train
from storage.checkpoints import find_checkpoint
from storage.digests import digest_of
from storage.sequences import pin_corpus
from storage.store import Store, create_store
from tasks.corpus import CorpusParameters, count_parts, ingest
from tasks.learning.loop import TrainingParameters
from tasks.learning.model import ModelShape
from tasks.training import make_untrained


def trainings_of(store: str, trainings: str | None) -> Path:
    """The directory that trained models go into: the one that is named, or one beside the store."""
    return Path(trainings or f"{store.rstrip('/')}-trainings").expanduser().resolve()


def begin(
    store: str,
    root: Path,
    model: ModelParameters | None,
    shape: ModelShape,
    corpus: CorpusParameters,
    seed: int,
    cluster: str,
) -> tuple[Path, Store]:
    """The model that every training begins with, and the store with the corpus, as it is now.

    Args:
        model: to begin with; none: a new one of the shape, its weights drawn from the seed
    """
    if model is not None:
        start = find_checkpoint(model.name, model.revision)
    else:
        folder = root / f"start-{digest_of([str(part) for part in (shape, corpus.inputs, seed)])[:10]}"
        start = make_untrained(folder, corpus.inputs, shape, seed)
    opened = create_store(store)
    with open_workers(cluster, count_parts(opened, corpus)) as workers:
        ingest(opened, start, corpus, workers)
    return start, pin_corpus(opened)


def teach_whole(
    store: str,
    root: Path,
    start: Path,
    corpus: CorpusParameters,
    training: TrainingParameters,
    named: Sequence[object],
    cluster: str,
) -> Path:
    """The model that knows the whole corpus, with its checkpoints, in a folder named by what `named` says of it."""
    folder = root / f"full-{digest_of([*named, training.checkpoints])[:10]}"
    train(
        TrainParameters(
            store=store,
            directory=str(folder),
            start=ModelParameters(name=str(start)),
            corpus=corpus,
            training=training,
            cluster=cluster,
        )
    )
    return folder
