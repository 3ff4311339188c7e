"""Signals under load, and clocks that jump."""

from __future__ import annotations

import random
import select
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.certificates import Pki
from support.faults import Row, rounds, slice_of_any_size
from support.instances import CT, ct_slice
from support.load import CONTEXTS, Ledger, start_senders
from support.scu import IMPLICIT, VERIFICATION, Closed, RawAssociation, Rejected
from support.service import ServiceProcess
from support.waiting import wait_until

StartService = Callable[..., ServiceProcess]
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
DRAIN_SECONDS = 2.0


def seconds_until_nobody_gets_in(port: int) -> float:
    """How long new associations are still accepted."""
    began = time.monotonic()
    while True:
        asked = time.monotonic()
        try:
            with RawAssociation(port, CONTEXTS, timeout=5) as association:
                association.release()
        except (Rejected, Closed, OSError):
            return asked - began
        assert asked - began < 5, "still accepts"


@pytest.mark.timeout(0)
def test_sigterm_under_load(start_service: StartService) -> None:
    row = Row("R12 SIGTERM under load", rounds(100, 5))
    ledger = Ledger()
    root = None
    accepting, ending, at_once = [], [], []
    for number in range(row.rounds):
        service = start_service(root=root, env={"STORESCP_SERVICE__DRAIN_TIMEOUT": str(DRAIN_SECONDS)})
        root = service.root
        row.started(service)
        senders = start_senders(
            service.port, ledger, senders=4, count=100_000, prefix=f"1.2.826.0.{number}", make=slice_of_any_size
        )
        ledger.wait_for(random.randint(5, 40))
        service.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        accepting.append(seconds_until_nobody_gets_in(service.port))
        if number % 5 == 4:
            service.process.send_signal(signal.SIGTERM)
            second = time.monotonic()
            assert service.process.wait(10) == 128 + signal.SIGTERM
            at_once.append(time.monotonic() - second)
        else:
            # What is under way goes on; the senders have all the time until the drain ends.
            before = len(ledger.uids)
            ledger.wait_for(4)
            assert len(ledger.uids) > before
            if number % 2:
                ledger.stop.set()
            assert service.process.wait(30) == 0
            ending.append(time.monotonic() - began)
        for sender in senders:
            sender.join(30)
        ledger.stop.clear()
    service = start_service(root=root)
    assert service.stop() == 0
    row.remark = (
        f"accepting ended within {max(accepting) * 1000:.0f} ms, exit 0 within {max(ending):.2f} s, "
        f"a second signal within {max(at_once):.2f} s"
    )
    row.reconcile(service, ledger)
    row.check()
    assert set(ledger.statuses) == {0}
    assert max(accepting) < 0.1
    assert max(ending) < DRAIN_SECONDS + 5
    assert max(at_once) < 2


@pytest.mark.timeout(0)
def test_sighup_with_a_bad_certificate_under_load(start_service: StartService, tmp_path: Path) -> None:
    row = Row("R12 SIGHUP with a bad certificate under load", rounds(100, 5))
    pki = Pki.make(tmp_path / "pki")
    service = start_service(env=pki.environment(port="0"), listeners=2)
    ledger = Ledger()
    context = pki.context(pki.device)
    senders = start_senders(service.port, ledger, senders=2, count=100_000, make=slice_of_any_size)
    good = pki.server.read_bytes()
    for number in range(1, row.rounds + 1):
        pki.server.write_bytes(random.randbytes(100))
        service.process.send_signal(signal.SIGHUP)
        wait_for_events(service, "reload.failed", number)
        with RawAssociation(service.tls_port, [(1, VERIFICATION, [IMPLICIT])], tls=context) as association:
            assert association.echo(1).status == 0
            association.release()
        pki.server.write_bytes(good)
        service.process.send_signal(signal.SIGHUP)
        wait_for_events(service, "reload.done", number)
    ledger.stop.set()
    for sender in senders:
        sender.join(30)
    assert service.stop() == 0
    row.reconcile(service, ledger)
    row.check()
    assert set(ledger.statuses) == {0}


def wait_for_events(service: ServiceProcess, name: str, count: int) -> None:
    wait_until(lambda: len(service.events(name)) >= count, 10, f"no {name}")


@pytest.mark.timeout(0)
def test_clocks_that_jump_end_nothing_early(start_service: StartService, tmp_path: Path) -> None:
    if not FAKETIME.exists():
        pytest.skip("faketime is not installed")
    row = Row("R13 clock jumps", rounds(20, 6))
    clock = tmp_path / "clock"
    clock.write_text("+0")
    service = start_service(
        env={
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
    )
    ledger = Ledger()
    idle = RawAssociation(service.port, [*CONTEXTS, (5, VERIFICATION, [IMPLICIT])])
    half_open = socket.create_connection(("127.0.0.1", service.port), 5)
    with RawAssociation(service.port, CONTEXTS) as busy:
        for number in range(row.rounds):
            one = ct_slice(number, series="1.2.826.0.6.1", rows=64)
            ledger.will_send(one)
            # The data set is under way when the clock jumps, a day forward or back.
            pieces = busy.store_pdus(1, CT, one.sop_instance, one.dataset)
            busy.send(pieces[: len(pieces) // 2])
            clock.write_text(f"{'+' if number % 2 == 0 else '-'}{random.randint(3600, 86_400)}")
            # Nobody is answered, closed or aborted because of it.
            assert select.select([busy.socket, idle.socket, half_open], [], [], 0.3)[0] == []
            busy.send(pieces[len(pieces) // 2 :])
            ledger.note("1.2.826.0.6.1", one.sop_instance, busy.read_response().status)
            assert idle.echo(5).status == 0
        busy.release()
    half_open.setblocking(False)
    with pytest.raises(BlockingIOError):
        half_open.recv(1)
    half_open.close()
    idle.release()
    assert service.stop() == 0
    hours = {record["created_time"][:13] for record in service.records()}
    assert len(hours) > 1, "the clock did not jump"
    row.reconcile(service, ledger)
    row.check()
    assert set(ledger.statuses) == {0}
