"""Records that were set aside and are tried again: one line of the log when it is known what became of them."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

log = structlog.get_logger("storescp.publish")


class Retries:
    """Used within one event loop. `number` is that of the last retry, to be kept before rows are claimed."""

    def __init__(self, topics: Sequence[str]) -> None:
        self.number = 0
        self._topics = topics
        self._waiting: set[str] = set()
        self._rows = 0
        self._rejected = 0

    def begin(self, rows: int, rejected: int) -> None:
        """Rows are pending again; `rejected` is how many were ever rejected."""
        self.number += 1
        if not self._waiting:
            self._rows, self._rejected = 0, rejected
        self._rows += rows
        self._waiting = set(self._topics)

    def passed(self, topic: str, number: int, rejected: int) -> None:
        """A topic has gone through all rows since the retry of this number, and none of them waits."""
        if number != self.number or topic not in self._waiting:
            return
        self._waiting.remove(topic)
        if self._waiting:
            return
        again = rejected - self._rejected
        if again:
            text = "records that were set aside were tried again, and the broker refused records again"
            log.warning("outbox.retry_over", rows=self._rows, rejected=again, text=text)
        else:
            text = "records that were set aside were tried again, and all topics have them"
            log.info("outbox.retry_over", rows=self._rows, text=text)
