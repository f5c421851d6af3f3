"""Ingest: documents to sequences to lexical index, without a query."""

from __future__ import annotations

from prefect import flow

from flows.cluster import open_workers
from flows.outcome import EXPLAINED
from flows.parameters import IngestParameters
from storage.catalog import ensure_catalog
from storage.checkpoints import find_checkpoint
from storage.store import create_store
from tasks.corpus import count_parts, ingest
from tasks.index import build_index


@flow(name="ingest", flow_run_name="ingest into {parameters.store}", validate_parameters=True, **EXPLAINED)
def ingest_corpus(parameters: IngestParameters) -> int:
    """Cut new inputs into sequences and index them; returns the number of sequences in the corpus."""
    model = find_checkpoint(parameters.model.name, parameters.model.revision)
    store = create_store(parameters.store)
    with open_workers(parameters.cluster, count_parts(store, parameters.corpus)) as workers:
        parts = ingest(store, model, parameters.corpus, workers)
        build_index(store, workers)
    ensure_catalog(store)
    return sum(part.n_sequences for part in parts)
