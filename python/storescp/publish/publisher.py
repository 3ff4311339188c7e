"""The publisher: one thread with its own event loop that drains the outbox into the sink.

The outbox owns retries: a row leaves it only after both topics acknowledged it. Each topic goes through the rows by
itself, so that one that fails does not hold up the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import structlog

from storescp.engine import QueuedRecord, RecordQueue
from storescp.errors import CoreError
from storescp.publish.retries import Retries
from storescp.publish.sink import Outcome, Sink, SinkError

log = structlog.get_logger("storescp.publish")
BATCH = 2000
_WAIT_SECONDS = 5.0
# How long the first row after a pause waits for company, and how long rows wait behind a batch of such a size: there it
# is the looking that costs, and not the rows. Within the time, and the number of rows, that the outbox keeps in memory.
_GATHER_SECONDS = (0.1, 0.25)
_BUSY_ROWS = range(32, 1000)
# A row that was acknowledged a moment ago becomes claimable with the next commit.
_LAST_ROWS_SECONDS = 0.01
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 10.0
# Reading a long queue again for the rows that could not be delivered must not become the main occupation.
_PAUSE_TO_READING_RATIO = 4.0
_STALL_SECONDS = 5.0
_LONGEST_STALL_SECONDS = 60.0
_STOP_SECONDS = 5.0
_ADOPT_SECONDS = 1.0
_PRUNE_SECONDS = 60.0
_PRUNE_ROWS = 1000
_REPUBLISH_FILES = 100
# For the two topics, the upkeep and the sink's name lookups. The loop's own would grow with the processors.
_THREADS = 4


class Publisher:
    """Owns its thread: `start` and `stop`.

    `gather_seconds` is how long rows wait for company: the first one after a pause, and under load.
    `published` counts rows by topic and outcome: delivered, rejected, and failed for each attempt; `failing` has the
    topics that take nothing now, and why; `silent_since` is when that began, for those that took nothing since.
    """

    def __init__(
        self,
        queue: RecordQueue,
        sink: Sink,
        topics: tuple[str, str],
        *,
        gather_seconds: tuple[float, float] = _GATHER_SECONDS,
        keep_delivered: float = 604800.0,
    ) -> None:
        self.published: Counter[tuple[str, str]] = Counter()
        self.failing: dict[str, str] = {}
        self.silent_since: dict[str, datetime] = {}
        self.retries = Retries(topics)
        self._queue = queue
        self._sink = sink
        self._topics = topics
        self._gather_seconds = gather_seconds
        self._keep_delivered = keep_delivered
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="storescp-publisher")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main_task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to publish."""
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """Publishes what is left, for `timeout` seconds at most; whether nothing is pending then."""
        self._stopping.set()
        self._queue.outbox_stop_waiting()
        self._thread.join(timeout)
        if self._thread.is_alive() and self._loop is not None and self._main_task is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: it has just ended
                self._loop.call_soon_threadsafe(self._main_task.cancel)
        self._thread.join()
        return self._queue.outbox_backlog()[0] == 0

    def reopen(self) -> None:
        """Has the sink open its files anew, as soon as no batch is being written; does not wait for it."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: there is nothing open any more
                self._loop.call_soon_threadsafe(self._sink.reopen)

    def is_running(self) -> bool:
        """Whether it has begun and not ended."""
        return self._thread.is_alive()

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):  # the deadline of `stop`
            asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop, self._main_task = asyncio.get_running_loop(), asyncio.current_task()
        self._loop.set_default_executor(ThreadPoolExecutor(_THREADS, "storescp-publish"))
        try:
            async with asyncio.TaskGroup() as tasks:
                upkeep = tasks.create_task(self._upkeep())
                lanes = [
                    tasks.create_task(_Lane(self._queue, self._sink, number, topic, self).run())
                    for number, topic in enumerate(self._topics)
                ]
                await asyncio.wait(lanes)
                upkeep.cancel()
        finally:
            try:
                async with asyncio.timeout(_STOP_SECONDS):
                    await self._sink.stop()
            except TimeoutError:
                log.warning("publish.stop_timed_out", seconds=_STOP_SECONDS)

    def rejected(self) -> int:
        """Rows that were ever rejected, of all topics."""
        return sum(self.published[topic, "rejected"] for topic in self._topics)

    def is_over(self) -> bool:
        """Whether to stop, with nothing left to publish."""
        return self.is_stopping() and self._queue.outbox_backlog()[0] == 0

    def is_stopping(self) -> bool:
        """Whether to hurry."""
        return self._stopping.is_set()

    def gather_seconds(self, last_rows: int) -> float:
        """How long to wait for company behind a batch of so many rows."""
        first, busy = self._gather_seconds
        return busy if last_rows in _BUSY_ROWS else first

    async def _upkeep(self) -> None:
        """Takes up what operators want retried, and takes the payload of rows delivered long ago."""
        pruned = float("-inf")
        while True:
            try:
                adopted = await asyncio.to_thread(self._queue.outbox_adopt_retries)
                if adopted:
                    log.info("outbox.retried", rows=adopted)
                    self.retries.begin(adopted, self.rejected())
                await self._republish()
                if time.monotonic() - pruned >= _PRUNE_SECONDS:
                    pruned = time.monotonic()
                    before = int((time.time() - self._keep_delivered) * 1e6)
                    while await asyncio.to_thread(self._queue.outbox_prune, before, _PRUNE_ROWS) == _PRUNE_ROWS:
                        pass
            except CoreError as error:
                log.warning("outbox.upkeep_failed", reason=str(error))
            except Exception:
                log.exception("publish.bug", topic=None)
            await asyncio.sleep(_ADOPT_SECONDS)

    async def _republish(self) -> None:
        """Files whose records operators want to be published, again or for the first time."""
        while outcomes := await asyncio.to_thread(self._queue.republish_wished, _REPUBLISH_FILES):
            refused = Counter(problem for _, problem in outcomes if problem)
            log.info("outbox.republished", files=len(outcomes) - refused.total(), refused=dict(refused) or None)


class _Lane:
    """One topic's way through the outbox.

    Rows are taken in their order. Where some could not be delivered, the rest of their key waits with them, the others
    go on, and after a pause everything begins again at the first row.
    """

    def __init__(self, queue: RecordQueue, sink: Sink, number: int, topic: str, publisher: Publisher) -> None:
        self._queue = queue
        self._sink = sink
        self._number = number
        self._topic = topic
        self._publisher = publisher
        self._after = 0
        self._newest = 0
        self._last_rows = 0
        self._waiting_keys: set[str] = set()
        # When this pass first failed, and how long was spent since on reading rows.
        self._failed_at: float | None = None
        self._reading_seconds = 0.0
        self._pause = _FIRST_PAUSE_SECONDS
        self._failing = False

    async def run(self) -> None:
        """Until it is over."""
        while not self._publisher.is_over():
            try:
                await self._step()
            except (SinkError, CoreError) as error:
                await self._fail(str(error))
                await self._rest(self._pause)
                self._start_over()
            except Exception:
                # The thread must outlive its bugs: the rows are still there.
                log.exception("publish.bug", topic=self._topic)
                await self._rest(_LONGEST_PAUSE_SECONDS)
                self._start_over()

    async def _rest(self, seconds: float) -> None:
        """Pauses; not for long once the end is asked for."""
        over = time.monotonic() + seconds
        while time.monotonic() < over:
            await asyncio.sleep(min(_FIRST_PAUSE_SECONDS, seconds))
            if self._publisher.is_stopping():
                return

    async def _step(self) -> None:
        if self._is_pause_over():
            # What was delivered since must not be claimed again.
            await asyncio.to_thread(self._queue.outbox_flush)
            self._start_over()
        began, retry = time.monotonic(), self._publisher.retries.number
        rows = await asyncio.to_thread(self._queue.outbox_claim, self._number, self._after, BATCH)
        self._reading_seconds += time.monotonic() - began
        self._last_rows = len(rows)
        if not rows:
            self._note_pass(retry)
            await self._wait()
            return
        self._after = rows[-1].ready
        sendable = [row for row in rows if row.key not in self._waiting_keys] if self._waiting_keys else rows
        if sendable:
            await self._record(sendable, await self._publish(sendable))
        if len(rows) < BATCH and self._failed_at is None:
            # There were no more: what comes later is waited for, not looked for.
            self._newest = max(self._newest, self._after)
            self._note_pass(retry)
            await self._wait()

    def _note_pass(self, retry: int) -> None:
        """All rows were claimed that were there since a retry; where one failed, there will be another pass."""
        if self._failed_at is None:
            self._publisher.retries.passed(self._topic, retry, self._publisher.rejected())

    async def _wait(self) -> None:
        if self._publisher.is_stopping():
            await asyncio.sleep(_LAST_ROWS_SECONDS)
            return
        # Not `_after`: the last row that this topic still wants is older than those that it has.
        # Rows that could not be delivered are tried again after a pause, also when no others come.
        seconds = _WAIT_SECONDS if self._failed_at is None else _FIRST_PAUSE_SECONDS
        newest = await asyncio.to_thread(self._queue.outbox_wait, self._newest, seconds)
        if newest > self._newest:
            self._newest = newest
            await asyncio.sleep(self._publisher.gather_seconds(self._last_rows))

    async def _publish(self, rows: Sequence[QueuedRecord]) -> Outcome:
        """The sink's answer; while it does not come, the topic counts as failing."""
        task = asyncio.ensure_future(self._sink.publish(self._topic, rows))
        try:
            stall = _STALL_SECONDS
            while True:
                await asyncio.wait({task}, timeout=stall)
                if task.done():
                    return task.result()
                stall = min(stall * 2, _LONGEST_STALL_SECONDS)
                complaint = self._sink.complaint()
                # Without the time: each wording is an entry of its own on the page.
                await self._fail("no acknowledgement" + (f": {complaint}" if complaint else ""))
        finally:
            task.cancel()

    async def _record(self, rows: Sequence[QueuedRecord], outcome: Outcome) -> None:
        counts = self._publisher.published
        if outcome.delivered:
            await asyncio.to_thread(self._queue.outbox_done, self._number, outcome.delivered)
            counts[self._topic, "delivered"] += len(outcome.delivered)
            self._publisher.silent_since.pop(self._topic, None)
        if outcome.rejected:
            trace_ids = {row.id: row.trace_id for row in rows}
            for row_id, reason in outcome.rejected:
                log.error("publish.rejected", topic=self._topic, trace_id=trace_ids[row_id], reason=reason)
            await asyncio.to_thread(self._queue.outbox_reject, self._number, outcome.rejected)
            last_id, last_reason = outcome.rejected[-1]
            # Else an error of before would be the last one that the topic is known for.
            text = f"record {trace_ids[last_id]} was refused and set aside: {last_reason}"
            await asyncio.to_thread(self._queue.outbox_fail, self._number, text)
            counts[self._topic, "rejected"] += len(outcome.rejected)
        if outcome.failure is not None:
            settled = {*outcome.delivered, *(row_id for row_id, _ in outcome.rejected)}
            self._waiting_keys |= {row.key for row in rows if row.id not in settled}
            await self._fail(outcome.failure)
            if self._failed_at is None:
                self._failed_at, self._reading_seconds = time.monotonic(), 0.0
        elif not self._waiting_keys:
            self._recover()

    async def _fail(self, reason: str) -> None:
        self._failing = True
        self._publisher.published[self._topic, "failed"] += 1
        self._publisher.failing[self._topic] = reason
        self._publisher.silent_since.setdefault(self._topic, datetime.now(UTC))
        log.warning("publish.failed", topic=self._topic, reason=reason)
        try:
            await asyncio.to_thread(self._queue.outbox_fail, self._number, reason)
        except CoreError as error:
            log.warning("outbox.failed", reason=str(error))

    def _recover(self) -> None:
        self._pause = _FIRST_PAUSE_SECONDS
        if self._failing:
            self._failing = False
            self._publisher.failing.pop(self._topic, None)
            self._publisher.silent_since.pop(self._topic, None)
            log.info("publish.recovered", topic=self._topic)

    def _is_pause_over(self) -> bool:
        """Whether it is time to begin again for the rows that could not be delivered."""
        if self._failed_at is None:
            return False
        if self._publisher.is_stopping():
            return time.monotonic() - self._failed_at >= _FIRST_PAUSE_SECONDS
        pause = max(self._pause, self._reading_seconds * _PAUSE_TO_READING_RATIO)
        return time.monotonic() - self._failed_at >= pause

    def _start_over(self) -> None:
        self._after = 0
        self._waiting_keys.clear()
        self._failed_at = None
        self._pause = min(self._pause * 2, _LONGEST_PAUSE_SECONDS)
