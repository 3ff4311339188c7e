"""What a worker has done, told now and then."""

from __future__ import annotations

import time
from typing import Any

import structlog

from storescp.index.database import Applied

log = structlog.get_logger("storescp.index")
_PROGRESS_SECONDS = 60.0


class Totals:
    """Sums of what batches did."""

    def __init__(self) -> None:
        self.applied = Applied()
        self._told = time.monotonic()

    def add(self, applied: Applied) -> None:
        """Counts what a batch did, and tells of what could not be read."""
        self.applied.records += applied.records
        self.applied.duplicates += applied.duplicates
        self.applied.unreadable += applied.unreadable
        if applied.unreadable:
            log.error("index.unreadable_messages", count=applied.unreadable, table="unreadable_message")

    def tell_now_and_then(self) -> None:
        """A line in the log, once a minute."""
        if time.monotonic() - self._told >= _PROGRESS_SECONDS:
            self._told = time.monotonic()
            log.info("index.progress", **self.summary())

    def summary(self) -> dict[str, Any]:
        """The sums."""
        applied = self.applied
        return {"records": applied.records, "duplicates": applied.duplicates, "unreadable": applied.unreadable}
