"""All faults of a broker, one after the other, under one load: see docs/discussion/measurements.md for the long run."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from storescp import outbox
from support.broker import KafkaBroker, Topics
from support.instances import Instance, ct_slice, explicit, text
from support.kafka_proxy import KafkaProxy
from support.load import Ledger, check_delivery, check_files, send, study_of
from support.service import ServiceProcess

Serve = Callable[..., ServiceProcess]
RECORDS = int(os.environ.get("STORESCP_SOAK_RECORDS", "6000"))
SENDERS = 8
# Characters that take three bytes each make a record larger than the topic allows.
LARGE: dict[int, bytes | None] = {
    0x00100020: explicit(0x00100020, b"LO", text("グ" * 64)),
    0x00080050: explicit(0x00080050, b"SH", text("グ" * 16)),
}


@dataclass
class Load:
    """Senders that go on, association after association, until told to stop."""

    service: ServiceProcess
    ledger: Ledger = field(default_factory=Ledger)
    over: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._send, args=(sender,)) for sender in range(SENDERS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.over.set()
            for thread in threads:
                thread.join(60)

    def _send(self, sender: int) -> None:
        number = 0
        while not self.over.wait(0.02):
            series = f"1.2.826.0.5.{sender}.{number}.1"
            send(self.service.port, series, self.ledger, count=200, make=now_and_then_a_large_one)
            number += 1

    def wait_for(self, count: int) -> float:
        """Until `count` more are acknowledged; how many a second."""
        began, before = time.monotonic(), self.ledger.statuses[0]
        while self.ledger.statuses[0] - before < count:
            assert time.monotonic() - began < 300
            threading.Event().wait(0.02)
        return (self.ledger.statuses[0] - before) / (time.monotonic() - began)


def now_and_then_a_large_one(series: str, number: int) -> Instance:
    return ct_slice(number, study=study_of(series), series=series, rows=4, changes=LARGE if number == 100 else None)


def pending(service: ServiceProcess) -> int:
    connection = outbox.open_outbox(service.root)
    (rows,) = connection.execute("SELECT count(*) FROM instance WHERE pending <> 0").fetchone()
    connection.close()
    return int(rows)


def wait_until_delivered(service: ServiceProcess) -> None:
    deadline = time.monotonic() + 300
    while pending(service):
        assert time.monotonic() < deadline
        threading.Event().wait(0.1)


@pytest.mark.timeout(0)
def test_every_fault_of_a_broker_under_one_load(
    serve: Serve, broker: KafkaBroker, proxied: KafkaProxy, names: Topics
) -> None:
    part = RECORDS // 7
    broker.create_topics(*names)
    service = serve(
        broker.address("PROXIED"),
        names,
        kafka={"request_timeout": 5},
        # A phase without a broker has room for what comes while the broker is being stopped.
        env={"STORESCP_OUTBOX__MAX_ROWS": str(part * 4)},
    )
    load = Load(service)
    send(service.port, "1.2.826.0.5.9.1", load.ledger, count=1)
    [sample] = broker.read(names.log, count=1)
    just_enough = len(sample.key) + len(sample.value) + 260
    rates: dict[str, float] = {}
    memory: dict[str, int] = {}

    def measure(phase: str) -> None:
        rates[phase] = load.wait_for(part)
        memory[phase] = service.rss_kib() // 1024

    with load.running():
        measure("normal")
        wait_until_delivered_enough(service, part)
        broker.alter_topic(names.main, max_message_bytes=just_enough)
        measure("refusing")
        wait_for_dead_letters(service, names)
        broker.alter_topic(names.main, max_message_bytes=1_000_000)
        wait_until_delivered_enough(service, part)
        proxied.disconnect()
        broker.kill()
        measure("unreachable")
        broker.start()
        wait_until_delivered_enough(service, part)
        broker.pause()
        measure("frozen")
        broker.resume()
        wait_until_delivered_enough(service, part)
        proxied.delay = 0.2
        measure("slow")
        proxied.delay = 0.0
        wait_until_delivered_enough(service, part)
        broker.kill()
        limit_reached(load)
        memory["at the limit"] = service.rss_kib() // 1024
        broker.start()
        measure("after the limit")
    wait_until_delivered(service)
    memory["delivered"] = service.rss_kib() // 1024

    view = outbox.open_outbox(service.root, write=True)
    dead = list(outbox.entries(view, tuple(names), dead=True, limit=1_000_000))
    assert dead
    assert all("MessageSizeTooLarge" in (one.error or "") for one in dead)
    assert outbox.request_retry(view, None) == len(dead)
    deadline = time.monotonic() + 60
    while list(outbox.entries(view, tuple(names), dead=True, limit=1)):
        assert time.monotonic() < deadline
        threading.Event().wait(0.1)
    wait_until_delivered(service)
    assert service.stop() == 0
    retried = {
        json.loads(payload)["sop_uid"] for (payload,) in view.execute("SELECT payload FROM instance WHERE attempts > 0")
    }
    view.close()
    check_files(service, load.ledger)
    deliveries = [
        check_delivery(service, load.ledger, broker.read(topic), retried=retried if topic == names.main else ())
        for topic in names
    ]
    print(
        f"\n{len(load.ledger.uids)} acknowledged, {load.ledger.statuses[0xA700]} A700, {len(dead)} set aside and retried"
    )
    print(f"rejected associations {dict(load.ledger.rejections)}; 0 missing; {deliveries}")
    print(f"acknowledged per second: { {phase: round(rate) for phase, rate in rates.items()} }")
    print(f"resident MiB: {memory}")
    assert set(load.ledger.statuses) == {0, 0xA700}
    assert set(load.ledger.rejections) <= {(2, 3, 1)}
    # Python's and SQLite's caches grow at first; what a backlog of records would take is far more.
    assert memory["delivered"] - memory["normal"] < 64


def wait_until_delivered_enough(service: ServiceProcess, rows: int) -> None:
    deadline = time.monotonic() + 120
    while pending(service) > rows // 4:
        assert time.monotonic() < deadline
        threading.Event().wait(0.05)


def limit_reached(load: Load) -> None:
    deadline = time.monotonic() + 300
    while not (load.ledger.statuses[0xA700] and load.ledger.rejections):
        assert time.monotonic() < deadline
        threading.Event().wait(0.05)


def wait_for_dead_letters(service: ServiceProcess, names: Topics) -> None:
    connection = outbox.open_outbox(service.root)
    deadline = time.monotonic() + 60
    while not list(outbox.entries(connection, tuple(names), dead=True, limit=1)):
        assert time.monotonic() < deadline
        threading.Event().wait(0.05)
    connection.close()
