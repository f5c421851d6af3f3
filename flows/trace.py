"""Trace: from a corpus, a model and queries to the sequences that taught each completion. Read this first."""

from __future__ import annotations

from prefect import flow

from flows.cluster import open_workers
from flows.outcome import EXPLAINED
from flows.parameters import TraceParameters
from flows.slots import gpu_slot
from storage.checkpoints import find_checkpoint
from storage.locks import locked
from storage.merging import reopen_run
from storage.prompts import register_prompts
from storage.sequences import pin_corpus
from storage.staging import discard
from storage.store import create_store
from tasks.audit import audit_filter
from tasks.candidates import find_candidates
from tasks.compute import device_of, settle
from tasks.corpus import count_parts, ingest
from tasks.embeddings import embed_corpus
from tasks.factors import fit_factors
from tasks.gradients import prepare_queries
from tasks.index import build_index
from tasks.methods import TEXT, TRAJECTORY
from tasks.report import summarise
from tasks.results import complete_run, publish
from tasks.run import describe_run
from tasks.scores import score_candidates, score_tokens
from tasks.stage import recording
from tasks.texts import score_texts
from tasks.trajectory import score_checkpoints


@flow(name="trace", flow_run_name="trace into {parameters.store}", validate_parameters=True, **EXPLAINED)
def trace(parameters: TraceParameters) -> str:
    """Corpus, candidates, factors, query gradients, scores, results, report; returns the run's id.

    Every stage finds what is already there; the same experiment gives the same run.
    """
    model = find_checkpoint(parameters.model.name, parameters.model.revision)
    store = create_store(parameters.store)
    prompts = [query.as_prompt() for query in parameters.queries]
    with (
        gpu_slot(),
        open_workers(parameters.cluster, count_parts(store, parameters.corpus)) as workers,
        recording() as stages,
    ):
        compute = settle(parameters.compute, workers.processors)
        ingest(store, model, parameters.corpus, workers)
        store = pin_corpus(store)  # what other processes add from here on is no part of this run
        if parameters.candidates.lexical:
            build_index(store, workers, parameters.candidates.terms)
        register_prompts(store, prompts)
        run = describe_run(store, model, prompts, parameters.candidates, parameters.fit, parameters.method, compute)
        with locked(store, run.run_id):
            if not run.is_complete:
                stages.resume(store, run.run_id)
                reopen_run(store, run.run_id)
                run.note_use()
                if "embedding" in parameters.candidates.filters:
                    embed_corpus(store, model, parameters.candidates.embedding_layer, compute, workers)
                find_candidates(store, run.run_id, model, prompts, parameters.candidates, workers, compute)
                fit_id = None
                if parameters.method.curved:
                    fit_id = fit_factors(store, model, parameters.fit, compute, workers)
                scoring = run.scoring(fit_id)
                run.note_use(scoring.factors_id)
                prepare_queries(scoring, workers)
                if parameters.method.among(TRAJECTORY):
                    score_checkpoints(scoring, workers)
                score_candidates(scoring, workers)
                score_tokens(scoring, workers)
                if parameters.method.among(TEXT):
                    score_texts(scoring)
                publish(scoring, run.facts)
                audit_filter(store, run.run_id, scoring.method)
                complete_run(scoring, run.facts, stages.finish(), device_of(workers.processors))
            discard(store, run.run_id)
        summarise(store, run.run_id)
    return run.run_id
