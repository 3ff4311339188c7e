"""Where records go. Kafka and JSON lines look the same from the publisher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from storescp.engine import QueuedRecord


class SinkError(Exception):
    """A batch was not published; the outbox keeps it and it is tried again."""


class Sink(Protocol):
    """Takes batches of records for one topic. Returning means the topic has them, durably."""

    async def start(self) -> None:
        """Gets ready; called once, before the first batch."""

    async def publish(self, topic: str, rows: Sequence[QueuedRecord]) -> None:
        """Publishes rows in order.

        Raises:
            SinkError: the batch is not there, or maybe not there.
        """

    async def stop(self) -> None:
        """Lets go; called once, after the last batch."""
