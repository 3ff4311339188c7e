"""From `topic_main` to the tables: a member of a consumer group, with its offsets in the database."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition, errors
from sqlalchemy.exc import DBAPIError

from storescp.index.database import Applied, Database, Message
from storescp.kafka.complaints import COMPLAINTS
from storescp.kafka.diagnosis import explain
from storescp.kafka.options import connection_options
from storescp.settings import Index, Kafka

log = structlog.get_logger("storescp.index")
T = TypeVar("T")
_POLL_MILLISECONDS = 500
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 10.0
_CLOSE_SECONDS = 5.0
_PROGRESS_SECONDS = 60.0
_GONE = "the topic no longer holds them: check its retention against the time the index was away"
_CLIENT_ERRORS = (errors.KafkaError, OSError, TimeoutError)


class Indexer:
    """Reads until it is stopped, or until it has caught up.

    Raises (when made):
        ConfigError: a certificate of `[kafka]` cannot be used.
    """

    def __init__(self, kafka: Kafka, index: Index, topic: str, database: Database) -> None:
        self._options = connection_options(kafka)
        self._kafka = kafka
        self._index = index
        self._topic = topic
        self._database = database
        self._stopping = asyncio.Event()
        self._totals = Applied()
        self._told = time.monotonic()
        COMPLAINTS.install()

    async def run(self, *, until_caught_up: bool = False) -> Applied:
        """Keeps the tables up to date; returns what was done.

        With `until_caught_up` it ends when everything is read that the topic held.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        await self._insist("database", lambda: asyncio.to_thread(self._database.create))
        consumer = await self._insist("kafka", self._start)
        if consumer is not None:
            try:
                await self._follow(consumer, until_caught_up)
            finally:
                with contextlib.suppress(*_CLIENT_ERRORS):
                    async with asyncio.timeout(_CLOSE_SECONDS):
                        await consumer.stop()
        log.info("index.stopped", **self._summary())
        return self._totals

    async def _start(self) -> AIOKafkaConsumer:
        consumer = AIOKafkaConsumer(
            **self._options,
            group_id=self._index.group_id,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_records=self._index.max_records,
        )
        consumer.subscribe([self._topic], listener=_Rebalance(consumer, self))
        try:
            async with asyncio.timeout(self._kafka.request_timeout * (self._kafka.brokers.count(",") + 2)):
                await consumer.start()
        except _CLIENT_ERRORS as error:
            with contextlib.suppress(*_CLIENT_ERRORS):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await consumer.stop()
            raise errors.KafkaConnectionError(await explain(self._options, error)) from None
        log.info("index.started", database=self._database.url, topic=self._topic, group=self._index.group_id)
        return consumer

    async def assigned(self, consumer: AIOKafkaConsumer, partitions: Sequence[TopicPartition]) -> None:
        """Goes on where the database says, whatever the group's own offsets are."""
        numbers = sorted(one.partition for one in partitions)
        offsets = await self._insist(
            "database", lambda: asyncio.to_thread(self._database.next_offsets, self._topic, numbers)
        )
        if offsets is None:
            return
        ends = await self._insist("kafka", lambda: consumer.end_offsets(partitions))
        if ends is None:
            return
        for one in partitions:
            offset = offsets[one.partition]
            if offset > ends[one]:
                log.error("index.topic_made_anew", partition=one.partition, expected=offset, end=ends[one])
                begin_again = functools.partial(self._database.begin_again, self._topic, one.partition)
                await self._insist("database", functools.partial(asyncio.to_thread, begin_again))
                offset = 0
            consumer.seek(one, offset)
        log.info("index.assigned", topic=self._topic, partitions=numbers)

    async def _follow(self, consumer: AIOKafkaConsumer, until_caught_up: bool) -> None:
        while not self._stopping.is_set():
            batches = await consumer.getmany(timeout_ms=_POLL_MILLISECONDS, max_records=self._index.max_records)
            messages = {
                one.partition: [Message(message.offset, message.value or b"") for message in batch]
                for one, batch in batches.items()
                if batch
            }
            if messages:
                await self._apply(consumer, messages)
            elif until_caught_up and await self._caught_up(consumer):
                return
            if time.monotonic() - self._told >= _PROGRESS_SECONDS:
                self._told = time.monotonic()
                log.info("index.progress", **self._summary())

    async def _apply(self, consumer: AIOKafkaConsumer, messages: dict[int, list[Message]]) -> None:
        applied = await self._insist("database", lambda: asyncio.to_thread(self._database.apply, self._topic, messages))
        if applied is None:
            return
        self._totals.records += applied.records
        self._totals.duplicates += applied.duplicates
        self._totals.unreadable += applied.unreadable
        for partition, count in applied.gone.items():
            log.error("index.records_gone", topic=self._topic, partition=partition, count=count, text=_GONE)
        if applied.unreadable:
            log.error("index.unreadable_messages", count=applied.unreadable, table="unreadable_message")
        # Only for those who watch the group's lag; the database decides.
        with contextlib.suppress(*_CLIENT_ERRORS):
            async with asyncio.timeout(self._kafka.request_timeout):
                await consumer.commit(
                    {
                        TopicPartition(self._topic, partition): offset
                        for partition, offset in applied.next_offsets.items()
                    }
                )

    async def _caught_up(self, consumer: AIOKafkaConsumer) -> bool:
        partitions = consumer.assignment()
        if not partitions:
            return False
        ends = await consumer.end_offsets(partitions)
        return all([await consumer.position(one) >= end for one, end in ends.items()])

    async def _insist(self, what: str, attempt: Callable[[], Awaitable[T]]) -> T | None:
        """Tries until it works; nothing if told to stop meanwhile."""
        pause = _FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            try:
                return await attempt()
            except (DBAPIError, *_CLIENT_ERRORS) as error:
                reason = str(error.orig) if isinstance(error, DBAPIError) else str(error)
                log.warning("index.waiting", on=what, reason=reason.strip(), retry_seconds=pause)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
        return None

    def _summary(self) -> dict[str, Any]:
        totals = self._totals
        return {"records": totals.records, "duplicates": totals.duplicates, "unreadable": totals.unreadable}


class _Rebalance(ConsumerRebalanceListener):  # type: ignore[misc] # aiokafka has no types
    def __init__(self, consumer: AIOKafkaConsumer, indexer: Indexer) -> None:
        self._consumer = consumer
        self._indexer = indexer

    async def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        """Nothing: what was read and not applied is read by the next owner."""

    async def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        """Finds out where to go on."""
        if assigned:
            await self._indexer.assigned(self._consumer, list(assigned))
