"""This service and other receivers, on their terms (no syncs) and on ours, beside the least that a receiver can do.

The sender is the Rust one of `storescpd send`; all bytes are made before the clock starts. Rounds are interleaved,
medians are reported, and every status and every stored file is checked.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from quiet import quiet
from receivers import (
    Dcmtk,
    DcmtkAsReceived,
    DcmtkForking,
    DicomRs,
    DurableSink,
    Orthanc,
    Ours,
    OursUnsynced,
    Pynetdicom,
    Receiver,
    Sink,
)
from storescp import _core
from support.instances import CT, ct_slice, explicit
from support.scu import EXPLICIT

ROUNDS = int(os.environ.get("STORESCP_PEERS_ROUNDS", "5"))
CONTEXT = (CT, EXPLICIT)
SERIES = "1.2.826.0.1.3680043.10.9999.55"
FRAME_BYTES = 512 * 512 * 2
ALL: list[type[Receiver]] = [
    Sink,
    OursUnsynced,
    DurableSink,
    Ours,
    Dcmtk,
    DcmtkForking,
    DcmtkAsReceived,
    DicomRs,
    Orthanc,
    Pynetdicom,
]


@dataclass(frozen=True)
class Load:
    """`count` instances over `associations` at once; 0: an association for each."""

    label: str
    count: int
    associations: int
    rows: int = 512
    frames: int = 1

    def make(self, number: int) -> list[tuple[str, bytes]]:
        """The instances of a round, each with a UID of its own and the same length."""
        series = f"{SERIES}.{number:04}"
        changes: dict[int, bytes | None] = {}
        if self.frames > 1:
            pixels = os.urandom(FRAME_BYTES) * self.frames
            changes = {
                0x00280008: explicit(0x00280008, b"IS", f"{self.frames:4}".encode()),
                0x7FE00010: explicit(0x7FE00010, b"OW", pixels),
            }
        template = ct_slice(10000, series=series, rows=self.rows, changes=changes)
        placeholder = template.sop_instance.encode()
        uids = [f"{series}.{10001 + index}" for index in range(self.count)]
        return [(uid, template.dataset.replace(placeholder, uid.encode())) for uid in uids]


LOADS = [
    Load("(a) CT 526 KB, 1 association", 300, 1),
    Load("(b) CT 526 KB, 8 associations", 320, 8),
    Load("(c) 8 KB, 1 association", 1000, 1, rows=64),
    Load("(d) 8 KB, an association each", 200, 0, rows=64),
    Load("(e) one 500 MB instance", 1, 1, frames=954),
]


@dataclass
class Measured:
    """What the rounds of one receiver gave."""

    rates: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    grown_kib: int = 0

    def cells(self, load: Load, megabytes: float) -> str:
        rate, low, high = statistics.median(self.rates), min(self.rates), max(self.rates)
        latencies = sorted(self.latencies)
        p50, p99 = (latencies[min(len(latencies) - 1, int(len(latencies) * part))] * 1000 for part in (0.5, 0.99))
        cells = [
            f"{rate:,.0f} ({low:,.0f} to {high:,.0f})",
            f"{rate * megabytes / load.count:,.0f}",
            f"{p50:.2f}",
            f"{p99:.2f}",
            f"{statistics.median(self.cpu_ms):.2f}",
            f"{self.grown_kib / 1024:.0f}",
        ]
        return " | ".join(cells)


def send(port: int, load: Load, instances: list[tuple[str, bytes]]) -> list[float]:
    """Seconds of each instance; an association of its own counts with it."""

    def associate() -> _core.Sender:
        return _core.Sender("127.0.0.1", port, "BENCH", "ANY-SCP", [CONTEXT], 120)

    def send_some(some: list[tuple[str, bytes]]) -> list[tuple[int, float]]:
        association = associate()
        answers = association.store_many(*CONTEXT, some)
        association.release()
        return answers

    if load.associations == 0:
        answers = []
        for one in instances:
            began = time.perf_counter()
            [(status, _)] = send_some([one])
            answers.append((status, time.perf_counter() - began))
    elif load.associations == 1:
        answers = send_some(instances)
    else:
        parts = [instances[first :: load.associations] for first in range(load.associations)]
        with ThreadPoolExecutor(load.associations) as pool:
            answers = [answer for part in pool.map(send_some, parts) for answer in part]
    assert [status for status, _ in answers] == [0] * len(instances)
    return [seconds for _, seconds in answers]


@pytest.fixture
def receivers(bench_folder: Path, request: pytest.FixtureRequest) -> Iterator[list[Receiver]]:
    started = []
    for number, kind in enumerate(ALL):
        if kind.is_installed():
            started.append(kind(bench_folder / str(number), request.param))
            started[-1].start()
    yield started
    for receiver in started:
        receiver.kill()


@pytest.mark.parametrize("receivers", [16384, 131072], indirect=True, ids=["PDU 16 KB", "PDU 128 KB"])
@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.label)
def test_receive(bench_folder: Path, receivers: list[Receiver], load: Load) -> None:
    measured = {receiver.label: Measured() for receiver in receivers}
    idle = {receiver.label: receiver.rss_kib("VmRSS") for receiver in receivers}
    expected = 0
    for number in range(ROUNDS + 1):
        instances = load.make(number)
        megabytes = sum(len(dataset) for _, dataset in instances) / 1e6
        expected += len(instances)
        for receiver in receivers:
            quiet(bench_folder)
            cpu, began = receiver.cpu_seconds(), time.perf_counter()
            latencies = send(receiver.port, load, instances)
            seconds = time.perf_counter() - began
            if number:
                one = measured[receiver.label]
                one.rates.append(load.count / seconds)
                one.cpu_ms.append((receiver.cpu_seconds() - cpu) * 1000 / load.count)
                one.latencies += latencies
    for receiver in receivers:
        sizes = [file.stat().st_size for file in receiver.visible()]
        assert len(sizes) == expected, f"{receiver.label} stored {len(sizes)} of {expected}"
        assert sum(sizes) >= megabytes * 1e6 * (ROUNDS + 1), f"{receiver.label} stored too little"
        measured[receiver.label].grown_kib = receiver.rss_kib("VmHWM") - idle[receiver.label]
        shutil.rmtree(receiver.folder, ignore_errors=True)
    print(f"\n{load.label}, PDU {receivers[0].max_pdu}\n")
    print("| receiver | syncs | instances/s (range) | MB/s | p50 ms | p99 ms | CPU ms each | peak RSS MiB above idle |")
    print("|---|---|---|---|---|---|---|---|")
    for receiver in receivers:
        print(f"| {receiver.label} | {receiver.syncs} | {measured[receiver.label].cells(load, megabytes)} |")
