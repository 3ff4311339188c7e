"""aiokafka's log lines, of which an outage makes 40 a second: each kind once a minute."""

from __future__ import annotations

import logging
import time

import structlog

log = structlog.get_logger("storescp.kafka")
_QUIET_SECONDS = 60.0
_LOGGER = "aiokafka"


class Complaints(logging.Handler):
    """Passes on the first line of a kind, then is quiet about it for a minute; remembers the last line."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._shown: dict[tuple[str, str], float] = {}
        self._last = ""
        self._last_at = float("-inf")

    def install(self) -> None:
        """Takes the place of aiokafka's handlers."""
        logger = logging.getLogger(_LOGGER)
        logger.handlers = [self]
        logger.propagate = False
        logger.setLevel(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        """Shows or counts a line."""
        now = time.monotonic()
        self._last, self._last_at = record.getMessage(), now
        kind = (record.name, str(record.msg))
        if now - self._shown.get(kind, float("-inf")) >= _QUIET_SECONDS:
            self._shown[kind] = now
            log.warning("kafka.client", text=self._last)

    def last(self, within: float) -> str:
        """The last line, if it is not older than `within` seconds; else nothing."""
        return self._last if time.monotonic() - self._last_at <= within else ""


COMPLAINTS = Complaints()
