"""Memory that deflated data sets and large multi-frame instances may take; run alone."""

from __future__ import annotations

import os
import re
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from storescp import _core
from support.compressed import ONLY_EXPLICIT, RLE, compressed_ct
from support.instances import CT, Instance, ct_slice, dataset_of, explicit, text
from support.scu import EXPLICIT, RawAssociation
from support.service import ServiceProcess

pytestmark = pytest.mark.ceiling
StartService = Callable[..., ServiceProcess]
DEFLATED = "1.2.840.10008.1.2.1.99"
GIB = 1 << 30


def send(service: ServiceProcess, one: Instance, transfer_syntax: str) -> int:
    with RawAssociation(service.port, [(1, CT, [transfer_syntax])], timeout=180) as association:
        status = association.store(1, CT, one.sop_instance, one.dataset).status
        association.release()
    return status


def deflate(parts: list[bytes]) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = b"".join(map(stream.compress, parts)) + stream.flush()
    return packed + b"\0" * (len(packed) % 2)


def bomb(*, well_formed: bool) -> Instance:
    """One megabyte that inflates to one gibibyte."""
    one = ct_slice(1, rows=4)
    megabyte = bytes(1 << 20)
    if well_formed:
        head = one.dataset[: one.dataset.index(b"\xe0\x7f\x10\x00OW")]
        parts = [head, explicit(0x7FE00010, b"OW", b"", GIB)] + [megabyte] * 1024
    else:
        # Zero bytes might follow.
        parts = [one.dataset] + [b"\1" * len(megabyte)] * 1024
    return Instance(CT, one.sop_instance, DEFLATED, deflate(parts))


def anonymous_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+)", status)[1])  # type: ignore[index]


class Watch:
    """The most anonymous memory of the service and its workers together, while it is open."""

    def __init__(self, service: ServiceProcess) -> None:
        self._service = service
        self._over = threading.Event()
        self.largest = 0
        self.workers = 0
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        over = False
        while not over:
            over = self._over.wait(0.01)
            self._look()

    def _look(self) -> None:
        children = Path(f"/proc/{self._service.process.pid}/task").glob("*/children")
        pids = {int(pid) for file in children for pid in file.read_text().split()}
        total = anonymous_kib(self._service.process.pid)
        for pid in pids:
            try:
                total += anonymous_kib(pid)
            except (OSError, TypeError):
                continue
        self.largest, self.workers = max(self.largest, total), max(self.workers, len(pids))


def test_a_deflate_bomb_costs_no_memory(start_service: StartService) -> None:
    """Inflated in a window only as far as needed: C000, or the limit, or stored as the megabyte that it is."""
    service = start_service()
    limited = start_service(
        root=service.root.parent / "limited", env={"STORESCP_LIMITS__MAX_DECODED_BYTES": str(64 << 20)}
    )
    junk, whole = bomb(well_formed=False), bomb(well_formed=True)
    assert len(whole.dataset) < 2 << 20
    for scp, one, expected in ((service, junk, 0xC000), (limited, whole, 0xC000), (service, whole, 0)):
        idle = scp.rss_kib()
        assert send(scp, one, DEFLATED) == expected
        assert scp.rss_kib("VmHWM") - idle < 16 * 1024
    [file] = service.files()
    assert dataset_of(file) == whole.dataset
    assert limited.files() == []


def test_a_deflate_bomb_that_must_be_transcoded_costs_one_worker_its_memory_at_most(
    start_service: StartService,
) -> None:
    service = start_service(env=ONLY_EXPLICIT | {"STORESCP_TRANSCODING__WORKER_MEMORY_BYTES": str(256 << 20)})
    assert send(service, compressed_ct(5, RLE), RLE) == 0
    whole = bomb(well_formed=True)
    idle = service.rss_kib()
    with Watch(service) as watch:
        assert send(service, whole, DEFLATED) == 0
    assert service.rss_kib("VmHWM") - idle < 16 * 1024
    assert watch.largest < (256 + 128) * 1024
    [record] = [one for one in service.records(count=2) if one["sop_uid"] == whole.sop_instance]
    assert record["transfer_status"] == "Failed"
    [file] = [file for file in service.files() if file.stem == whole.sop_instance]
    assert dataset_of(file) == whole.dataset
    assert send(service, compressed_ct(6, RLE), RLE) == 0


@pytest.mark.timeout(300)
def test_a_1_gib_multi_frame_instance_is_transcoded_in_64_mib(start_service: StartService, tmp_path: Path) -> None:
    facts = os.statvfs(tmp_path)
    if facts.f_bavail * facts.f_frsize < 4 * GIB:
        pytest.skip("needs 4 GiB of free space")
    service = start_service(env=ONLY_EXPLICIT)
    frames, rows = 2048, 512
    one = compressed_ct(2, RLE, frames=2, rows=rows)
    begin = one.dataset.index(b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff")
    single = compressed_ct(2, RLE, rows=rows).dataset
    item = single[single.rindex(b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff") + 20 : -8]
    head = one.dataset[:begin].replace(
        explicit(0x00280008, b"IS", text("2")), explicit(0x00280008, b"IS", text(str(frames)))
    )
    table = b"\xfe\xff\x00\xe0\0\0\0\0"
    end = b"\xfe\xff\xdd\xe0\0\0\0\0"
    flat = head + one.dataset[begin : begin + 12] + table + item * frames + end
    assert send(service, compressed_ct(1, RLE, rows=rows), RLE) == 0
    with Watch(service) as idle:
        assert send(service, compressed_ct(3, RLE, rows=rows), RLE) == 0
    with Watch(service) as watch:
        assert send(service, Instance(CT, one.sop_instance, RLE, flat), RLE) == 0
    grown = (watch.largest - idle.largest) / 1024
    print(f"\n1 GiB of pixels in {frames} frames: service and workers {grown:.1f} MiB above idle")
    assert grown <= 64
    [file] = [file for file in service.files() if file.stem == one.sop_instance]
    assert file.stat().st_size > frames * rows * rows * 2
    native = _core.transcode(single, RLE, EXPLICIT, 1 << 30)[-rows * rows * 2 :]
    with file.open("rb") as stored:
        for frame in (0, frames // 2, frames - 1):
            stored.seek(file.stat().st_size - (frames - frame) * rows * rows * 2)
            assert stored.read(rows * rows * 2) == native
