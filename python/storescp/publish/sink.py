"""Where records go. Kafka and JSON lines look the same from the publisher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from storescp.engine import QueuedRecord


class SinkError(Exception):
    """Nothing can be published now, or it is unknown what was; the outbox keeps it and it is tried again."""


@dataclass
class Outcome:
    """What became of rows: delivered, refused for good, and the others for which `failure` says why not yet."""

    delivered: list[int] = field(default_factory=list)
    rejected: list[tuple[int, str]] = field(default_factory=list)
    failure: str | None = None


class Sink(Protocol):
    """Takes rows of records for one topic; both topics may be published to at the same time."""

    async def publish(self, topic: str, rows: Sequence[QueuedRecord]) -> Outcome:
        """Publishes rows, those of the same key in their order.

        After a row that was not delivered, no later row of its key is.

        Raises:
            SinkError: nothing can be published now.
        """

    def reopen(self) -> None:
        """Opens anew what may have been put elsewhere, such as files that were renamed. Between two batches."""

    def complaint(self) -> str:
        """What stands in the way, as far as it is known while a batch is on its way; or nothing."""

    async def stop(self) -> None:
        """Lets go; called once, after the last batch."""
