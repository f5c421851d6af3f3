"""Index: the lexical index of a store, brought up to date."""

from __future__ import annotations

from prefect import flow

from flows.cluster import open_workers
from flows.outcome import EXPLAINED
from storage.catalog import ensure_catalog
from storage.schemas import Terms
from storage.sequences import corpus_parts
from storage.store import open_store
from tasks.index import build_index


@flow(name="index", flow_run_name="index {store}", **EXPLAINED)
def index_corpus(store: str, cluster: str = "auto", terms: Terms = "tokens") -> int:
    """Build the shards that are missing; returns how many."""
    place = open_store(store)
    with open_workers(cluster, len(corpus_parts(place))) as workers:
        built = build_index(place, workers, terms)
    ensure_catalog(place)
    return built
