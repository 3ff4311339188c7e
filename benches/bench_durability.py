"""What receivers acknowledged and lost, under kill -9 and power cuts; what each level of durability costs."""

from __future__ import annotations

import os
import random
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pydicom
import pytest

from quiet import quiet
from receivers import DcmtkForking, DicomRs, Orthanc, Ours, Pynetdicom, Receiver
from sender import Round
from support.faults import slice_of_any_size
from support.instances import Instance
from support.load import Ledger, digest, start_senders
from support.mounts import disk
from support.service import ServiceProcess

ROUNDS = int(os.environ.get("STORESCP_DURABILITY_ROUNDS", "5"))
COST_ROUNDS = 7
SENDERS = {"kill -9": 8, "power cut": 4}


class PixelLedger(Ledger):
    """Compares pixels: other receivers may write a data set in their own way."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels: dict[str, bytes] = {}

    def will_send(self, one: Instance) -> None:
        super().will_send(one)
        at = one.dataset.rindex(b"\xe0\x7f\x10\x00OW") + 12
        with self.lock:
            self.pixels[one.sop_instance] = digest(one.dataset[at:])


RECEIVERS: list[type[Receiver]] = [Ours, DcmtkForking, Pynetdicom, DicomRs, Orthanc]


def pixels_of(file: Path) -> tuple[str, bytes] | None:
    """SOP Instance UID and digest of the pixels; None where the file cannot be read to its end."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(file)
            return str(dataset.SOPInstanceUID), digest(dataset.PixelData)
    except Exception:  # noqa: BLE001 - whatever a torn file makes of the reader
        return None


def break_it(receiver: Receiver, ledger: PixelLedger, fault: str, number: int, cut: Callable[[], None]) -> None:
    receiver.start()
    senders = start_senders(
        receiver.port,
        ledger,
        senders=SENDERS[fault],
        count=100_000,
        prefix=f"1.2.826.0.{number}",
        make=slice_of_any_size,
    )
    ledger.wait_for(random.randint(10, 60))
    ledger.freeze()
    cut()
    receiver.kill()
    for sender in senders:
        sender.join(30)
    ledger.freeze(False)


def tell(receiver: Receiver, ledger: PixelLedger, fault: str) -> None:
    whole: set[str] = set()
    partial = 0
    for file in receiver.visible():
        found = pixels_of(file)
        if found is not None and found[1] == ledger.pixels.get(found[0]):
            whole.add(found[0])
        else:
            partial += 1
    lost = len(ledger.uids - whole)
    print(f"\n| {fault} | {receiver.label} | {ROUNDS} | {len(ledger.uids)} | {lost} | {partial} |")
    assert ledger.uids
    if isinstance(receiver, Ours):
        assert (lost, partial) == (0, 0)


@pytest.mark.parametrize("receiver_class", RECEIVERS, ids=lambda one: one.label)
def test_kill(bench_folder: Path, receiver_class: type[Receiver]) -> None:
    if not receiver_class.is_installed():
        pytest.skip(f"{receiver_class.label} is not installed")
    receiver, ledger = receiver_class(bench_folder / "data"), PixelLedger()
    for number in range(ROUNDS):
        break_it(receiver, ledger, "kill -9", number, lambda: None)
    tell(receiver, ledger, "kill -9")


@pytest.mark.parametrize("receiver_class", RECEIVERS, ids=lambda one: one.label)
def test_power_cut(tmp_path: Path, receiver_class: type[Receiver]) -> None:
    if not receiver_class.is_installed():
        pytest.skip(f"{receiver_class.label} is not installed")
    ledger = PixelLedger()
    with disk(tmp_path, megabytes=2048) as power:
        receiver = receiver_class(power.folder / "data")
        for number in range(ROUNDS):
            break_it(receiver, ledger, "power cut", number, power.cut_power)
            power.unmount()
            power.mount()
        tell(receiver, ledger, "power cut")


@pytest.mark.parametrize("associations", [1, 8])
@pytest.mark.parametrize("size", [64, 512], ids=["8 KiB", "512 KiB"])
def test_what_each_level_costs(bench_folder: Path, size: int, associations: int) -> None:
    """Rounds interleaved, medians; every instance must be there in the end."""
    levels = ("none", "data", "full")
    count = 1600 if size == 64 else 320
    services = {
        level: ServiceProcess(bench_folder / level, env={"STORESCP_LOCAL_STORAGE__DURABILITY": level})
        for level in levels
    }
    seconds: dict[str, list[float]] = {level: [] for level in levels}
    for number in range(COST_ROUNDS + 1):
        parts = [
            Round(number * associations + part, count // associations, 16384, rows=size) for part in range(associations)
        ]
        for level, service in services.items():
            quiet(bench_folder)
            began = time.perf_counter()
            with ThreadPoolExecutor(associations) as pool:
                list(pool.map(lambda part, port=service.port: part.send(port), parts))
            if number:
                seconds[level].append(time.perf_counter() - began)
    for service in services.values():
        assert len(service.files()) == count * (COST_ROUNDS + 1)
        assert service.stop() == 0
    rates = {level: count / statistics.median(values) for level, values in seconds.items()}
    told = ", ".join(f"{level} {rate:.0f}/s ({rate / rates['none']:.2f})" for level, rate in rates.items())
    print(f"\n{size * size * 2 >> 10} KiB, {associations} associations: {told}")
