"""This service and other receivers, on their terms (no syncs) and on ours, beside the least that a receiver can do.

The sender is the Rust one of `storescpd send`; all bytes are made before the clock starts. Rounds are interleaved,
medians are reported, and every status and every stored file is checked.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID

from quiet import empty_large_files, quiet
from receivers import (
    Dcmtk,
    DcmtkAnySyntax,
    DcmtkAsReceived,
    DcmtkForking,
    DicomRs,
    DurableSink,
    Orthanc,
    Ours,
    OursInPython,
    OursTranscoding,
    OursUnsynced,
    Pynetdicom,
    Receiver,
    Sink,
)
from storescp import _core
from support.compressed import JPEG_2000
from support.instances import CT, Instance, ct_slice, dataset_of, explicit
from support.scu import EXPLICIT
from support.waiting import wait_until

WARM_UP = 24
ROUNDS = int(os.environ.get("STORESCP_PEERS_ROUNDS", "15"))
# Receivers that take seconds take part in every third round, where that leaves them enough.
SLOW_EVERY = 3
LEAST_ROUNDS = 5
# A receiver rests that used less than this in such a time; how often to look.
_RESTING_SECONDS = 0.003
_SETTLING_SECONDS = 0.3
_LONGEST_SETTLING_SECONDS = 3
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"
# What large workstations propose.
MANY_CONTEXTS = [(f"1.2.840.10008.5.1.4.1.1.{number}", EXPLICIT) for number in range(1, 129)]
SET_UPS = 60
SERIES = "1.2.826.0.1.3680043.10.9999.55"
FRAME_BYTES = 512 * 512 * 2
ALL: list[type[Receiver]] = [
    Sink,
    OursUnsynced,
    DurableSink,
    Ours,
    OursInPython,
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
    transfer_syntax: str = EXPLICIT

    @property
    def before(self) -> int:
        """Instances that come before a round and do not count.

        A receiver that was not called for ten seconds, because nine others were, is slower at first than one that
        works.
        """
        return WARM_UP if self.count > WARM_UP else 0

    def make(self, number: int) -> list[tuple[str, bytes]]:
        """The instances of a round, and those before it, each with a UID of its own and the same length."""
        series = f"{SERIES}.{1000 + number}"
        changes: dict[int, bytes | None] = {}
        if self.frames > 1:
            pixels = os.urandom(FRAME_BYTES) * self.frames
            changes = {
                0x00280008: explicit(0x00280008, b"IS", f"{self.frames:4}".encode()),
                0x7FE00010: explicit(0x7FE00010, b"OW", pixels),
            }
        template = ct_slice(10000, series=series, rows=self.rows, changes=changes)
        if self.transfer_syntax == JPEG_LOSSLESS:
            template = _with_jpeg_lossless(template)
        elif self.transfer_syntax != EXPLICIT:
            template = replace(
                template, dataset=_core.transcode(template.dataset, EXPLICIT, self.transfer_syntax, 1 << 30)
            )
        placeholder = template.sop_instance.encode()
        uids = [f"{series}.{10001 + index}" for index in range(self.before + self.count)]
        return [(uid, template.dataset.replace(placeholder, uid.encode())) for uid in uids]


def _with_jpeg_lossless(one: Instance) -> Instance:
    """By DCMTK: there is no such encoder in this project."""
    with tempfile.TemporaryDirectory() as folder:
        native, compressed = Path(folder) / "native.dcm", Path(folder) / "compressed.dcm"
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(one.sop_class), UID(one.sop_instance)
        meta.TransferSyntaxUID = UID(EXPLICIT)
        with native.open("wb") as file:
            file.write(bytes(128) + b"DICM")
            write_file_meta_info(file, meta, enforce_standard=True)
            file.write(one.dataset)
        subprocess.run(["dcmcjpeg", "+e1", "+un", native, compressed], check=True)
        return replace(one, dataset=dataset_of(compressed))


LOADS = [
    Load("(a) CT 526 KB, 1 association", 300, 1),
    Load("(b) CT 526 KB, 8 associations", 320, 8),
    Load("(c) 8 KB, 1 association", 1000, 1, rows=64),
    Load("(d) 8 KB, an association each", 200, 0, rows=64),
    Load("(e) one 500 MB instance", 1, 1, frames=954),
    Load("(f) CT in JPEG Lossless, 1 association", 100, 1, transfer_syntax=JPEG_LOSSLESS),
    Load("(f) CT in JPEG 2000, 1 association", 100, 1, transfer_syntax=JPEG_2000),
]
COMPRESSED: list[type[Receiver]] = [
    Sink,
    OursUnsynced,
    OursTranscoding,
    DurableSink,
    Ours,
    DcmtkAnySyntax,
    Orthanc,
    Pynetdicom,
]


@dataclass
class Measured:
    """What the rounds of one receiver gave."""

    rates: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    grown_kib: int = 0
    offered: int = 0
    refused: int = 0

    def add(self, load: Load, seconds: float, latencies: list[float], cpu_seconds: float) -> None:
        self.rates.append(load.count / seconds)
        self.cpu_ms.append(cpu_seconds * 1000 / load.count)
        latencies = sorted(latencies)
        for part, found in ((0.5, self.p50_ms), (0.99, self.p99_ms)):
            found.append(latencies[min(len(latencies) - 1, int(len(latencies) * part))] * 1000)

    def cells(self, megabytes: float, sink: Measured) -> str:
        """Medians of the rounds, percentiles too: one that the host interrupted is one. Their ratios in parentheses."""
        rate, low, high = statistics.median(self.rates), min(self.rates), max(self.rates)
        p50, p99, cpu = (statistics.median(values) for values in (self.p50_ms, self.p99_ms, self.cpu_ms))
        cells = [
            f"{rate:,.0f} ({low:,.0f} to {high:,.0f})",
            f"{rate / statistics.median(sink.rates):.2f}",
            f"{rate * megabytes:,.0f}",
            f"{p50:.2f}",
            f"{p99:.2f} ({p99 / p50:.1f})",
            f"{cpu:.2f} ({cpu / statistics.median(sink.cpu_ms):.2f})",
            f"{cpu / megabytes:.2f}",
            f"{self.grown_kib / 1024:.0f}",
        ]
        return " | ".join(cells)


def send(port: int, load: Load, instances: list[tuple[str, bytes]]) -> list[float]:
    """Seconds of each instance, all of which are taken; an association of its own counts with it."""
    answers = answers_to(port, load, instances)
    assert [status for status, _ in answers] == [0] * len(instances)
    return [seconds for _, seconds in answers]


def answers_to(port: int, load: Load, instances: list[tuple[str, bytes]]) -> list[tuple[int, float]]:
    """Status and seconds of each instance."""

    context = (CT, load.transfer_syntax)

    def associate() -> _core.Sender:
        return _core.Sender("127.0.0.1", port, "BENCH", "ANY-SCP", [context], 120)

    def send_some(some: list[tuple[str, bytes]]) -> list[tuple[int, float]]:
        association = associate()
        answers = association.store_many(*context, some)
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
    return answers


def settled_cpu_seconds(receiver: Receiver) -> float:
    """Once it rests: what a receiver does behind its answers counts too. Some never rest, and are not waited for."""
    began = since = time.monotonic()
    before = receiver.cpu_seconds()

    def rests() -> bool:
        nonlocal before, since
        now, seconds = time.monotonic(), receiver.cpu_seconds()
        if seconds - before >= _RESTING_SECONDS:
            before, since = seconds, now
        return now - since >= _SETTLING_SECONDS or now - began >= _LONGEST_SETTLING_SECONDS

    wait_until(rests)
    return receiver.cpu_seconds()


StartReceivers = Callable[[list[type[Receiver]], int], list[Receiver]]


@pytest.fixture
def start_receivers(bench_folder: Path) -> Iterator[StartReceivers]:
    """Starts those that are installed."""
    started: list[Receiver] = []

    def start(kinds: list[type[Receiver]], max_pdu: int) -> list[Receiver]:
        for number, kind in enumerate(kinds):
            if kind.is_installed():
                started.append(kind(bench_folder / str(number), max_pdu))
                started[-1].start()
        return started

    yield start
    for receiver in started:
        receiver.kill()
    empty_large_files(bench_folder)


@pytest.mark.parametrize("max_pdu", [16384, 131072], ids=["PDU 16 KB", "PDU 128 KB"])
@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.label)
def test_receive(bench_folder: Path, start_receivers: StartReceivers, load: Load, max_pdu: int) -> None:
    receivers = start_receivers(ALL if load.transfer_syntax == EXPLICIT else COMPRESSED, max_pdu)
    measured = {receiver.label: Measured() for receiver in receivers}
    idle = {receiver.label: receiver.rss_kib("VmRSS") for receiver in receivers}
    slow_every = SLOW_EVERY if ROUNDS >= SLOW_EVERY * LEAST_ROUNDS else 1
    for number in range(ROUNDS + 1):
        instances = load.make(number)
        megabytes = len(instances[0][1]) / 1e6
        some = [receiver for receiver in receivers if number % slow_every == 0 or not receiver.is_slow]
        # In another order each time: whoever comes next finds the memory and the disk as the one before left them.
        for receiver in random.Random(number).sample(some, len(some)):
            quiet(bench_folder, round(megabytes * 1e6) * len(instances))
            answers = answers_to(receiver.port, load, instances[: load.before]) if load.before else []
            cpu, began = receiver.cpu_seconds(), time.perf_counter()
            measured_answers = answers_to(receiver.port, load, instances[load.before :])
            seconds = time.perf_counter() - began
            latencies = [latency for _, latency in measured_answers]
            found = measured[receiver.label]
            found.offered += len(instances)
            found.refused += sum(status != 0 for status, _ in answers + measured_answers)
            assert not found.refused or receiver.may_refuse, f"{receiver.label} refused {found.refused}"
            cpu = settled_cpu_seconds(receiver) - cpu
            if number:
                found.add(load, seconds, latencies, cpu)
    for receiver in receivers:
        found = measured[receiver.label]
        expected = found.offered - found.refused
        sizes = [file.stat().st_size for file in receiver.visible()]
        assert len(sizes) == expected, f"{receiver.label} stored {len(sizes)} of {expected}"
        assert sum(sizes) >= megabytes * 1e6 * expected, f"{receiver.label} stored too little"
        found.grown_kib = receiver.rss_kib("VmHWM") - idle[receiver.label]
        if load.frames > 1:
            # Few and large. Small ones stay until the end: ext4 avoids inodes that were deleted in the last minutes.
            shutil.rmtree(receiver.folder, ignore_errors=True)
    print(f"\n{load.label}, PDU {max_pdu}\n")
    print(
        "| receiver | syncs | instances/s (range) | of the sink | MB/s | p50 ms | p99 ms (of p50) | "
        "CPU ms each (of the sink's) | CPU s per GB | peak RSS MiB above idle |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for receiver in receivers:
        sink = measured[(Sink if receiver.syncs == "no" else DurableSink).label]
        found = measured[receiver.label]
        remark = f" (refused {found.refused} of {found.offered})" if found.refused else ""
        print(f"| {receiver.label}{remark} | {receiver.syncs} | {found.cells(megabytes, sink)} |")


@pytest.mark.parametrize("contexts", [MANY_CONTEXTS[1:2], MANY_CONTEXTS], ids=["1 context", "128 contexts"])
def test_association_set_up(start_receivers: StartReceivers, contexts: list[tuple[str, str]]) -> None:
    """From the connection to the A-ASSOCIATE-AC."""
    receivers = start_receivers(ALL, 16384)
    seconds: dict[str, list[float]] = {receiver.label: [] for receiver in receivers}
    for number in range(SET_UPS):
        for receiver in random.Random(number).sample(receivers, len(receivers)):
            began = time.perf_counter()
            association = _core.Sender("127.0.0.1", receiver.port, "BENCH", "ANY-SCP", contexts, 60)
            seconds[receiver.label].append(time.perf_counter() - began)
            association.release()
    print(f"\nAssociation set-up, {len(contexts)} contexts\n")
    print("| receiver | first ms | then p50 ms | p99 ms |")
    print("|---|---|---|---|")
    for label, (first, *rest) in seconds.items():
        rest.sort()
        p50, p99 = rest[len(rest) // 2], rest[int(len(rest) * 0.99)]
        print(f"| {label} | {first * 1000:.2f} | {p50 * 1000:.2f} | {p99 * 1000:.2f} |")
