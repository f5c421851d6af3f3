"""Pending: the queries of the inbox that have no result yet, traced in batches."""

from __future__ import annotations

import logging

from prefect import flow

from flows.outcome import EXPLAINED
from flows.parameters import PendingParameters
from flows.trace import trace
from storage.checkpoints import find_checkpoint
from storage.errors import HeadwaterError
from storage.inbox import record_failures, waiting_prompts
from storage.prompts import Prompt
from storage.sequences import current_parts
from storage.store import open_store
from tasks.fanout import WorkerLost
from tasks.screening import screen

log = logging.getLogger("flows.pending")  # not __name__: a worker loads this file by its path


@flow(name="trace-pending", flow_run_name="answer {parameters.store}", validate_parameters=True, **EXPLAINED)
def trace_pending(parameters: PendingParameters) -> list[str]:
    """Trace every query that waits; returns the ids of the runs.

    A query that cannot be traced is noted in `query_failures` and does not keep the others from their answers.
    An error that all queries share is the flow's own: it fails, and the queries go on waiting.
    """
    store = open_store(parameters.store)
    prompts = waiting_prompts(store, parameters.most)
    log.info("%d queries wait", len(prompts))
    if not prompts:
        return []
    if not current_parts(store):
        log.warning("%d queries wait for a corpus: store %s has no sequences yet", len(prompts), parameters.store)
        return []
    refused = screen(find_checkpoint(parameters.model.name, parameters.model.revision), prompts)
    record_failures(store, refused)
    good = [prompt for prompt in prompts if prompt.query_id not in refused]
    runs: list[str] = []
    errors: dict[str, Exception] = {}
    for start in range(0, len(good), parameters.batch):
        _trace(parameters, good[start : start + parameters.batch], runs, errors)
    if errors and not runs:
        raise next(iter(errors.values()))
    record_failures(store, {query_id: str(error) or repr(error) for query_id, error in errors.items()})
    log.info("%d queries answered, %d failed", len(good) - len(errors), len(errors) + len(refused))
    return runs


def _trace(parameters: PendingParameters, prompts: list[Prompt], runs: list[str], errors: dict[str, Exception]) -> None:
    """Trace queries together, or, where that fails, in halves until those stand alone that cannot be traced."""
    try:
        runs.append(trace(parameters.trace_of(prompts)))
        return
    except Exception as error:
        # Disk, store, model, parameters: no query's fault. A lost worker may be: its gradients may not fit in memory.
        if isinstance(error, HeadwaterError) and not isinstance(error, WorkerLost):
            raise
        if len(prompts) == 1:
            log.warning("query %r could not be traced: %s", prompts[0].query_id, error)
            errors[prompts[0].query_id] = error
            return
        log.warning("%d queries could not be traced together, so they are in halves: %s", len(prompts), error)
    middle = len(prompts) // 2
    for half in (prompts[:middle], prompts[middle:]):
        _trace(parameters, half, runs, errors)
