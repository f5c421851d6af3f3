"""Slots: one flow at a time on a GPU, by a concurrency limit of the Prefect server."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.client.orchestration import get_client
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.concurrency.sync import concurrency
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound

LIMIT = "headwater-gpu"  # deployments/up.py sets it to the number of GPUs
LEASE = 60  # seconds without a sign of life after which the server takes a slot back: the process was killed
log = logging.getLogger(__name__)


@contextmanager
def gpu_slot() -> Iterator[None]:
    """Hold one of the server's slots while the block runs; where nobody set the limit, nothing is held.

    A flow that cannot tell the server that it lives goes on: its work is worth more than the limit.
    """
    limit = _limit() if FlowRunContext.get() else None
    if limit is None or not limit.active:
        yield
        return
    if limit.active_slots >= limit.limit:
        log.info("waiting until another flow leaves the GPU: %s is %d", LIMIT, limit.limit)
    with concurrency(LIMIT, occupy=1, lease_duration=LEASE, strict=True, raise_on_lease_renewal_failure=False):
        yield


def _limit() -> GlobalConcurrencyLimitResponse | None:
    with get_client(sync_client=True) as client:
        try:
            return client.read_global_concurrency_limit_by_name(LIMIT)
        except ObjectNotFound:
            return None
