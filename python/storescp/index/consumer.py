"""From `topic_main` to the tables: a member of a consumer group, with its offsets in the database."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition, errors
from sqlalchemy.exc import StatementError

from storescp.index.database import Applied, Database, Message
from storescp.index.refusals import MessageRefusedError
from storescp.kafka.complaints import COMPLAINTS
from storescp.kafka.diagnosis import explain
from storescp.kafka.options import connection_options
from storescp.kafka.topic_id import topic_id
from storescp.settings import Index, Kafka

log = structlog.get_logger("storescp.index")
T = TypeVar("T")
_POLL_MILLISECONDS = 500
# A topic that does not exist (yet, or for a moment) is looked for this often.
_METADATA_MILLISECONDS = 10_000
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 10.0
_CLOSE_SECONDS = 5.0
_PROGRESS_SECONDS = 60.0
_GONE = "the topic no longer holds them: check its retention against the time the index was away"
_CLIENT_ERRORS = (errors.KafkaError, OSError, TimeoutError)
# Of a message whose refusal another worker may have caused.
_REFUSALS_UNTIL_SET_ASIDE = 3
_Batches = Mapping[int, Sequence[Message]]


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
        # Of the topic that the positions belong to.
        self._topic_id: str | None = None
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
        pause = _FIRST_PAUSE_SECONDS
        while (consumer := await self._insist("kafka", self._start)) is not None:
            began = time.monotonic()
            try:
                await self._follow(consumer, until_caught_up)
                break
            except _CLIENT_ERRORS as error:
                pause = _FIRST_PAUSE_SECONDS if time.monotonic() - began > _LONGEST_PAUSE_SECONDS else pause
                log.warning("index.waiting", on="kafka", reason=_describe(error), retry_seconds=pause)
            finally:
                with contextlib.suppress(*_CLIENT_ERRORS):
                    async with asyncio.timeout(_CLOSE_SECONDS):
                        await consumer.stop()
            await self._pause(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
        log.info("index.stopped", **self._summary())
        return self._totals

    async def _start(self) -> AIOKafkaConsumer:
        consumer = AIOKafkaConsumer(
            **self._options,
            group_id=self._index.group_id,
            enable_auto_commit=False,
            # The database says where to go on, also where the topic does not hold that offset.
            auto_offset_reset="none",
            max_poll_records=self._index.max_records,
            metadata_max_age_ms=_METADATA_MILLISECONDS,
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

    async def assigned(self, consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition]) -> None:
        """Goes on where the database says, whatever the group's own offsets are."""
        numbers = sorted(one.partition for one in partitions)
        known = await self._insist("database", lambda: asyncio.to_thread(self._database.progress, self._topic, numbers))
        limits = await self._insist("kafka", lambda: self._limits(consumer, partitions))
        if known is None or limits is None:
            return
        self._topic_id, begins, ends = limits
        for one in partitions:
            offset, read_of = known[one.partition].next_offset, known[one.partition].topic_id
            is_another_topic = None not in (read_of, self._topic_id) and read_of != self._topic_id
            if is_another_topic or offset > ends[one]:
                log.error("index.topic_made_anew", partition=one.partition, expected=offset, end=ends[one])
                begin_again = functools.partial(self._database.begin_again, self._topic, one.partition, self._topic_id)
                await self._insist("database", functools.partial(asyncio.to_thread, begin_again))
                offset = 0
            consumer.seek(one, max(offset, begins[one]))
        log.info("index.assigned", topic=self._topic, partitions=numbers)

    async def _limits(
        self, consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition]
    ) -> tuple[str | None, dict[TopicPartition, int], dict[TopicPartition, int]]:
        """The topic's id, and the first offset of each partition and the one after its last.

        The id comes first: offsets of a topic that is made anew meanwhile are found again with the next messages.
        """
        current = await self._current_topic_id(consumer)
        return current, await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)

    async def _current_topic_id(self, consumer: AIOKafkaConsumer) -> str | None:
        return await topic_id(consumer._client, self._topic)  # noqa: SLF001 - a second client would do nothing else

    async def _follow(self, consumer: AIOKafkaConsumer, until_caught_up: bool) -> None:
        while not self._stopping.is_set():
            read_of = self._topic_id
            messages = await self._receive(consumer, read_of)
            if messages is None:
                await self.assigned(consumer, consumer.assignment())
            elif messages:
                await self._apply(consumer, messages, read_of)
            elif until_caught_up and await self._caught_up(consumer):
                return
            if time.monotonic() - self._told >= _PROGRESS_SECONDS:
                self._told = time.monotonic()
                log.info("index.progress", **self._summary())

    async def _receive(self, consumer: AIOKafkaConsumer, read_of: str | None) -> _Batches | None:
        """The next messages of this topic by partition; None where the positions must be found again."""
        try:
            batches = await consumer.getmany(timeout_ms=_POLL_MILLISECONDS, max_records=self._index.max_records)
        except (errors.OffsetOutOfRangeError, errors.NoOffsetForPartitionError):
            return None
        messages = {
            one.partition: [Message(message.offset, message.value or b"") for message in batch]
            for one, batch in batches.items()
            if batch
        }
        if not messages:
            return messages
        # Asked for after the messages have come: as long as the id is the same, they are of that topic. Where there is
        # no id any more, the topic has been deleted, and they are of the old one.
        current = await self._insist("kafka", lambda: self._current_topic_id(consumer))
        return None if current not in (None, read_of) else messages

    async def _apply(self, consumer: AIOKafkaConsumer, messages: _Batches, read_of: str | None) -> None:
        """Applies every message but those that the database refuses; a batch is halved until they are found."""
        refusals: Counter[tuple[int, int]] = Counter()
        todo = [messages]
        while todo and not self._stopping.is_set():
            batches = todo.pop()
            refused = await self._apply_together(consumer, batches, read_of)
            if refused is None:
                continue
            each = [(number, message) for number, part in batches.items() for message in part]
            if len(each) > 1:
                todo += reversed(_halves(each))
                continue
            [(partition, message)] = each
            refusals[partition, message.offset] += 1
            may_pass = refused.may_pass and refusals[partition, message.offset] < _REFUSALS_UNTIL_SET_ASIDE
            if may_pass or message.refusal is not None:
                await self._pause(_FIRST_PAUSE_SECONDS)
            else:
                log.error("index.message_refused", partition=partition, offset=message.offset, reason=str(refused))
                message = replace(message, refusal=str(refused))
            todo.append({partition: [message]})

    async def _apply_together(
        self, consumer: AIOKafkaConsumer, batches: _Batches, read_of: str | None
    ) -> MessageRefusedError | None:
        """Applies messages in one transaction; or says why the database refuses one of them."""
        apply = functools.partial(self._database.apply, self._topic, batches, read_of)
        try:
            applied = await self._insist("database", lambda: asyncio.to_thread(apply))
        except MessageRefusedError as refused:
            return refused
        if applied is None:
            return None
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
        return None

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
            except (StatementError, *_CLIENT_ERRORS) as error:
                log.warning("index.waiting", on=what, reason=_describe(error), retry_seconds=pause)
            await self._pause(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
        return None

    async def _pause(self, seconds: float) -> None:
        """Waits, but not when told to stop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

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


def _describe(error: Exception) -> str:
    text = str(error.orig) if isinstance(error, StatementError) else str(error)
    return text.strip() or type(error).__name__


def _halves(messages: Sequence[tuple[int, Message]]) -> list[_Batches]:
    """Two halves; what the first one has of a partition is before what the second one has."""
    middle = len(messages) // 2
    halves: list[_Batches] = []
    for part in (messages[:middle], messages[middle:]):
        half: dict[int, list[Message]] = {}
        for partition, message in part:
            half.setdefault(partition, []).append(message)
        halves.append(half)
    return halves
