"""A disk that is slow or hangs: what is not held up goes on, and nothing is lost, also where the process ends meanwhile."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import pytest

from support.compressed import ONLY_EXPLICIT
from support.faults import (
    DURABILITIES,
    ELSEWHERE,
    ONLY_WHERE_SYNCED,
    Row,
    kill_under_load,
    names_of_fail_points,
    rounds,
)
from support.instances import CT
from support.load import CONTEXTS, Ledger, small_slice
from support.scu import RawAssociation
from support.service import ServiceProcess

StartService = Callable[..., ServiceProcess]
# Steps of one instance, in which it holds nothing that another one needs.
OF_ONE_INSTANCE = (
    "received",
    "row_asked_for",
    "data_written",
    "row_durable",
    "folder_made",
    "named",
    "data_synced",
    "folder_synced",
    "row_publishable",
    "answered",
)
# Steps of the outbox, which all instances share.
OF_ALL = ("row_written", "journal_written", "journal_synced", "commit_begun", "commit_done", "delivered")
HANG_SECONDS = 45.0 if rounds(20, 0) else 2.5
SENDERS, INSTANCES = 5, 30


class Timed:
    """Senders with one association and one series each, which note how long each answer took, in seconds."""

    def __init__(self, port: int, prefix: str) -> None:
        self.port = port
        self.ledger = Ledger()
        self.seconds: list[float] = []
        self._threads = [threading.Thread(target=self._send, args=(f"{prefix}.{one}.1",)) for one in range(SENDERS)]
        for thread in self._threads:
            thread.start()

    def _send(self, series: str) -> None:
        with RawAssociation(self.port, CONTEXTS, timeout=HANG_SECONDS + 30) as association:
            for number in range(INSTANCES):
                one = small_slice(series, number)
                self.ledger.will_send(one)
                began = time.monotonic()
                answer = association.store(1, CT, one.sop_instance, one.dataset)
                self.seconds.append(time.monotonic() - began)
                self.ledger.note(series, one.sop_instance, answer.status)
            association.release()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(HANG_SECONDS + 60)
            assert not thread.is_alive()


def hung(name: str) -> dict[str, str]:
    return {"STORESCP_FAIL_POINT": f"{name}:7:hang={HANG_SECONDS * 1000:.0f}"}


@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", OF_ONE_INSTANCE)
def test_an_instance_that_hangs_at_a_step_holds_up_no_other(
    start_service: StartService, fail_points: dict[str, str], name: str
) -> None:
    row = Row(f"delay: one instance hangs at {name} for {HANG_SECONDS:.0f} s", 1)
    service = start_service(env=fail_points | DURABILITIES[0] | hung(name))
    senders = Timed(service.port, "1.2.826.0.1")
    senders.join()
    held_up = [seconds for seconds in senders.seconds if seconds > HANG_SECONDS / 2]
    assert len(held_up) == 1, f"{name}: {sorted(senders.seconds)[-5:]}"
    # At "answered" the answer has left, and the one behind it is late.
    assert held_up[0] > HANG_SECONDS * 0.9
    assert senders.ledger.statuses == {0: SENDERS * INSTANCES}
    assert service.stop() == 0
    row.reconcile(service, senders.ledger)
    row.check()


@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", OF_ALL)
def test_an_outbox_that_hangs_at_a_step_refuses_and_loses_nothing(
    start_service: StartService, fail_points: dict[str, str], name: str
) -> None:
    # Whoever waits ten seconds for the journal is refused.
    pause = min(HANG_SECONDS, 5.0)
    row = Row(f"delay: the outbox hangs at {name} for {pause:.0f} s", 1)
    point = {"STORESCP_FAIL_POINT": f"{name}:1:hang={pause * 1000:.0f}"}
    service = start_service(env=fail_points | DURABILITIES[0] | point)
    senders = Timed(service.port, "1.2.826.0.1")
    senders.join()
    assert senders.ledger.statuses == {0: SENDERS * INSTANCES}
    service.records(count=SENDERS * INSTANCES)
    assert service.stop() == 0
    row.reconcile(service, senders.ledger)
    row.check()


@pytest.mark.timeout(0)
def test_kill_while_a_step_of_the_commit_is_slow(start_service: StartService, fail_points: dict[str, str]) -> None:
    names = [name for name in names_of_fail_points(fail_points) if name not in ELSEWHERE]
    repeats = rounds(20, 1)
    row = Row(f"R2 kill -9 while each of {len(names)} fail points takes 30 ms", repeats * len(names))
    ledger = Ledger()
    root = None
    for number, name in enumerate(names * repeats):
        point = {"STORESCP_FAIL_POINT": f"{name}:{random.randrange(12)}:slow=30"}
        durability = DURABILITIES[name not in ONLY_WHERE_SYNCED and (number + number // len(names)) % 2]
        service = start_service(root=root, env=fail_points | ONLY_EXPLICIT | durability | point)
        root = service.root
        row.started(service)
        assert service.temporary_files() == []
        kill_under_load(service, ledger, f"1.2.826.0.{number}", senders=4, after=(5, 30))
        row.interrupted(root)
    service = start_service(root=root)
    row.started(service)
    assert service.stop() == 0
    row.reconcile(service, ledger)
    row.check()
