"""Records to Kafka, with one batch on its way to each partition.

aiokafka retries an idempotent batch by itself, in order, without duplicates and without end. This module builds the
batches, waits for each with a deadline, tells a refused record from a broken broker, and replaces the producer where it
is of no use any more: after a refused batch it refuses everything.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field

from aiokafka import AIOKafkaProducer, TopicPartition, errors
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.producer.message_accumulator import BatchBuilder

from storescp.engine import QueuedRecord
from storescp.kafka.complaints import COMPLAINTS
from storescp.kafka.diagnosis import explain
from storescp.kafka.options import COMPRESSION, connection_options
from storescp.publish.sink import Outcome, SinkError
from storescp.settings import Kafka

# Records of version 1 may still wait in an outbox. No text in a record has this: its quotation marks are escaped.
_VERSION_2 = b'"schema_version":2,'
_TOO_LARGE = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError)


class InvalidRecordError(errors.BrokerResponseError):  # type: ignore[misc] # aiokafka has no types
    """The broker's validation refuses a record. aiokafka 0.14 does not know this code."""

    errno = 87
    message = "INVALID_RECORD"
    description = "The record has failed the validation on the broker."


# A broker says these about a record, and some brokers about themselves: a record is refused for good by several.
_REFUSALS = (
    errors.InvalidRequestError,
    errors.InvalidTimestampError,
    errors.PolicyViolationError,
    errors.kafka_errors.setdefault(InvalidRecordError.errno, InvalidRecordError),
)
_REFUSALS_UNTIL_REJECTED = 5
# These may pass by themselves and never refuse a record for good, but one record may be all that the broker fails at.
# UnknownError stands for -1, UNKNOWN_SERVER_ERROR, and for every code that aiokafka does not know.
_FAILURES = (errors.CorruptRecordException, errors.UnknownError)
# Keys of a partition whose records may fail one by one before the whole partition counts as failing.
_STUCK_KEYS = 4
_GROW_AFTER_BATCHES = 1000
_RECORD_OVERHEAD_BYTES = 128
_CLOSE_SECONDS = 2.0
_RECENT_SECONDS = 30.0
# aiokafka's words when it has asked every broker that it knows; it names them by numbers of its own.
_NO_BROKER = "Unable to update metadata from"
_CLIENT_ERRORS = (errors.KafkaError, OSError, TimeoutError)


@dataclass
class _Session:
    """A producer, and how many publish with it."""

    producer: AIOKafkaProducer
    users: int = 0
    spoilt: bool = False
    idle: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class _Sent:
    """What became of a partition's rows: the first `delivered` arrived, then a batch failed."""

    delivered: int = 0
    error: BaseException | None = None
    records: int = 0
    size: int = 0


@dataclass
class _Limit:
    """Bytes of a topic's batches: less where it refuses larger ones, more again after many successes."""

    bytes: int
    successes: int = 0


@dataclass
class _Part:
    """What is left for a partition.

    `division`: a batch that was too large, of which that many records are still to be sent. `stuck_keys`: keys whose
    records fail, and wait.
    """

    rows: Sequence[QueuedRecord]
    limit: int
    division: int = 0
    stuck_keys: int = 0


