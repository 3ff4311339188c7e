"""From `topic_main` to the tables: a member of a consumer group, with its offsets in the database."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import time
from collections.abc import Collection, Mapping, Sequence

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition, errors

from storescp.index.database import Applied, Database, Message
from storescp.index.events import Origin
from storescp.index.one_by_one import Placed, apply_each
from storescp.index.patience import (
    CLIENT_ERRORS,
    FIRST_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    Patience,
    describe,
)
from storescp.index.refusals import MessageRefusedError
from storescp.index.study_events import Command, StudyEvents, deliveries_to
from storescp.index.totals import Totals
from storescp.kafka.complaints import COMPLAINTS
from storescp.kafka.diagnosis import explain
from storescp.kafka.options import connection_options
from storescp.kafka.topic_id import topic_id
from storescp.publish.kafka import KafkaSink
from storescp.settings import Events, Index, Kafka

log = structlog.get_logger("storescp.index")
# Waits for messages, and looks for timers that are due.
_POLL_MILLISECONDS = 200
# A topic that does not exist (yet, or for a moment) is looked for this often.
_METADATA_MILLISECONDS = 10_000
_CLOSE_SECONDS = 5.0
_GONE = "the topic no longer holds them: check its retention against the time the index was away"
_Batches = Mapping[int, Sequence[Message]]


class Indexer:
    """Reads until it is stopped, or until it has caught up.

    Raises (when made):
        ConfigError: a certificate of `[kafka]` cannot be used.
    """

    def __init__(
        self,
        kafka: Kafka,
        index: Index,
        topic: str,
        database: Database,
        events: Events | None = None,
        on_study: Command | None = None,
    ) -> None:
        events = events or Events.model_validate({})
        self._options = connection_options(kafka)
        self._kafka = kafka
        self._index = index
        self._topic = topic
        self._database = database
        # Of the topic that the positions belong to.
        self._topic_id: str | None = None
        self._patience = Patience()
        deliveries = deliveries_to(KafkaSink(kafka), events, on_study)
        self._events = StudyEvents(database.timers, events, self._patience, deliveries, self._origin)
        # By partition with timers that are due: when that was seen, and the end that the partition had then.
        self._due: dict[int, tuple[float, int]] = {}
        self._partitions: frozenset[int] = frozenset()
        # By partition: the next offset to read, and the first of the batch at hand. What is not here is not begun yet.
        self._next: dict[int, int] = {}
        self._batch_begins: dict[int, int] = {}
        self._most: int | None = None
        self._looked = 0.0
        self._totals = Totals()
        COMPLAINTS.install()

    async def run(self, *, until_caught_up: bool = False) -> Applied:
        """Keeps the tables up to date; returns what was done.

        With `until_caught_up` it ends when everything is read that the topic held.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._patience.stopping.set)
        await self._patience.insist("database", lambda: asyncio.to_thread(self._database.create))
        pause = FIRST_PAUSE_SECONDS
        async with self._events.delivering():
            while (consumer := await self._patience.insist("kafka", self._start)) is not None:
                began = time.monotonic()
                try:
                    await self._follow(consumer, until_caught_up)
                    break
                except CLIENT_ERRORS as error:
                    pause = FIRST_PAUSE_SECONDS if time.monotonic() - began > LONGEST_PAUSE_SECONDS else pause
                    log.warning("index.waiting", on="kafka", reason=describe(error), retry_seconds=pause)
                finally:
                    with contextlib.suppress(*CLIENT_ERRORS):
                        async with asyncio.timeout(_CLOSE_SECONDS):
                            await consumer.stop()
                await self._patience.pause(pause)
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
            if until_caught_up:
                await self._events.deliver_pending()
        log.info("index.stopped", **self._totals.summary())
        return self._totals.applied

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
        self._next.clear()
        consumer.subscribe([self._topic], listener=_Rebalance(consumer, self))
        try:
            async with asyncio.timeout(self._kafka.request_timeout * (self._kafka.brokers.count(",") + 2)):
                await consumer.start()
        except CLIENT_ERRORS as error:
            with contextlib.suppress(*CLIENT_ERRORS):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await consumer.stop()
            raise errors.KafkaConnectionError(await explain(self._options, error)) from None
        log.info("index.started", database=self._database.url, topic=self._topic, group=self._index.group_id)
        return consumer

    async def assigned(self, consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition]) -> None:
        """Goes on where the database says, whatever the group's own offsets are."""
        numbers = sorted(one.partition for one in partitions)
        known = await self._patience.insist(
            "database", lambda: asyncio.to_thread(self._database.progress, self._topic, numbers)
        )
        limits = await self._patience.insist("kafka", lambda: self._limits(consumer, partitions))
        if known is None or limits is None:
            return
        self._topic_id, begins, ends = limits
        for one in partitions:
            offset, read_of = known[one.partition].next_offset, known[one.partition].topic_id
            is_another_topic = None not in (read_of, self._topic_id) and read_of != self._topic_id
            if is_another_topic or offset > ends[one]:
                log.error("index.topic_made_anew", partition=one.partition, expected=offset, end=ends[one])
                begin_again = functools.partial(self._database.begin_again, self._topic, one.partition, self._topic_id)
                await self._patience.insist("database", functools.partial(asyncio.to_thread, begin_again))
                offset = 0
            consumer.seek(one, max(offset, begins[one]))
            self._next[one.partition] = offset
            self._due.pop(one.partition, None)
        log.info("index.assigned", topic=self._topic, partitions=numbers)

    def revoked(self, partitions: Collection[TopicPartition]) -> None:
        """They may be another worker's from now on."""
        for one in partitions:
            self._next.pop(one.partition, None)

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
        while not self._patience.stopping.is_set():
            read_of = self._topic_id
            messages = await self._receive(consumer, read_of)
            if messages is None:
                await self.assigned(consumer, consumer.assignment())
                continue
            if messages:
                await self._apply(consumer, messages, read_of)
            await self._fire_due(consumer)
            if not messages and until_caught_up and await self._caught_up(consumer):
                return
            self._totals.tell_now_and_then()

    async def _receive(self, consumer: AIOKafkaConsumer, read_of: str | None) -> _Batches | None:
        """The next messages of this topic by partition; None where the positions must be found again."""
        try:
            batches = await consumer.getmany(timeout_ms=_POLL_MILLISECONDS, max_records=self._index.max_records)
        except (errors.OffsetOutOfRangeError, errors.NoOffsetForPartitionError):
            return None
        # The client begins to fetch before it is told where to: not so the index.
        messages = {
            one.partition: [Message(message.offset, message.value or b"") for message in batch]
            for one, batch in batches.items()
            if batch and one.partition in self._next
        }
        self._batch_begins = {one: self._next[one] for one in messages}
        self._next |= {one: batch[-1].offset + 1 for one, batch in messages.items()}
        if not messages:
            return messages
        # Asked for after the messages have come: as long as the id is the same, they are of that topic. Where there is
        # no id any more, the topic has been deleted, and they are of the old one.
        current = await self._patience.insist("kafka", lambda: self._current_topic_id(consumer))
        return None if current not in (None, read_of) else messages

    async def _apply(self, consumer: AIOKafkaConsumer, messages: _Batches, read_of: str | None) -> None:
        """Applies every message but those that the database refuses."""

        async def together(part: Sequence[Placed]) -> MessageRefusedError | None:
            batches: dict[int, list[Message]] = {}
            for partition, message in part:
                batches.setdefault(partition, []).append(message)
            return await self._apply_together(consumer, batches, read_of)

        await apply_each([(number, one) for number, part in messages.items() for one in part], together, self._patience)

    async def _apply_together(
        self, consumer: AIOKafkaConsumer, batches: _Batches, read_of: str | None
    ) -> MessageRefusedError | None:
        """Applies messages in one transaction; or says why the database refuses one of them."""
        apply = functools.partial(self._database.apply, self._topic, batches, read_of, self._batch_begins)
        try:
            applied = await self._patience.insist("database", lambda: asyncio.to_thread(apply))
        except MessageRefusedError as refused:
            return refused
        if applied is None:
            return None
        self._totals.add(applied)
        if applied.ahead:
            log.warning("index.progress_went_back", topic=self._topic, partitions=applied.ahead)
            await self.assigned(consumer, [TopicPartition(self._topic, one) for one in applied.ahead])
        for partition, count in applied.gone.items():
            log.error("index.records_gone", topic=self._topic, partition=partition, count=count, text=_GONE)
        # Only for those who watch the group's lag; the database decides.
        offsets = {TopicPartition(self._topic, partition): one for partition, one in applied.next_offsets.items()}
        if offsets:
            with contextlib.suppress(*CLIENT_ERRORS):
                async with asyncio.timeout(self._kafka.request_timeout):
                    await consumer.commit(offsets)
        return None

    async def _fire_due(self, consumer: AIOKafkaConsumer) -> None:
        """Makes the events of studies whose time has come, and whose partitions are read as far as they were then.

        Between two batches: what is before the position of a partition is applied.
        """
        self._partitions = frozenset(one.partition for one in consumer.assignment())
        if time.monotonic() - self._looked < _POLL_MILLISECONDS / 1000 or self._patience.stopping.is_set():
            return
        self._looked = time.monotonic()
        if known := consumer.partitions_for_topic(self._topic):
            self._most = len(known)
        found = await self._events.due(self._origin()) if self._partitions else None
        if found is None:
            return
        now, partitions = found
        self._due = {one: since for one, since in self._due.items() if one in partitions}
        if fresh := [TopicPartition(self._topic, one) for one in partitions - self._due.keys()]:
            ends = await consumer.end_offsets(fresh)
            self._due |= {one.partition: (now, end) for one, end in ends.items()}
        for one, (since, end) in list(self._due.items()):
            here = TopicPartition(self._topic, one)
            is_read = one in self._next and here in consumer.assignment() and await consumer.position(here) >= end
            # It may have been assigned anew meanwhile.
            if is_read and self._due.pop(one, None) is not None:
                await self._events.fire(Origin(self._topic, frozenset([one]), self._most), since)

    def _origin(self) -> Origin:
        return Origin(self._topic, self._partitions, self._most)

    async def _caught_up(self, consumer: AIOKafkaConsumer) -> bool:
        partitions = consumer.assignment()
        if not partitions:
            return False
        ends = await consumer.end_offsets(partitions)
        return all([await consumer.position(one) >= end for one, end in ends.items()])


class _Rebalance(ConsumerRebalanceListener):  # type: ignore[misc] # aiokafka has no types
    def __init__(self, consumer: AIOKafkaConsumer, indexer: Indexer) -> None:
        self._consumer = consumer
        self._indexer = indexer

    async def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        """What was read and not applied is read by the next owner."""
        self._indexer.revoked(revoked)

    async def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        """Finds out where to go on."""
        if assigned:
            await self._indexer.assigned(self._consumer, list(assigned))
