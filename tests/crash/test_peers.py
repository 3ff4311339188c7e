"""Peers that are many, at odds, or gone in the middle of something."""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from support import scu
from support.faults import TOPICS, Row, rounds, slice_of_any_size
from support.instances import CT, Instance, ct_slice, dataset_of, explicit, text
from support.load import CONTEXTS, Ledger, send
from support.scu import Aborted, Closed, RawAssociation, Rejected
from support.service import ServiceProcess
from support.waiting import wait_until

StartService = Callable[..., ServiceProcess]
RESET = struct.pack("ii", 1, 0)


def descriptors_at_rest(service: ServiceProcess, ledger: Ledger) -> int:
    """Once everything was used that stays open: the files of the topics, too."""
    send(service.port, "1.2.826.0.9.1", ledger, count=1)
    for topic in TOPICS:
        service.records(topic, count=1)
    return service.descriptors()


@pytest.mark.timeout(0)
def test_64_descriptors_with_100_associations(start_service: StartService) -> None:
    row = Row("R7 64 descriptors, 100 associations", rounds(10, 2))
    service = start_service(wrapper=("prlimit", "--nofile=64"))
    ledger = Ledger()
    idle = descriptors_at_rest(service, ledger)
    outcomes: Counter[str] = Counter()

    def store_one(number: int) -> str:
        try:
            with RawAssociation(service.port, CONTEXTS, timeout=4) as association:
                one = slice_of_any_size(f"1.2.826.0.1.{number}", number)
                ledger.will_send(one)
                answer = association.store(1, CT, one.sop_instance, one.dataset)
                ledger.note(f"1.2.826.0.1.{number}", one.sop_instance, answer.status)
                barrier.wait(20)
                return f"{answer.status:04X}"
        except (Rejected, Aborted, Closed, OSError) as error:
            barrier.wait(20)
            return type(error).__name__

    for attempt in range(row.rounds):
        barrier = threading.Barrier(100)
        with ThreadPoolExecutor(100) as pool:
            outcomes.update(pool.map(store_one, range(attempt * 100, attempt * 100 + 100)))
        wait_until(lambda: service.descriptors() <= idle, 10)
        one = ct_slice(attempt, series="1.2.826.0.2.1", rows=8)
        ledger.will_send(one)
        with RawAssociation(service.port, CONTEXTS) as association:
            ledger.note(
                "1.2.826.0.2.1", one.sop_instance, association.store(1, CT, one.sop_instance, one.dataset).status
            )
            association.release()
    assert service.temporary_files() == []
    assert service.stop() == 0
    row.remark = ", ".join(f"{outcome} {count}" for outcome, count in sorted(outcomes.items()))
    row.reconcile(service, ledger)
    row.check()
    assert outcomes["0000"] >= row.rounds
    assert set(ledger.statuses) <= {0, 0xA700}


def versions(number: int, count: int, *, differ: bool) -> list[Instance]:
    """The same instance so many times; where they differ, each time with another name of the patient."""
    one = {"series": "1.2.826.0.3.1", "rows": random.choice((8, 64))}
    if not differ:
        return [ct_slice(number, **one)] * count
    names = (explicit(0x00100010, b"PN", text(f"Doe^{index:04}")) for index in range(count))
    return [ct_slice(number, changes={0x00100010: name}, **one) for name in names]


@pytest.mark.timeout(0)
@pytest.mark.parametrize("policy", ["replace", "keep", "reject"])
def test_one_instance_many_times_at_once(start_service: StartService, policy: str) -> None:
    row = Row(f"R10 one instance 1 to 16 times at once, {policy}", rounds(334, 30))
    service = start_service(env={"STORESCP_LOCAL_STORAGE__DUPLICATES": policy})
    associations = [RawAssociation(service.port, CONTEXTS) for _ in range(16)]
    statuses: Counter[int] = Counter()
    with ThreadPoolExecutor(16) as pool:
        for number in range(row.rounds):
            sent = versions(number, random.randint(1, 16), differ=number % 2 == 1)
            barrier = threading.Barrier(len(sent))

            def store(index: int, one: Instance, barrier: threading.Barrier = barrier) -> int:
                barrier.wait(20)
                return associations[index].store(1, CT, one.sop_instance, one.dataset).status

            answers = Counter(pool.map(store, range(len(sent)), sent))
            statuses += answers
            [file] = service.root.rglob(f"{sent[0].sop_instance}.dcm")
            stored = dataset_of(file)
            assert stored in [one.dataset for one in sent], "torn"
            differing = len({one.dataset for one in sent}) > 1
            if differing and policy == "reject":
                assert answers == {0: 1} | ({0xA900: len(sent) - 1} if len(sent) > 1 else {})
            else:
                assert answers == {0: len(sent)}
            row.acknowledged += answers[0]
    for association in associations:
        association.release()
    assert service.temporary_files() == []
    assert service.stop() == 0
    newest = {record["sop_uid"]: record for record in service.records()}
    for file in service.files():
        row.missing += newest.pop(file.stem)["file_size"] != file.stat().st_size
    assert newest == {}
    row.remark = ", ".join(f"{status:04X} {count}" for status, count in sorted(statuses.items()))
    row.check()


def stages(one: Instance) -> dict[str, bytes]:
    """What was sent when the peer goes away."""
    command = scu.fragments(1, True, scu.store_rq(CT, one.sop_instance, 1), 16384)
    dataset = scu.fragments(1, False, one.dataset, 16384)
    return {
        "before anything": b"",
        "mid-command": command[: len(command) // 2],
        "mid-PDV": command + dataset[: random.randrange(7, len(dataset) - 1)],
        "between PDUs": command + dataset[: 16384 + 6],
        "after the last PDV": command + dataset,
    }


def leave(association: RawAssociation, way: str) -> None:
    if way == "abort":
        association.abort()
    elif way == "RST":
        association.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        association.socket.close()
    else:
        association.socket.close()


@pytest.mark.timeout(0)
def test_peers_that_leave_in_the_middle(start_service: StartService) -> None:
    row = Row("R11 abort, RST or FIN at any stage", rounds(500, 45))
    service = start_service(env={"STORESCP_LOCAL_STORAGE__SPOOL_MEMORY_BYTES": "65536"})
    ledger = Ledger()
    idle = descriptors_at_rest(service, ledger)
    slowest = 0.0
    for number in range(row.rounds):
        one = ct_slice(number, series="1.2.826.0.4.1", rows=random.choice((96, 256)))
        ledger.will_send(one)
        ways = stages(one)
        stage = list(ways)[number % len(ways)]
        association = RawAssociation(service.port, CONTEXTS)
        association.send(ways[stage])
        leave(association, ("abort", "RST", "FIN")[number // len(ways) % 3])
        slowest = max(slowest, wait_until(lambda: service.temporary_files() == [], 5))
    slowest = max(slowest, wait_until(lambda: service.descriptors() <= idle, 5))
    send(service.port, "1.2.826.0.5.1", ledger, count=1)
    assert service.stop() == 0
    row.remark = f"nothing left of any after {slowest:.2f} s"
    row.reconcile(service, ledger)
    row.check()
    assert ledger.statuses == {0: 2}
    whole = {file.stem for file in service.files() if file.stem.startswith("1.2.826.0.4.")}
    complete = list(stages(one)).index("after the last PDV")
    assert all(int(uid.rsplit(".", 1)[1]) % len(ways) == complete for uid in whole)
