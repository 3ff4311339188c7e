"""Ten instances of 1 GiB at once in 512 MiB of memory, decoders included."""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import xxhash

from support import scu
from support.compressed import JPEG_LS, ONLY_EXPLICIT, compressed_ct
from support.control_groups import ControlGroup, NoControlGroupsError, control_group
from support.faults import Row, rounds
from support.instances import CT, ct_slice, explicit, text
from support.load import CONTEXTS, Ledger
from support.scu import RawAssociation
from support.service import ServiceProcess

StartService = Callable[..., ServiceProcess]
LIMIT = 512 << 20
ROWS = 512
FRAME_BYTES = ROWS * ROWS * 2
STEP = 16378


@contextlib.contextmanager
def limit() -> Iterator[ControlGroup | None]:
    """A control group that holds the service; None where none can be made: then its memory is looked at now and then."""
    with contextlib.ExitStack() as made:
        try:
            group = made.enter_context(control_group(memory_bytes=LIMIT))
        except NoControlGroupsError:
            group = None
        yield group


def resident_bytes(service: ServiceProcess) -> int:
    """Memory that is its own, of the service and its workers: what they share counts once."""
    total = 0
    children = Path(f"/proc/{service.process.pid}/task")
    pids = {service.process.pid}
    for task in children.iterdir():
        with contextlib.suppress(OSError):
            pids |= {int(pid) for pid in (task / "children").read_text().split()}
    for pid in pids:
        with contextlib.suppress(OSError, KeyError):
            fields = dict(line.split()[:2] for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
            total += int(fields["Pss:"]) << 10
    return total


def send_large(port: int, ledger: Ledger, number: int, frames: int) -> None:
    """One multi-frame instance, every other one compressed."""
    is_compressed = number % 2 == 1
    series = f"1.2.826.0.8.{number}"
    changes = {0x00280008: explicit(0x00280008, b"IS", text(str(frames))), 0x7FE00010: None}
    head = ct_slice(number, series=series, rows=ROWS, changes=changes)
    native = compressed_frame = ct_slice(number, rows=ROWS).dataset[-FRAME_BYTES:]
    opening = native_opening = explicit(0x7FE00010, b"OW", b"", frames * FRAME_BYTES)
    closing = b""
    if is_compressed:
        compressed = compressed_ct(number, JPEG_LS, rows=ROWS).dataset
        at = compressed.index(struct.pack("<HH2s", 0x7FE0, 0x0010, b"OB")) + 12
        table = 8 + struct.unpack_from("<L", compressed, at + 4)[0]
        opening = explicit(0x7FE00010, b"OB", b"", 0xFFFFFFFF) + struct.pack("<HHL", 0xFFFE, 0xE000, 0)
        compressed_frame = compressed[at + table : -8]
        closing = compressed[-8:]
    for first, each, last in ((native_opening, native, b""), (opening, compressed_frame, closing)):
        digest = xxhash.xxh3_128(head.dataset + first)
        for _ in range(frames):
            digest.update(each)
        digest.update(last)
        with ledger.lock:
            ledger.digests[head.sop_instance].add(digest.digest())
    pdus = b"".join(
        scu.pdata(scu.pdv(3 if is_compressed else 1, 0, compressed_frame[at : at + STEP]))
        for at in range(0, len(compressed_frame), STEP)
    )
    context = 3 if is_compressed else 1
    with RawAssociation(port, CONTEXTS, timeout=300) as association:
        association.send(scu.fragments(context, True, scu.store_rq(CT, head.sop_instance, 1), 16384))
        association.send(scu.pdata(scu.pdv(context, 0, head.dataset + opening)))
        for _ in range(frames):
            association.send(pdus)
        association.send(scu.pdata(scu.pdv(context, 2, closing)))
        ledger.note(series, head.sop_instance, association.read_response().status)
        association.release()


@pytest.mark.timeout(0)
def test_ten_large_instances_in_little_memory(start_service: StartService, tmp_path: Path) -> None:
    repeats = rounds(5, 1)
    size = (1 << 30) if "STORESCP_CRASH_ROUNDS" in os.environ else (128 << 20)
    facts = os.statvfs(tmp_path)
    if facts.f_bavail * facts.f_frsize < 13 * size:
        pytest.skip(f"needs {13 * size >> 30} GiB of free space")
    row = Row(f"R14 ten multi-frame instances of {size >> 20} MiB at once, 512 MiB of memory", repeats)
    highest = 0
    acknowledged = 0
    for number in range(repeats):
        with limit() as group:
            wrapper = () if group is None else group.wrapper
            service = start_service(root=tmp_path / f"data-{number}", env=ONLY_EXPLICIT, wrapper=wrapper)
            ledger = Ledger()
            senders = [
                threading.Thread(target=send_large, args=(service.port, ledger, sender, size // FRAME_BYTES))
                for sender in range(10)
            ]
            for sender in senders:
                sender.start()
            while any(sender.is_alive() for sender in senders):
                senders[0].join(0.2)
                highest = max(highest, resident_bytes(service))
            assert service.stop() == 0
            assert group is None or group.kills() == 0
            kind = "watched" if group is None else "in a control group"
            row.remark = f"{kind}, {highest >> 20} MiB at most"
        assert sum(ledger.statuses.values()) == 10
        assert set(ledger.statuses) <= {0, 0xA700}
        row.reconcile(service, ledger)
        acknowledged += row.acknowledged
        for file in service.files():
            file.unlink()
    row.acknowledged = acknowledged
    row.check()
    assert highest < LIMIT