class KafkaSink:
    """One producer for both topics: acks=all, idempotent. Lives in one event loop.

    Raises (when made):
        ConfigError: a certificate or key cannot be used.
    """

    def __init__(self, kafka: Kafka) -> None:
        self._kafka = kafka
        self._options = connection_options(kafka)
        self._partition_of = DefaultPartitioner()
        self._session: _Session | None = None
        self._changing = asyncio.Lock()
        self._limits: dict[str, _Limit] = defaultdict(lambda: _Limit(kafka.batch_bytes))
        self._refusals: Counter[tuple[str, int]] = Counter()
        COMPLAINTS.install()

    async def publish(self, topic: str, rows: Sequence[QueuedRecord]) -> Outcome:
        """Publishes rows, those of the same key in their order.

        A refused batch is divided until the record is found that the broker refuses. A record that fails and is not
        refused for good waits, with the others of its key; the other keys go on.

        Raises:
            SinkError: nothing can be published now.
        """
        outcome = Outcome()
        everything_failed = True
        todo: dict[int, _Part] | None = None
        while todo is None or todo:
            async with self._use() as session:
                partitions = await self._partitions(session.producer, topic)
                if todo is None:
                    todo = self._by_partition(topic, partitions, rows)
                led = await self._with_leader(session.producer, topic, todo)
                results = await asyncio.gather(
                    *(self._send(session, topic, partition, todo[partition]) for partition in led)
                )
            for partition in todo.keys() - led:
                outcome.failure = f"{topic}, partition {partition}: no broker leads it"
                everything_failed = False
            again: dict[int, _Part] = {}
            for partition, sent in zip(led, results, strict=True):
                part = todo[partition]
                outcome.delivered += [row.id for row in part.rows[: sent.delivered]]
                part.rows = part.rows[sent.delivered :]
                if sent.error is None:
                    continue
                if self._is_one_record_s_fault(topic, sent, part.rows[0]):
                    outcome.rejected.append((part.rows[0].id, _describe(sent.error)))
                    # It was this record that made the batch too large.
                    again[partition] = self._part(topic, part.rows[1:], part.stuck_keys)
                elif _divides(sent):
                    division = max(part.division, sent.records) if isinstance(sent.error, _TOO_LARGE) else part.division
                    again[partition] = _Part(part.rows, sent.size // 2, division, part.stuck_keys)
                else:
                    outcome.failure = f"{topic}, partition {partition}: {_describe(sent.error)}"
                    if _concerns_one_record(sent) and part.stuck_keys < _STUCK_KEYS:
                        others = [row for row in part.rows if row.key != part.rows[0].key]
                        again[partition] = _Part(others, part.limit, stuck_keys=part.stuck_keys + 1)
            todo = {partition: part for partition, part in again.items() if part.rows}
        if outcome.failure is not None and everything_failed and not outcome.delivered and not outcome.rejected:
            raise SinkError(outcome.failure)
        return outcome

    def reopen(self) -> None:
        """Nothing to do: there are no files."""

    def complaint(self) -> str:
        """What aiokafka said last, if that is not long ago."""
        said = COMPLAINTS.last(_RECENT_SECONDS)
        if said.startswith(_NO_BROKER):
            return f"no broker of kafka.brokers ({self._kafka.brokers}) answers"
        return said

    async def stop(self) -> None:
        """Closes the producer."""
        session, self._session = self._session, None
        if session is not None:
            await _close(session.producer)

    @contextlib.asynccontextmanager
    async def _use(self) -> AsyncIterator[_Session]:
        session = await self._open_session()
        session.users += 1
        session.idle.clear()
        try:
            yield session
        finally:
            session.users -= 1
            if session.users == 0:
                session.idle.set()

    async def _open_session(self) -> _Session:
        async with self._changing:
            session = self._session
            if session is not None and session.spoilt:
                # Those who use it have deadlines. Until it is closed, it may still deliver what we would send again.
                await session.idle.wait()
                self._session = None
                await _close(session.producer)
                session = None
            if session is None:
                session = self._session = _Session(await self._start_producer())
            return session

    async def _start_producer(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            **self._options,
            acks="all",
            enable_idempotence=True,
            compression_type=COMPRESSION[self._kafka.compression_codec],
            max_batch_size=self._kafka.batch_bytes,
            linger_ms=0,
        )
        brokers = self._kafka.brokers.count(",") + 1
        try:
            async with asyncio.timeout(self._kafka.request_timeout * (brokers + 1)):
                await producer.start()
        except _CLIENT_ERRORS as error:
            await _close(producer)
            raise SinkError(await explain(self._options, error)) from None
        except BaseException:
            await _close(producer)
            raise
        return producer

    async def _partitions(self, producer: AIOKafkaProducer, topic: str) -> list[int]:
        try:
            async with asyncio.timeout(self._kafka.request_timeout * 2):
                return sorted(await producer.partitions_for(topic))
        except errors.UnknownTopicOrPartitionError:
            raise SinkError(f"topic {topic} does not exist, and the broker does not make it") from None
        except errors.TopicAuthorizationFailedError:
            raise SinkError(f"topic {topic}: the broker does not allow us to write to it") from None
        except _CLIENT_ERRORS as error:
            raise SinkError(f"topic {topic}: {_describe(error)}") from None

    async def _with_leader(self, producer: AIOKafkaProducer, topic: str, partitions: Iterable[int]) -> set[int]:
        """The partitions that a broker leads; asks the brokers where one is not known."""
        cluster = producer.client.cluster

        def led() -> set[int]:
            return {
                partition
                for partition in partitions
                if cluster.leader_for_partition(TopicPartition(topic, partition)) not in (None, -1)
            }

        found = led()
        if found != set(partitions):
            with contextlib.suppress(*_CLIENT_ERRORS):
                async with asyncio.timeout(self._kafka.request_timeout * 2):
                    await producer.client.force_metadata_update()
            found = led()
        return found

    def _by_partition(self, topic: str, partitions: Sequence[int], rows: Sequence[QueuedRecord]) -> dict[int, _Part]:
        found: dict[int, list[QueuedRecord]] = defaultdict(list)
        of_key: dict[str, int] = {}
        for row in rows:
            partition = of_key.get(row.key)
            if partition is None:
                partition = of_key[row.key] = self._partition_of(row.key.encode(), partitions, partitions)
            found[partition].append(row)
        return {partition: self._part(topic, of_it) for partition, of_it in found.items()}

    def _part(self, topic: str, rows: Sequence[QueuedRecord], stuck_keys: int = 0) -> _Part:
        return _Part(rows, self._limits[topic].bytes, stuck_keys=stuck_keys)

    async def _send(self, session: _Session, topic: str, partition: int, part: _Part) -> _Sent:
        sent = _Sent()
        while sent.delivered < len(part.rows):
            batch = self._build(session.producer, part, sent.delivered)
            records, size = batch.record_count(), batch.size()
            try:
                await self._deliver(session.producer, topic, partition, batch)
            except _CLIENT_ERRORS as error:
                session.spoilt = True
                sent.error, sent.records, sent.size = error, records, size
                break
            sent.delivered += records
            self._note_success(topic, part, records)
        return sent

    def _build(self, producer: AIOKafkaProducer, part: _Part, begin: int) -> BatchBuilder:
        batch = producer.create_batch()
        size, rows = 0, part.rows
        for number in range(begin, min(len(rows), begin + self._kafka.batch_num_messages)):
            row = rows[number]
            key, value = row.key.encode(), row.payload
            size += len(key) + len(value) + _RECORD_OVERHEAD_BYTES
            if number > begin and size > part.limit:
                break
            version = b"2" if _VERSION_2 in value else b"1"
            headers = [("schema_version", version), ("trace_id", row.trace_id.encode())]
            if batch.append(timestamp=None, key=key, value=value, headers=headers) is None:
                break
        batch.close()
        return batch

    async def _deliver(self, producer: AIOKafkaProducer, topic: str, partition: int, batch: BatchBuilder) -> None:
        future = await producer.send_batch(batch, topic, partition=partition)
        await asyncio.wait({future}, timeout=self._kafka.delivery_timeout)
        if not future.done():
            # Closing the producer may settle it later, when nobody looks any more.
            future.add_done_callback(lambda late: late.cancelled() or late.exception())
            raise TimeoutError(
                f"not acknowledged within {self._kafka.delivery_timeout:g} s {self.complaint()}".rstrip()
            )
        future.result()

    def _note_success(self, topic: str, part: _Part, records: int) -> None:
        limit = self._limits[topic]
        if part.division:
            part.division -= records
            if part.division > 0:
                return
            # A refused batch has arrived in parts, and no record was refused alone: the topic takes no larger batches.
            part.division = 0
            limit = self._limits[topic] = _Limit(min(part.limit, limit.bytes))
        if limit.bytes < self._kafka.batch_bytes:
            limit.successes += 1
            if limit.successes >= _GROW_AFTER_BATCHES:
                limit = self._limits[topic] = _Limit(min(limit.bytes * 2, self._kafka.batch_bytes))
        part.limit = limit.bytes

    def _is_one_record_s_fault(self, topic: str, sent: _Sent, row: QueuedRecord) -> bool:
        if sent.records != 1:
            return False
        if isinstance(sent.error, _REFUSALS):
            self._refusals[topic, row.id] += 1
            if self._refusals[topic, row.id] < _REFUSALS_UNTIL_REJECTED:
                return False
        elif not isinstance(sent.error, _TOO_LARGE):
            return False
        del self._refusals[topic, row.id]
        return True


def _divides(sent: _Sent) -> bool:
    return sent.records > 1 and isinstance(sent.error, (*_TOO_LARGE, *_REFUSALS, *_FAILURES))


def _concerns_one_record(sent: _Sent) -> bool:
    return sent.records == 1 and isinstance(sent.error, (*_REFUSALS, *_FAILURES))


def _describe(error: BaseException) -> str:
    text = str(error)
    name = type(error).__name__
    if isinstance(error, _TOO_LARGE):
        return f"{name}: the record is larger than max.message.bytes of the topic or message.max.bytes of the broker"
    return text if isinstance(error, TimeoutError) and text else f"{name}: {text}" if text != name else name


async def _close(producer: AIOKafkaProducer) -> None:
    """Closes a producer, by force where it waits for a broker that does not answer."""
    with contextlib.suppress(*_CLIENT_ERRORS):
        async with asyncio.timeout(_CLOSE_SECONDS):
            await producer.stop()
            return
    # Without connections, requests on their way fail, and the sender's task has nothing left to wait for.
    for close in (producer.client.close, producer._sender.close):  # noqa: SLF001 - there is no other way; see test_seams
        with contextlib.suppress(*_CLIENT_ERRORS):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await close()
