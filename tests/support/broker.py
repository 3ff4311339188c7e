"""A real Apache Kafka broker (KRaft, one node) on 127.0.0.1, without containers: Java and Maven's packages.

`python -m support.broker` (or `make kafka`) runs one in the foreground.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import concurrent.futures
import contextlib
import fcntl
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError

T = TypeVar("T")
PROJECT = Path(__file__).resolve().parents[2]
POM = Path(__file__).with_name("kafka.pom.xml")
LIBRARIES = PROJECT / "target" / "kafka" / "libs"
_JVM = ("-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_LOG4J = """status=error
appender.c.type=Console
appender.c.name=C
appender.c.layout.type=PatternLayout
appender.c.layout.pattern=%d{HH:mm:ss.SSS} %p %c{1} %m%n
rootLogger.level=warn
rootLogger.appenderRef.c.ref=C
"""


def libraries() -> Path:
    """The broker's class path, fetched once; several processes may want it at the same time."""
    LIBRARIES.parent.mkdir(parents=True, exist_ok=True)
    stamp = LIBRARIES / ".pom"
    with (LIBRARIES.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_bytes() != POM.read_bytes():
            goal = ["dependency:copy-dependencies", f"-DoutputDirectory={LIBRARIES}"]
            subprocess.run(["mvn", "-B", "-ntp", "-q", "-f", str(POM), *goal], check=True, timeout=900)
            stamp.write_bytes(POM.read_bytes())
    return LIBRARIES


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as sockets:
        found = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in found]


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine in a thread and loop of its own."""
    with concurrent.futures.ThreadPoolExecutor(1, "kafka-client") as thread:
        return thread.submit(asyncio.run, coroutine).result()


@dataclass(frozen=True)
class Topics:
    """The two topics of a test."""

    main: str
    log: str

    def __iter__(self) -> Iterator[str]:
        return iter((self.main, self.log))

    @property
    def env(self) -> dict[str, str]:
        return {
            "STORESCP_MESSAGE_QUEUE__TOPIC_MAIN": self.main,
            "STORESCP_MESSAGE_QUEUE__TOPIC_DICOM_RECEIVE": self.log,
        }


@dataclass(frozen=True)
class Message:
    """One record of a topic, as a consumer sees it."""

    partition: int
    offset: int
    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...]


class KafkaBroker:
    """A broker with a listener PLAINTEXT and those of `listeners` (name: protocol), each on a free port.

    `advertised` sends the clients of a listener to another port. `scram` makes users for SCRAM-SHA-512.
    """

    def __init__(
        self,
        folder: Path,
        *,
        listeners: Mapping[str, str] | None = None,
        properties: Mapping[str, object] | None = None,
        scram: Mapping[str, str] | None = None,
        advertised: Mapping[str, int] | None = None,
        port: int | None = None,
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._scram = dict(scram or {})
        self.process: subprocess.Popen[bytes] | None = None
        protocols = {"PLAINTEXT": "PLAINTEXT", **(listeners or {}), "CONTROLLER": "PLAINTEXT"}
        self.ports = dict(zip(protocols, free_ports(len(protocols)), strict=True))
        if port is not None:
            self.ports["PLAINTEXT"] = port
        shown = {**self.ports, **(advertised or {})}
        self._properties: dict[str, object] = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "log.dirs": folder / "data",
            "auto.create.topics.enable": "false",
            "controller.quorum.voters": f"1@{self.address('CONTROLLER')}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listeners": ",".join(f"{name}://{self.address(name)}" for name in protocols),
            "advertised.listeners": ",".join(
                f"{name}://127.0.0.1:{shown[name]}" for name in protocols if name != "CONTROLLER"
            ),
            "listener.security.protocol.map": ",".join(f"{name}:{kind}" for name, kind in protocols.items()),
            "group.initial.rebalance.delay.ms": 0,
            # The default of 128 MB needs a larger heap.
            "log.cleaner.dedupe.buffer.size": 2097152,
            # After kill -9 the controller refuses the new incarnation until the old session ends.
            "broker.session.timeout.ms": 3000,
            "broker.heartbeat.interval.ms": 500,
            "num.network.threads": 1,
            "num.io.threads": 2,
            "background.threads": 2,
            "num.recovery.threads.per.data.dir": 1,
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 1,
        }
        for prefix in ("transaction.state.log.", "share.coordinator.state.topic."):
            self._properties |= {f"{prefix}replication.factor": 1, f"{prefix}num.partitions": 1, f"{prefix}min.isr": 1}
        self._properties |= properties or {}

    def address(self, listener: str = "PLAINTEXT") -> str:
        return f"127.0.0.1:{self.ports[listener]}"

    def configure(self, **properties: object) -> None:
        """Changes properties (dots as double underscores) for the next start."""
        self._properties |= {name.replace("__", "."): value for name, value in properties.items()}

    def start(self, timeout: float = 60.0) -> KafkaBroker:
        assert self.process is None
        (self.folder / "server.properties").write_text(
            "".join(f"{name}={value}\n" for name, value in self._properties.items())
        )
        (self.folder / "log4j2.properties").write_text(_LOG4J)
        if not (self.folder / "data" / "meta.properties").exists():
            cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")
            users = [
                option
                for user, password in self._scram.items()
                for option in ("--add-scram", f"SCRAM-SHA-512=[name={user},password={password}]")
            ]
            configuration = str(self.folder / "server.properties")
            subprocess.run(
                self._java("kafka.tools.StorageTool", "format", "-t", cluster, "-c", configuration, *users),
                check=True,
                stdout=subprocess.DEVNULL,
                timeout=120,
            )
        with (self.folder / "broker.log").open("ab") as log:
            self.process = subprocess.Popen(
                self._java("kafka.Kafka", str(self.folder / "server.properties")),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            run(self._ready(time.monotonic() + timeout))
        except BaseException:
            self.kill()
            print((self.folder / "broker.log").read_text(errors="replace")[-3000:], file=sys.stderr)
            raise
        return self

    def _java(self, main: str, *arguments: str) -> list[str]:
        options = [*_JVM, f"-Dlog4j2.configurationFile={self.folder}/log4j2.properties"]
        return ["java", *options, "-cp", f"{libraries()}/*", main, *arguments]

    async def _ready(self, deadline: float) -> None:
        assert self.process is not None
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the broker ended with {self.process.returncode}")
            try:
                socket.create_connection(("127.0.0.1", self.ports["PLAINTEXT"]), 0.2).close()
                async with self._admin() as admin:
                    if (await admin.describe_cluster())["brokers"]:
                        return
            except (KafkaError, OSError):
                await asyncio.sleep(0.03)
        raise TimeoutError("the broker did not get ready")

    def _signal(self, number: int) -> None:
        process, self.process = self.process, None
        if process is not None and process.poll() is None:
            process.send_signal(number)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def stop(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """As a crash; `start` goes on with the same ports and data."""
        self._signal(signal.SIGKILL)

    def pause(self) -> None:
        """A broker that hangs: connections are accepted, nothing is answered."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    @contextlib.asynccontextmanager
    async def _admin(self) -> Any:
        admin = AIOKafkaAdminClient(bootstrap_servers=f"127.0.0.1:{self.ports['PLAINTEXT']}", request_timeout_ms=5000)
        try:
            await admin.start()
            yield admin
        finally:
            await admin.close()

    def create_topics(self, *names: str, partitions: int = 3, **configs: object) -> None:
        """Makes topics; configs with underscores for dots."""
        values = {key.replace("_", "."): str(value) for key, value in configs.items()}

        async def create() -> None:
            async with self._admin() as admin:
                await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=values) for name in names])
                while set(names) - set(await admin.list_topics()):
                    await asyncio.sleep(0.02)

        run(create())

    def alter_topic(self, name: str, **configs: object) -> None:
        """Changes configs of a topic; underscores for dots."""
        values = {key.replace("_", "."): str(value) for key, value in configs.items()}

        async def alter() -> None:
            async with self._admin() as admin:
                await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, values)])

        run(alter())

    def delete_topic(self, name: str) -> None:
        async def delete() -> None:
            async with self._admin() as admin:
                await admin.delete_topics([name])
                while name in await admin.list_topics():
                    await asyncio.sleep(0.02)

        run(delete())

    def delete_records(self, topic: str, partition: int, *, before: int) -> None:
        """As retention does."""

        async def delete() -> None:
            async with self._admin() as admin:
                await admin.delete_records({TopicPartition(topic, partition): RecordsToDelete(before)})

        run(delete())

    def write(self, topic: str, values: Iterable[bytes], partition: int = 0) -> None:
        """Adds messages to a partition, in this order."""

        async def write() -> None:
            address = f"127.0.0.1:{self.ports['PLAINTEXT']}"
            async with AIOKafkaProducer(bootstrap_servers=address, acks="all", enable_idempotence=True) as producer:
                for value in values:
                    await producer.send(topic, value, partition=partition)

        run(write())

    def end(self, topic: str) -> int:
        """How many records a topic has."""
        return run(self._end(topic))

    async def _end(self, topic: str) -> int:
        async with self._consumer(topic) as consumer:
            return sum((await consumer.end_offsets(consumer.assignment())).values())

    @contextlib.asynccontextmanager
    async def _consumer(self, topic: str) -> Any:
        consumer = AIOKafkaConsumer(
            topic,
            bootstrap_servers=f"127.0.0.1:{self.ports['PLAINTEXT']}",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_bytes=1 << 24,
        )
        await consumer.start()
        try:
            assert consumer.assignment(), f"no partitions of {topic}"
            yield consumer
        finally:
            await consumer.stop()

    def read(self, topic: str, *, count: int | None = None, timeout: float = 60.0) -> list[Message]:
        """All records of a topic by partition and offset; waits until there are `count`."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                messages = run(self._read(topic))
            except KafkaError:
                messages = []
            if count is None or len(messages) >= count or time.monotonic() > deadline:
                return messages
            threading.Event().wait(0.1)

    async def _read(self, topic: str) -> list[Message]:
        found: list[Message] = []
        async with self._consumer(topic) as consumer:
            ends = await consumer.end_offsets(consumer.assignment())
            for partition in ends:
                consumer.seek(partition, 0)
            at = dict.fromkeys(ends, 0)
            while any(at[partition] < end for partition, end in ends.items()):
                for partition, batch in (await consumer.getmany(timeout_ms=500, max_records=20000)).items():
                    found += [
                        Message(partition.partition, one.offset, one.key, one.value, tuple(one.headers))
                        for one in batch
                    ]
                    at[partition] = batch[-1].offset + 1
        return sorted(found, key=lambda message: (message.partition, message.offset))


def main(arguments: Iterable[str] | None = None) -> None:
    """A broker with both topics, until Ctrl-C."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--port", type=int, default=9092)
    parser.add_argument("--folder", type=Path, default=PROJECT / "target" / "kafka" / "data")
    parser.add_argument("--topics", nargs="*", default=["storage_queue", "log_queue", "study_events"])
    options = parser.parse_args(list(arguments) if arguments is not None else None)
    if _is_taken(options.port):
        # A second `make kafka` has the broker that it asked for.
        if run(_is_broker(options.port)):
            print(f"Kafka already runs on 127.0.0.1:{options.port}", flush=True)
            return
        sys.exit(f"something already listens on {options.port}, and it is no Kafka broker")
    # As Ctrl-C does: the broker must not outlive this process.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    broker = KafkaBroker(options.folder, port=options.port).start()
    try:
        existing = run(_topics(broker))
        broker.create_topics(*(topic for topic in options.topics if topic not in existing), partitions=6)
        print(f"Kafka on {broker.address()} with {', '.join(options.topics)}; Ctrl-C stops it", flush=True)
        assert broker.process is not None
        with contextlib.suppress(KeyboardInterrupt):
            broker.process.wait()
    finally:
        broker.stop()


def _is_taken(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


async def _is_broker(port: int) -> bool:
    admin = AIOKafkaAdminClient(bootstrap_servers=f"127.0.0.1:{port}", request_timeout_ms=5000)
    try:
        await admin.start()
    except (KafkaError, OSError):
        return False
    else:
        return True
    finally:
        await admin.close()


async def _topics(broker: KafkaBroker) -> set[str]:
    async with broker._admin() as admin:
        return set(await admin.list_topics())


if __name__ == "__main__":
    main()
