"""Refresh: new and changed files of a watched folder to parts, sequences and shards."""

from __future__ import annotations

import logging
from pathlib import Path

from prefect import flow

from flows.cluster import open_workers
from flows.outcome import EXPLAINED
from flows.parameters import RefreshParameters
from storage.catalog import ensure_catalog
from storage.checkpoints import find_checkpoint
from storage.errors import InputError
from storage.sequences import current_parts
from storage.store import Store, create_store
from storage.watch import Watched, look_into, remember, unknown
from tasks.corpus import CorpusParameters, ingest
from tasks.fanout import Workers
from tasks.index import build_index

log = logging.getLogger("flows.refresh")  # not __name__: a worker loads this file by its path


@flow(name="refresh-corpus", flow_run_name="refresh {parameters.store}", validate_parameters=True, **EXPLAINED)
def refresh_corpus(parameters: RefreshParameters) -> int:
    """Take in what is new in the folder and index it; returns the number of sequences in the corpus.

    A file that is still being written waits for the next time. One that cannot be used does not keep the others out:
    they are taken in first, and then the flow fails and names it.
    """
    model = find_checkpoint(parameters.model.name, parameters.model.revision)
    store = create_store(parameters.store)
    found = look_into(parameters.folder)
    settled = [watched for watched in found if watched.is_settled(parameters.settle)]
    usable = [watched for watched in settled if watched.refusal is None]
    new = unknown(store, usable, {part.content_digest for part in current_parts(store)})
    log.info("%d new files in %s, %d still being written", len(new), parameters.folder, len(found) - len(settled))
    with open_workers(parameters.cluster, len(current_parts(store)) + len(new)) as workers:
        refused = [watched.refusal for watched in settled if watched.refusal is not None]
        refused += _take_in(store, model, parameters, new, workers)
        parts = current_parts(store)
        if parts:
            build_index(store, workers, parameters.terms)
    ensure_catalog(store)
    log.info("the corpus has %d parts, %d sequences", len(parts), sum(part.n_sequences for part in parts))
    if refused:
        raise InputError(
            f"watched folder {parameters.folder}",
            expected="files that can be taken in",
            found=f"{len(refused)} that cannot: {refused[0]}",
            remedy="Mend it or move it out of the folder; the other files are in the corpus.",
        )
    return sum(part.n_sequences for part in parts)


def _take_in(
    store: Store, model: Path, parameters: RefreshParameters, new: list[Watched], workers: Workers
) -> list[InputError]:
    """Ingest files together, or, where one of them is refused, one after the other; what was refused."""
    if not new:
        return []
    corpus = CorpusParameters(**parameters.cut.model_dump(), inputs=tuple(str(watched.path) for watched in new))
    try:
        ingest(store, model, corpus, workers)
    except InputError as error:
        if len(new) == 1:
            return [error]
        return [error for watched in new for error in _take_in(store, model, parameters, [watched], workers)]
    remember(store, new)
    return []
