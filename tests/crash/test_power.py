"""Power cuts: what is not on the disk when it happens never gets there."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from storescp import _core
from support.compressed import JPEG_LS, ONLY_EXPLICIT
from support.faults import Row, is_whole, rounds, slice_of_any_size
from support.instances import CT, Instance, ct_slice
from support.load import Ledger, start_senders
from support.mounts import Disk, disk
from support.scu import EXPLICIT, Closed, RawAssociation
from support.service import ServiceProcess

StartService = Callable[..., ServiceProcess]
PART_BYTES = 70_000
SMALL = {"STORESCP_LOCAL_STORAGE__MIN_FREE_BYTES": str(1 << 20)}
# What a file system has in memory is taken away, or any part of what the disk has there.
NAMES = {False: "", True: ", a disk with a cache"}
DISKS = [
    ("rust", "ext4", False),
    ("rust", "ext4 without journal", False),
    ("rust", "xfs", False),
    ("rust", "ext4", True),
    ("rust", "xfs", True),
    ("rust", "btrfs", True),
    ("python", "xfs", True),
]


def cut_power_under_load(
    start_service: StartService, power: Disk, ledger: Ledger, number: int, durability: str, engine: str = "rust"
) -> ServiceProcess:
    """One round. What is acknowledged after the cut does not count: nobody could have noticed."""
    level = {"STORESCP_LOCAL_STORAGE__DURABILITY": durability}
    service = start_service(root=power.folder / "data", env=SMALL | ONLY_EXPLICIT | level, engine=engine)

    def make(series: str, number: int) -> Instance:
        """Every third is transcoded."""
        one = slice_of_any_size(series, number)
        if number % 3 != 1:
            return one
        ledger.will_send(one)
        return replace(one, transfer_syntax=JPEG_LS, dataset=_core.transcode(one.dataset, EXPLICIT, JPEG_LS, 1 << 30))

    senders = start_senders(service.port, ledger, senders=4, count=100_000, prefix=f"1.2.826.0.{number}", make=make)
    ledger.wait_for(random.randint(10, 60))
    ledger.freeze()
    power.cut_power()
    service.kill()
    for sender in senders:
        sender.join(30)
    ledger.freeze(False)
    power.unmount()
    power.mount()
    return service


@pytest.mark.timeout(0)
@pytest.mark.parametrize(("engine", "kind", "caches"), DISKS)
def test_a_power_cut_loses_nothing_that_was_acknowledged(
    start_service: StartService, tmp_path: Path, engine: str, kind: str, caches: bool
) -> None:
    row = Row(f"R4 power cut, {engine} engine, durability full, {kind}{NAMES[caches]}", rounds(200, 4))
    ledger = Ledger()
    with disk(tmp_path, megabytes=1024, kind=kind, caches=caches) as power:
        for number in range(row.rounds):
            service = cut_power_under_load(start_service, power, ledger, number, "full", engine)
            row.started(service)
            # Before anything puts it right.
            of_this_round = [file for file in service.files() if f"1.2.826.0.{number}." in file.stem]
            assert all(is_whole(file, ledger.digests[file.stem]) for file in of_this_round)
        service = start_service(root=power.folder / "data", env=SMALL, engine=engine)
        if engine == "rust":
            recovery = service.wait_for_event("recovery.finished")
            assert (recovery["recorded"], recovery["records_without_file"]) == (0, 0)
        assert service.stop() == 0
        row.reconcile(service, ledger)
    row.check()
    assert row.slowest_start < 2


@pytest.mark.timeout(0)
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_power_cut_in_a_first_start_does_not_hinder_the_next(
    start_service: StartService, tmp_path: Path, kind: str
) -> None:
    row = Row(f"R4 power cut in a first start, {kind}, a disk with a cache", rounds(100, 4))
    with disk(tmp_path, megabytes=1024, kind=kind, caches=True) as power:
        for number in range(row.rounds):
            root = power.folder / f"data-{number}"
            first = subprocess.Popen(
                [sys.executable, "-m", "storescp", "-p", "0", "-o", root],
                env=os.environ | SMALL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            with contextlib.suppress(subprocess.TimeoutExpired):
                first.wait(random.uniform(0.2, 1))
            power.cut_power()
            first.kill()
            first.wait(20)
            power.unmount()
            power.mount()
            service = start_service(root=root, env=SMALL)
            row.started(service)
            one = ct_slice(number, rows=64)
            with RawAssociation(service.port, [(1, CT, [EXPLICIT])]) as association:
                assert association.store(1, CT, one.sop_instance, one.dataset).status == 0
                association.release()
            assert service.stop() == 0
            assert [record["sop_uid"] for record in service.records()] == [one.sop_instance]
    print(f"\n{row}")


@pytest.mark.timeout(0)
@pytest.mark.parametrize("caches", [False, True])
@pytest.mark.parametrize("durability", ["data", "none"])
def test_the_control_does_lose(start_service: StartService, tmp_path: Path, durability: str, caches: bool) -> None:
    """Without it the row above would prove nothing: the model must be able to take something away."""
    row = Row(f"R4 power cut, control with durability {durability}{NAMES[caches]}", rounds(50, 2))
    ledger = Ledger()
    with disk(tmp_path, megabytes=1024, caches=caches) as power:
        for number in range(row.rounds):
            cut_power_under_load(start_service, power, ledger, number, durability)
        service = start_service(root=power.folder / "data", env=SMALL)
        assert service.stop() == 0
        row.compare(service, ledger)
    print(f"\n{row}")
    # What another sender's directory entry takes along is a matter of chance.
    assert row.lost or durability == "data"
    assert not row.partial or durability == "none"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("durability", ["full", "none"])
@pytest.mark.parametrize("engine", ["rust", "python"])
def test_a_part_of_a_file_that_was_left_in_its_place_goes_to_quarantine(
    start_service: StartService, fail_points: dict[str, str], engine: str, durability: str
) -> None:
    """What a file system that does not keep the order may leave, or is left of an instance that was acknowledged."""
    service, (first, second) = left_with_a_part(start_service, fail_points, durability)
    service = start_service(root=service.root, engine=engine)
    assert [file.stem for file in service.files()] == [first.sop_instance]
    [part] = (service.root / ".quarantine").glob("*.dcm")
    assert part.stat().st_size == PART_BYTES
    with RawAssociation(service.port, [(1, CT, [EXPLICIT])]) as again:
        assert again.store(1, CT, second.sop_instance, second.dataset).status == 0
        again.release()
    assert service.stop() == 0
    assert len(service.files()) == 2
    assert sorted(record["sop_uid"] for record in service.records()) == [first.sop_instance, second.sop_instance]


def left_with_a_part(
    start_service: StartService, fail_points: dict[str, str], durability: str
) -> tuple[ServiceProcess, tuple[Instance, Instance]]:
    """One instance is acknowledged; the process ends when the next one has its name, and half of it is lost then."""
    level = {"STORESCP_LOCAL_STORAGE__DURABILITY": durability}
    service = start_service(env=fail_points | level | {"STORESCP_FAIL_POINT": "named:1"})
    first, second = (ct_slice(number, rows=256) for number in (1, 2))
    with RawAssociation(service.port, [(1, CT, [EXPLICIT])]) as association:
        assert association.store(1, CT, first.sop_instance, first.dataset).status == 0
        with pytest.raises((Closed, OSError)):
            association.store(1, CT, second.sop_instance, second.dataset)
    assert service.process.wait(20) < 0
    files = {file.stem: file for file in service.files()}
    assert set(files) == {first.sop_instance, second.sop_instance}
    with files[second.sop_instance].open("r+b") as part:
        part.truncate(PART_BYTES)
    return service, (first, second)
