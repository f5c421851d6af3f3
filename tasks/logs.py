"""Logs of our packages on their way to the Prefect UI, from this process and from Dask workers.

Prefect's `extra_loggers` are given its handler but no level, so that everything below a warning is lost, and a Dask
worker knows no flow run that its records could belong to.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from logging.handlers import QueueHandler
from queue import SimpleQueue

from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging.handlers import APILogHandler

PACKAGES = ("flows", "tasks", "storage")


def send_logs_to_prefect() -> None:
    """Let what our packages log inside a run, from INFO on, reach the run's page."""
    for logger in _loggers():
        if not any(isinstance(handler, APILogHandler) for handler in logger.handlers):
            handler = APILogHandler()
            handler.addFilter(_is_of_a_run)  # Prefect would warn of every other record
            logger.addHandler(handler)


@contextmanager
def keeping_logs() -> Iterator[list[logging.LogRecord]]:
    """Keep what our packages log in the block, ready to be sent to another process."""
    records: list[logging.LogRecord] = []
    keeper = _Keeper(records)
    loggers = _loggers()
    for logger in loggers:
        logger.addHandler(keeper)
    try:
        yield records
    finally:
        for logger in loggers:
            logger.removeHandler(keeper)


def replay(records: Iterable[logging.LogRecord]) -> None:
    """Log again here what was kept elsewhere."""
    for record in records:
        logging.getLogger(record.name).handle(record)


class _Keeper(QueueHandler):
    """Keeps records with their arguments formatted in, as those need not go through pickle."""

    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__(SimpleQueue())
        self._records = records

    def enqueue(self, record: logging.LogRecord) -> None:
        """Called with each record, prepared; the queue stays empty."""
        self._records.append(record)


def _loggers() -> list[logging.Logger]:
    loggers = [logging.getLogger(name) for name in PACKAGES]
    for logger in loggers:
        if logger.level == logging.NOTSET:  # who has set a level wants it
            logger.setLevel(logging.INFO)
    return loggers


def _is_of_a_run(record: logging.LogRecord) -> bool:
    return bool(FlowRunContext.get() or TaskRunContext.get() or getattr(record, "flow_run_id", None))
