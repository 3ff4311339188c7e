"""The publisher: one thread with its own event loop that drains the outbox into the sink.

The outbox owns retries: a row leaves it only after both topics acknowledged it, and each topic has its own flag.
"""

from __future__ import annotations

import asyncio
import threading

import structlog

from storescp.engine import RecordQueue
from storescp.errors import CoreError
from storescp.publish.sink import Sink, SinkError

log = structlog.get_logger("storescp.publish")
BATCH = 1000
_WAIT_SECONDS = 0.2
# A batch that was not full is followed by a pause, so that a stream of instances costs a few commits a second and not
# three for each instance.
_GATHER_SECONDS = 0.1
_LAST_ROWS_SECONDS = 0.01
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 10.0


class Publisher:
    """Owns its thread: `start` and `stop`."""

    def __init__(self, queue: RecordQueue, sink: Sink, topics: tuple[str, str]) -> None:
        self._queue = queue
        self._sink = sink
        self._topics = topics
        self._stopping = threading.Event()
        self._deadline_passed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="storescp-publisher")

    def start(self) -> None:
        """Begins to publish."""
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """Publishes what is left, for `timeout` seconds at most; whether the outbox is empty."""
        self._stopping.set()
        self._thread.join(timeout)
        self._deadline_passed.set()
        self._thread.join()
        return self._queue.outbox_backlog()[0] == 0

    def _run(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        started = False
        while not self._is_over():
            try:
                if not started:
                    await self._sink.start()
                    started = True
                published = await self._publish_batch()
                if self._stopping.is_set():
                    # A row that was acknowledged a moment ago becomes claimable with the next commit.
                    await asyncio.sleep(0 if published else _LAST_ROWS_SECONDS)
                elif published < BATCH:
                    await asyncio.sleep(_GATHER_SECONDS)
                    await asyncio.to_thread(self._queue.outbox_wait, _WAIT_SECONDS)
                pause = _FIRST_PAUSE_SECONDS
            except (SinkError, CoreError) as error:
                log.warning("publish.failed", reason=str(error), retry_seconds=pause)
                await asyncio.to_thread(self._deadline_passed.wait, pause)
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
        if started:
            await self._sink.stop()

    def _is_over(self) -> bool:
        if self._deadline_passed.is_set():
            return True
        return self._stopping.is_set() and self._queue.outbox_backlog()[0] == 0

    async def _publish_batch(self) -> int:
        rows = await asyncio.to_thread(self._queue.outbox_claim, BATCH)
        for number, topic in enumerate(self._topics):
            waiting = [row for row in rows if row.pending & (1 << number)]
            if not waiting:
                continue
            ids = [row.id for row in waiting]
            try:
                await self._sink.publish(topic, waiting)
            except SinkError as error:
                await asyncio.to_thread(self._queue.outbox_fail, ids, str(error))
                raise
            await asyncio.to_thread(self._queue.outbox_done, number, ids)
        return len(rows)
