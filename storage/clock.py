"""The store's clock: the machine's, but never behind a time that it has given before.

"Latest" is decided by stored times, so a clock that is set back, or another machine's that is behind, must not make
today's run older than yesterday's. The last time given stands in clock.json.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

from storage.locks import locked
from storage.store import Store, read_json, write_json

TICK = timedelta(microseconds=1)
TOLD = timedelta(seconds=2)  # behind by more than clocks of several machines are, and the log says so
log = logging.getLogger(__name__)


def store_time(store: Store, n: int = 1) -> datetime:
    """Now, in UTC without a zone; later than every time that this store has been given.

    It is the first of n times, a TICK apart, that are the caller's own.
    """
    path = store.root / "clock.json"
    with locked(store, "clock"):
        now = datetime.now(UTC).replace(tzinfo=None)
        if path.exists():
            last = datetime.fromisoformat(read_json(path)["last"])
            if now < last - TOLD:
                log.warning("the clock says %s, store %s has been written until %s: times go on from there",
                            now, store.root, last)  # fmt: skip
            now = max(now, last + TICK)
        write_json(path, {"last": (now + (n - 1) * TICK).isoformat()})
    return now
