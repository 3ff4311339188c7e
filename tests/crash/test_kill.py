"""kill -9 under load: what was acknowledged is there, whole, and recorded."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from dataclasses import replace

import pytest

from storescp import _core
from support.compressed import JPEG_LS, ONLY_EXPLICIT
from support.faults import (
    DURABILITIES,
    ELSEWHERE,
    ONLY_WHERE_SYNCED,
    Row,
    kill_under_load,
    names_of_fail_points,
    rounds,
)
from support.instances import Instance, ct_slice
from support.load import Ledger, Make, start_senders, study_of
from support.scu import EXPLICIT
from support.service import DidNotStartError, ServiceProcess

StartService = Callable[..., ServiceProcess]


@pytest.mark.timeout(0)
@pytest.mark.parametrize("engine", ["rust", "python"])
def test_kill_under_load_loses_nothing_that_was_acknowledged(start_service: StartService, engine: str) -> None:
    row = Row(f"R1 kill -9 at a random moment, {engine} engine", rounds(1000, 8))
    if engine == "python":
        row.rounds = max(2, row.rounds // 8)
    ledger = Ledger()
    root = None
    for number in range(row.rounds):
        service = start_service(root=root, engine=engine, env=DURABILITIES[number % 2])
        root = service.root
        row.started(service)
        assert service.temporary_files() == []
        kill_under_load(service, ledger, f"1.2.826.0.{number}", senders=8, after=(10, 60))
        row.interrupted(root)
    service = start_service(root=root, engine=engine)
    row.started(service)
    assert service.stop() == 0
    row.reconcile(service, ledger)
    row.check()
    assert row.slowest_start < 2 or engine == "python"


@pytest.mark.timeout(0)
def test_each_engine_takes_up_what_the_other_left(start_service: StartService) -> None:
    row = Row("R1 kill -9, the engines by turns", rounds(100, 4))
    ledger = Ledger()
    root = None
    for number in range(row.rounds):
        service = start_service(root=root, engine=("rust", "python")[number % 2])
        root = service.root
        row.started(service)
        kill_under_load(service, ledger, f"1.2.826.0.{number}", senders=4, after=(10, 40))
        row.interrupted(root)
    service = start_service(root=root)
    row.started(service)
    assert service.stop() == 0
    row.reconcile(service, ledger)
    row.check()


def test_a_release_has_no_fail_points() -> None:
    assert not [name for name, _ in _core.build_info() if "fail points" in name]


def slice_to_transcode_now_and_then(ledger: Ledger) -> Make:
    """Every fourth is stored as something else than it was sent as."""

    def make(series: str, number: int) -> Instance:
        one = ct_slice(number, study=study_of(series), series=series, rows=64)
        if number % 4:
            return one
        compressed = _core.transcode(one.dataset, EXPLICIT, JPEG_LS, 1 << 30)
        stored = replace(one, dataset=_core.transcode(compressed, JPEG_LS, EXPLICIT, 1 << 30))
        ledger.will_send(stored)
        return replace(one, transfer_syntax=JPEG_LS, dataset=compressed)

    return make


@pytest.mark.timeout(0)
def test_kill_at_each_step_of_the_commit(start_service: StartService, fail_points: dict[str, str]) -> None:
    names = [name for name in names_of_fail_points(fail_points) if name not in ELSEWHERE]
    repeats = rounds(20, 1)
    row = Row(f"R2 kill at each of {len(names)} fail points", repeats * len(names))
    ledger = Ledger()
    root = None
    for number, name in enumerate(names * repeats):
        point = {"STORESCP_FAIL_POINT": f"{name}:{random.randrange(12)}"}
        durability = DURABILITIES[name not in ONLY_WHERE_SYNCED and (number + number // len(names)) % 2]
        try:
            service = start_service(root=root, env=fail_points | ONLY_EXPLICIT | durability | point)
        except DidNotStartError as error:  # the records of the round before are published from the start
            if error.exit_code != -signal.SIGKILL:
                raise
            continue
        root = service.root
        row.started(service)
        assert service.temporary_files() == []
        senders = start_senders(
            service.port,
            ledger,
            senders=4,
            count=10_000,
            prefix=f"1.2.826.0.{number}",
            make=slice_to_transcode_now_and_then(ledger),
        )
        assert service.process.wait(60) == -signal.SIGKILL, f"{name} was not reached"
        for sender in senders:
            sender.join(30)
        row.interrupted(root)
    service = start_service(root=root)
    row.started(service)
    assert service.stop() == 0
    row.reconcile(service, ledger)
    row.check()
    assert row.slowest_start < 2
