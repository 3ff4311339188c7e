"""A broker that is away, hangs, dies, refuses, or loses its answers: reception goes on, and every record arrives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.broker import KafkaBroker, Topics
from support.instances import CT, ct_slice, explicit, text
from support.kafka_proxy import KafkaProxy
from support.load import CONTEXTS, Ledger, check_delivery, check_files, send, start_senders
from support.scu import RawAssociation, Rejected
from support.service import ServiceProcess

Serve = Callable[..., ServiceProcess]
StartService = Callable[..., ServiceProcess]
# More in the long run: see the Makefile.
LOST_ANSWERS = int(os.environ.get("STORESCP_LOST_ANSWERS", "40"))


def storescp(service: ServiceProcess, topics: Topics, *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "storescp", "-o", str(service.root), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | topics.env,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def status(service: ServiceProcess, topics: Topics) -> dict[str, dict[str, Any]]:
    document = json.loads(storescp(service, topics, "outbox", "status", "--json"))
    return {topic["topic"]: topic for topic in document["topics"]}


def wait_for(condition: Callable[[], bool], timeout: float = 40.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.1)


def send_all(port: int, ledger: Ledger, *, senders: int = 4, count: int = 25, prefix: str = "1.2.826.0.1") -> None:
    for thread in start_senders(port, ledger, senders=senders, count=count, prefix=prefix):
        thread.join(60)


def test_reception_starts_and_goes_on_without_a_broker(serve: Serve, broker: KafkaBroker, topics: Topics) -> None:
    broker.kill()
    service = serve(broker.address(), topics)
    ledger = Ledger()
    send_all(service.port, ledger)
    assert ledger.statuses == {0: 100}
    wait_for(lambda: all(one["failures"] >= 2 for one in status(service, topics).values()))
    for one in status(service, topics).values():
        assert (one["pending"], one["dead"]) == (100, 0)
        assert one["oldest"] is not None
        assert one["last_error"] == f"{broker.address()}: connection refused"
    assert service.events("publish.failed")[0]["reason"] == f"{broker.address()}: connection refused"
    shown = storescp(service, topics, "outbox", "status")
    assert f"{topics.main}: 100 pending, oldest " in shown
    assert "in a row): " in shown
    assert storescp(service, topics, "outbox", "list", "--limit", "7").count("pending  ") == 7
    broker.start()
    wait_for(lambda: all(one["pending"] == 0 for one in status(service, topics).values()))
    assert all(
        "recovered" in line for line in storescp(service, topics, "outbox", "status").splitlines() if "error" in line
    )
    assert service.stop() == 0
    for topic in topics:
        assert check_delivery(service, ledger, broker.read(topic)).duplicates == 0


def test_a_service_that_never_saw_a_broker_stops_in_time_and_delivers_after_the_next_start(
    serve: Serve, broker: KafkaBroker, topics: Topics
) -> None:
    broker.kill()
    service = serve(broker.address(), topics, env={"STORESCP_SERVICE__PUBLISH_TIMEOUT": "1"})
    ledger = Ledger()
    send_all(service.port, ledger)
    began = time.monotonic()
    assert service.stop() == 0
    assert time.monotonic() - began < 6
    assert service.events("outbox.not_empty")
    broker.start()
    again = serve(broker.address(), topics)
    assert again.stop() == 0
    for topic in topics:
        assert check_delivery(again, ledger, broker.read(topic)).duplicates == 0


def test_a_broker_that_hangs(serve: Serve, broker: KafkaBroker, topics: Topics) -> None:
    service = serve(broker.address(), topics, kafka={"request_timeout": 2})
    ledger = Ledger()
    send_all(service.port, ledger)
    wait_for(lambda: broker.end(topics.log) == broker.end(topics.main) == 100)
    broker.pause()
    try:
        send_all(service.port, ledger, prefix="1.2.826.0.2")
        assert ledger.statuses == {0: 200}
        event = service.wait_for_event("publish.failed", 20)
        assert event["reason"].startswith("no acknowledgement")
        assert status(service, topics)[topics.main]["pending"] == 100
    finally:
        broker.resume()
    assert service.stop() == 0
    for topic in topics:
        assert check_delivery(service, ledger, broker.read(topic)).duplicates == 0


def test_a_broker_that_hangs_longer_than_a_producer_lives(serve: Serve, broker: KafkaBroker, topics: Topics) -> None:
    service = serve(broker.address(), topics, kafka={"request_timeout": 1, "delivery_timeout": 2})
    ledger = Ledger()
    send_all(service.port, ledger)
    wait_for(lambda: broker.end(topics.log) == broker.end(topics.main) == 100)
    broker.pause()
    try:
        send_all(service.port, ledger, prefix="1.2.826.0.2")
        for part in ("not acknowledged within 2 s", "accepts connections but does not answer"):
            wait_for(lambda part=part: any(part in event["reason"] for event in service.events("publish.failed")))
    finally:
        broker.resume()
    assert service.stop() == 0
    for topic in topics:
        check_delivery(service, ledger, broker.read(topic))


def test_a_service_whose_broker_hangs_still_stops(serve: Serve, broker: KafkaBroker, topics: Topics) -> None:
    service = serve(broker.address(), topics, env={"STORESCP_SERVICE__PUBLISH_TIMEOUT": "1"})
    ledger = Ledger()
    send_all(service.port, ledger)
    wait_for(lambda: broker.end(topics.log) == broker.end(topics.main) == 100)
    broker.pause()
    try:
        send_all(service.port, ledger, prefix="1.2.826.0.2")
        began = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - began < 12
    finally:
        broker.resume()
    again = serve(broker.address(), topics)
    assert again.stop() == 0
    for topic in topics:
        check_delivery(again, ledger, broker.read(topic))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("victim", ["broker", "service"])
def test_kill_nine_three_times_under_load(serve: Serve, broker: KafkaBroker, topics: Topics, victim: str) -> None:
    service = serve(broker.address(), topics)
    ledger = Ledger()
    for number in range(3):
        senders = start_senders(service.port, ledger, senders=8, count=10_000, prefix=f"1.2.826.0.{number}")
        for _ in range(600):
            assert ledger.enough.acquire(timeout=30)
        if victim == "broker":
            broker.kill()
            for _ in range(600):
                assert ledger.enough.acquire(timeout=30)
            broker.start()
            for _ in range(300):
                assert ledger.enough.acquire(timeout=30)
        else:
            service.kill()
        ledger.stop.set()
        for sender in senders:
            sender.join(30)
        ledger.stop.clear()
        if victim == "service":
            service = serve(broker.address(), topics)
    assert service.stop() == 0
    check_files(service, ledger)
    for topic in topics:
        delivery = check_delivery(service, ledger, broker.read(topic))
        print(f"\n{victim} killed 3 times: {len(ledger.uids)} acknowledged, {delivery}, 0 missing")


def test_a_topic_that_does_not_exist_holds_up_only_itself(serve: Serve, broker: KafkaBroker, names: Topics) -> None:
    broker.create_topics(names.log)
    service = serve(broker.address(), names, kafka={"request_timeout": 1})
    ledger = Ledger()
    send_all(service.port, ledger)
    wait_for(lambda: broker.end(names.log) == 100)
    wait_for(lambda: status(service, names)[names.main]["last_error"] is not None)
    assert status(service, names)[names.main]["last_error"] == (
        f"topic {names.main} does not exist, and the broker does not make it"
    )
    assert status(service, names)[names.log]["last_error"] is None
    broker.create_topics(names.main)
    wait_for(lambda: status(service, names)[names.main]["pending"] == 0)
    assert service.stop() == 0
    for topic in names:
        assert check_delivery(service, ledger, broker.read(topic)).duplicates == 0


def test_a_record_that_is_too_large_is_set_aside_and_the_others_go_on(
    serve: Serve, broker: KafkaBroker, names: Topics
) -> None:
    broker.create_topics(names.log, partitions=1)
    service = serve(broker.address(), names, kafka={"request_timeout": 1})
    ledger = Ledger()
    send(service.port, "1.2.826.0.8.1", ledger, count=1)
    [sample] = broker.read(names.log, count=1)
    broker.create_topics(names.main, partitions=1, max_message_bytes=len(sample.key) + len(sample.value) + 240)
    # Characters that take several bytes each make a record larger than the topic allows.
    changes = {
        0x00100020: explicit(0x00100020, b"LO", text("グ" * 64)),
        0x00080050: explicit(0x00080050, b"SH", text("グ" * 16)),
    }
    series = "1.2.826.0.9.1"
    with RawAssociation(service.port, CONTEXTS) as association:
        for number in range(60):
            large = number in {7, 8, 30}
            one = ct_slice(number, study="1.2.826.0.9", series=series, rows=4, changes=changes if large else None)
            answer = association.store(1, CT, one.sop_instance, one.dataset)
            ledger.note(series, one.sop_instance, answer.status)
        association.release()
    assert ledger.statuses == {0: 61}
    wait_for(lambda: status(service, names)[names.main]["pending"] == 0)
    assert status(service, names)[names.main]["dead"] == 3
    dead = storescp(service, names, "outbox", "list", "--dead").splitlines()
    assert len(dead) == 3
    assert all(names.main in line and names.log not in line and "MessageSizeTooLarge" in line for line in dead), dead
    assert len(service.events("publish.rejected")) == 3
    arrived = {json.loads(message.value)["sop_uid"] for message in broker.read(names.main)}
    assert ledger.uids - arrived == {f"{series}.{number}" for number in (7, 8, 30)}
    broker.alter_topic(names.main, max_message_bytes=100_000)
    assert storescp(service, names, "outbox", "retry", "--all") == "3 to be tried again\n"
    wait_for(lambda: status(service, names)[names.main]["dead"] == 0)
    assert service.stop() == 0
    assert check_delivery(service, ledger, broker.read(names.log)).records == 61
    main = [json.loads(message.value)["sop_uid"] for message in broker.read(names.main)]
    assert sorted(main) == sorted(ledger.uids)


def refusals_of(topic: str, uid: str, code: int) -> Callable[[str, bytes], int]:
    """Refuses the batches of a topic that hold the record of an instance."""
    return lambda name, batch: code if name == topic and f'"{uid}"'.encode() in batch else 0


REFUSED = "1.2.826.0.1.1.1.7"


def send_while_one_is_refused(
    serve: Serve, broker: KafkaBroker, proxied: KafkaProxy, names: Topics, code: int
) -> tuple[ServiceProcess, Ledger]:
    """Sixty instances of three keys; the main topic refuses the batches that hold the record of REFUSED."""
    broker.create_topics(*names, partitions=1)
    proxied.refuse = refusals_of(names.main, REFUSED, code)
    service = serve(broker.address("PROXIED"), names)
    ledger = Ledger()
    send_all(service.port, ledger, senders=3, count=20)
    return service, ledger


# UNKNOWN_SERVER_ERROR, a code that no broker has yet, CORRUPT_MESSAGE.
@pytest.mark.parametrize("code", [-1, 999, 2])
def test_an_error_that_may_pass_by_itself_never_sets_a_record_aside(
    serve: Serve, broker: KafkaBroker, proxied: KafkaProxy, names: Topics, code: int
) -> None:
    service, ledger = send_while_one_is_refused(serve, broker, proxied, names, code)
    wait_for(lambda: status(service, names)[names.main]["failures"] >= 6)
    main = status(service, names)[names.main]
    assert (main["pending"], main["dead"]) == (13, 0), "its key waits, and the other keys have gone on"
    assert f"[Error {code if code == 2 else -1}]" in main["last_error"]
    assert status(service, names)[names.log]["pending"] == 0
    proxied.refuse = None
    wait_for(lambda: status(service, names)[names.main]["pending"] == 0)
    assert service.stop() == 0
    for topic in names:
        assert check_delivery(service, ledger, broker.read(topic)).duplicates == 0


# INVALID_RECORD, POLICY_VIOLATION.
@pytest.mark.parametrize("code", [87, 44])
def test_a_record_that_the_broker_s_validation_refuses_is_set_aside(
    serve: Serve, broker: KafkaBroker, proxied: KafkaProxy, names: Topics, code: int
) -> None:
    service, ledger = send_while_one_is_refused(serve, broker, proxied, names, code)
    wait_for(lambda: status(service, names)[names.main]["dead"] == 1)
    wait_for(lambda: status(service, names)[names.main]["pending"] == 0)
    [rejected] = service.events("publish.rejected")
    assert f"[Error {code}]" in rejected["reason"]
    proxied.refuse = None
    assert storescp(service, names, "outbox", "retry", "--all") == "1 to be tried again\n"
    wait_for(lambda: broker.end(names.main) == 60)
    assert service.stop() == 0
    for topic in names:
        check_delivery(service, ledger, broker.read(topic), retried=[REFUSED])


def test_beyond_the_limit_new_work_is_refused_as_transient_until_there_is_room(
    serve: Serve, broker: KafkaBroker, topics: Topics
) -> None:
    broker.kill()
    service = serve(broker.address(), topics, env={"STORESCP_OUTBOX__MAX_ROWS": "50"})
    ledger = Ledger()
    with RawAssociation(service.port, CONTEXTS) as association:
        for number in range(60):
            one = ct_slice(number, study="1.2.826.0.1", series="1.2.826.0.1.1", rows=4)
            answer = association.store(1, CT, one.sop_instance, one.dataset)
            ledger.note("1.2.826.0.1.1", one.sop_instance, answer.status)
        association.release()
    assert ledger.statuses == {0: 50, 0xA700: 10}
    with pytest.raises(Rejected) as rejected, RawAssociation(service.port, CONTEXTS):
        pass
    assert rejected.value.code == (2, 3, 1)
    assert len(service.files()) == 50
    broker.start()
    wait_for(lambda: all(one["pending"] == 0 for one in status(service, topics).values()))
    send(service.port, "1.2.826.0.1.1", ledger, count=10, begin=50)
    assert ledger.statuses == {0: 60, 0xA700: 10}
    assert service.stop() == 0
    for topic in topics:
        assert check_delivery(service, ledger, broker.read(topic)).duplicates == 0


@pytest.mark.timeout(300)
def test_answers_that_are_lost_after_the_write(
    serve: Serve, broker: KafkaBroker, proxied: KafkaProxy, topics: Topics
) -> None:
    service = serve(broker.address("PROXIED"), topics, kafka={"batch_num_messages": 5, "linger_ms": 0})
    ledger = Ledger()
    proxied.dropped = 0
    proxied.drop_answers(LOST_ANSWERS, every=3)
    number = 0
    while not proxied.is_done:
        send_all(service.port, ledger, count=40, prefix=f"1.2.826.{number}")
        number += 1
        wait_for(lambda: all(one["pending"] == 0 for one in status(service, topics).values()), 60)
    assert service.stop() == 0
    assert proxied.dropped == LOST_ANSWERS
    for topic in topics:
        delivery = check_delivery(service, ledger, broker.read(topic))
        print(f"\n{proxied.dropped} answers lost: {len(ledger.uids)} acknowledged, {delivery}, 0 missing")


def test_a_slow_broker(serve: Serve, broker: KafkaBroker, proxied: KafkaProxy, topics: Topics) -> None:
    proxied.delay = 0.5
    service = serve(broker.address("PROXIED"), topics)
    ledger = Ledger()
    began = time.monotonic()
    send_all(service.port, ledger, count=50)
    assert time.monotonic() - began < 10
    assert service.stop() == 0
    for topic in topics:
        assert check_delivery(service, ledger, broker.read(topic)).duplicates == 0


def test_a_log_of_an_outage_is_short(serve: Serve, broker: KafkaBroker, topics: Topics) -> None:
    service = serve(broker.address(), topics)
    ledger = Ledger()
    send_all(service.port, ledger)
    broker.kill()
    send_all(service.port, ledger, prefix="1.2.826.0.2")
    service.wait_for_event("publish.failed", 20)
    lines = [line for line in service.log().splitlines() if "kafka" in line.lower()]
    assert len(lines) < 20, "\n".join(lines)
    broker.start()
    assert service.stop() == 0


def test_secrets_stay_out_of_log_and_configuration(tmp_path: Path, start_service: StartService) -> None:
    env = {
        "STORESCP_KAFKA__BROKERS": "127.0.0.1:1",
        "STORESCP_KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "STORESCP_KAFKA__SASL_MECHANISM": "PLAIN",
        "STORESCP_KAFKA__SASL_USERNAME": "alice",
        "STORESCP_KAFKA__SASL_PASSWORD": "canary-password",
    }
    service = start_service(env=env | {"STORESCP_SERVICE__PUBLISH_TIMEOUT": "0.5"})
    send(service.port, "1.2.3.1", Ledger(), count=1)
    service.wait_for_event("publish.failed")
    assert service.stop() == 0
    assert "canary-password" not in service.log()
    shown = subprocess.run(
        [sys.executable, "-m", "storescp", "check-config"],
        capture_output=True, text=True, check=True, timeout=60, env=os.environ | env,
    )  # fmt: skip
    assert "canary-password" not in shown.stdout + shown.stderr
