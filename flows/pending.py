"""Pending: the queries of the inbox that have no result yet, traced in batches."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from prefect import flow

from flows.outcome import EXPLAINED
from flows.parameters import PendingParameters
from flows.trace import trace
from storage.batches import begin_batch, discount_attempt, end_batch, unfinished_batches
from storage.checkpoints import find_checkpoint
from storage.errors import HeadwaterError
from storage.inbox import record_failures, waiting_prompts
from storage.prompts import Prompt
from storage.sequences import current_parts
from storage.store import Store, open_store
from tasks.fanout import WorkerLost
from tasks.screening import screen

# Two failed runs and then a note: the shipped automation pauses a deployment for everybody after three.
ATTEMPTS = 3  # traces of a query, or of the same batch, that may come to nothing
log = logging.getLogger("flows.pending")  # not __name__: a worker loads this file by its path


@dataclass
class Outcome:
    """What became of the batches: ids of runs, and by query that stands alone its error and which attempt it was."""

    runs: list[str] = field(default_factory=list)
    errors: dict[str, Exception] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)

    def failed(self) -> dict[str, Exception]:
        """The errors that are their queries' own: others were answered meanwhile, or it came back every time."""
        return {k: error for k, error in self.errors.items() if self.runs or self.attempts[k] >= ATTEMPTS}


@flow(name="trace-pending", flow_run_name="answer {parameters.store}", validate_parameters=True, **EXPLAINED)
def trace_pending(parameters: PendingParameters) -> list[str]:
    """Trace every query that waits; returns the ids of the runs. What was broken off goes on first.

    A query that cannot be traced is noted in `query_failures` and does not keep the others from their answers.
    An error that all queries share is the flow's own: it fails, and the queries go on waiting, until it has come back
    so often that a person must look at it.
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
    good = {prompt.query_id: prompt for prompt in prompts if prompt.query_id not in refused}
    outcome = Outcome()
    for batch in _batches(store, good, parameters.batch):
        _trace(store, parameters, batch, outcome)
    failed = outcome.failed()
    record_failures(store, {query_id: str(error) or repr(error) for query_id, error in failed.items()})
    for query_id in failed:
        end_batch(store, [query_id])
    left = [error for query_id, error in outcome.errors.items() if query_id not in failed]
    if left:
        raise left[0]
    log.info("%d queries answered, %d failed", len(good) - len(failed), len(failed) + len(refused))
    return outcome.runs


def _batches(store: Store, good: dict[str, Prompt], size: int) -> list[list[Prompt]]:
    """The batches that were broken off, as they were, because only the same batch is the same run; then the others."""
    rest, batches = dict(good), []
    for batch in unfinished_batches(store):
        if rest.keys() >= set(batch.query_ids):
            batches.append([rest.pop(query_id) for query_id in batch.query_ids])
        else:  # some of it was answered or failed since
            end_batch(store, batch.query_ids)
    others = list(rest.values())
    return batches + [others[start : start + size] for start in range(0, len(others), size)]


def _trace(store: Store, parameters: PendingParameters, prompts: list[Prompt], outcome: Outcome) -> None:
    """Trace queries together, or, where that fails, in halves until those stand alone that cannot be traced."""
    ids = [prompt.query_id for prompt in prompts]
    attempt = begin_batch(store, ids)
    try:
        if attempt > ATTEMPTS:
            raise WorkerLost(
                f"trace of {len(ids)} queries",
                expected="that it comes to an end",
                found=f"{ATTEMPTS} that were killed",
                remedy="Most often memory ran out: use a smaller batch size, then headwater retry.",
            )
        outcome.runs.append(trace(parameters.trace_of(prompts)))
        end_batch(store, ids)
        return
    except Exception as error:
        # Disk, store, model, parameters: no query's fault. A lost worker may be: its gradients may not fit in memory.
        if isinstance(error, HeadwaterError) and not isinstance(error, WorkerLost):
            discount_attempt(store, ids)
            raise
        if len(prompts) == 1:
            log.warning("query %r could not be traced: %s", ids[0], error)
            outcome.errors[ids[0]], outcome.attempts[ids[0]] = error, attempt
            return
        log.warning("%d queries could not be traced together, so they are in halves: %s", len(prompts), error)
    except BaseException:  # somebody stopped it
        discount_attempt(store, ids)
        raise
    end_batch(store, ids)
    middle = len(prompts) // 2
    for half in (prompts[:middle], prompts[middle:]):
        _trace(store, parameters, half, outcome)
