"""Power cuts: what is not on the disk when it happens never gets there."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from support.faults import Row, rounds, slice_of_any_size
from support.load import Ledger, start_senders
from support.mounts import Disk, disk
from support.service import ServiceProcess

StartService = Callable[..., ServiceProcess]
SMALL = {"STORESCP_LOCAL_STORAGE__MIN_FREE_BYTES": str(1 << 20)}


def cut_power_under_load(
    start_service: StartService, power: Disk, ledger: Ledger, number: int, durability: str
) -> float:
    """One round. What is acknowledged after the cut does not count: nobody could have noticed. How long start-up took."""
    service = start_service(root=power.folder / "data", env=SMALL | {"STORESCP_LOCAL_STORAGE__DURABILITY": durability})
    senders = start_senders(
        service.port, ledger, senders=4, count=100_000, prefix=f"1.2.826.0.{number}", make=slice_of_any_size
    )
    ledger.wait_for(random.randint(10, 60))
    ledger.freeze()
    power.cut_power()
    service.kill()
    for sender in senders:
        sender.join(30)
    ledger.freeze(False)
    power.unmount()
    power.mount()
    return service.ready_seconds


@pytest.mark.timeout(0)
def test_a_power_cut_loses_nothing_that_was_acknowledged(start_service: StartService, tmp_path: Path) -> None:
    row = Row("R4 power cut, durability full", rounds(200, 4))
    ledger = Ledger()
    with disk(tmp_path, megabytes=1024) as power:
        for number in range(row.rounds):
            seconds = cut_power_under_load(start_service, power, ledger, number, "full")
            row.slowest_start = max(row.slowest_start, seconds)
        service = start_service(root=power.folder / "data", env=SMALL)
        recovery = service.wait_for_event("recovery.finished")
        assert (recovery["recorded"], recovery["records_without_file"]) == (0, 0)
        assert service.stop() == 0
        row.reconcile(service, ledger)
    row.check()
    assert row.slowest_start < 2


@pytest.mark.timeout(0)
@pytest.mark.parametrize("durability", ["data", "none"])
def test_the_control_does_lose(start_service: StartService, tmp_path: Path, durability: str) -> None:
    """Without it the row above would prove nothing: the model must be able to take something away."""
    row = Row(f"R4 power cut, control with durability {durability}", rounds(50, 2))
    ledger = Ledger()
    with disk(tmp_path, megabytes=1024) as power:
        for number in range(row.rounds):
            cut_power_under_load(start_service, power, ledger, number, durability)
        service = start_service(root=power.folder / "data", env=SMALL)
        assert service.stop() == 0
        row.compare(service, ledger)
    print(f"\n{row}")
    # What another sender's directory entry takes along is a matter of chance.
    assert row.lost or durability == "data"
    assert not row.partial or durability == "none"
