"""Hard limits of memory and time; run alone."""

from __future__ import annotations

import os
import random
import statistics
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from storescp.network.contexts import known_transfer_syntaxes, storage_sop_classes
from support import scu
from support.instances import CT, ct_slice, explicit
from support.scu import EXPLICIT, RawAssociation, associate_rq
from support.service import ServiceProcess

pytestmark = pytest.mark.ceiling
StartService = Callable[..., ServiceProcess]
CONTEXTS = [(1, CT, [EXPLICIT])]
GIB = 1 << 30


@pytest.mark.timeout(300)
def test_a_2_gb_instance_takes_at_most_64_mib_of_memory(start_service: StartService, tmp_path: Path) -> None:
    facts = os.statvfs(tmp_path)
    if facts.f_bavail * facts.f_frsize < 5 * GIB:
        pytest.skip("needs 5 GiB of free space")
    scp = start_service()
    with RawAssociation(scp.port, CONTEXTS) as warm_up:
        one = ct_slice(1)
        assert warm_up.store(1, CT, one.sop_instance, one.dataset).status == 0
        warm_up.release()
    idle = scp.rss_kib()
    frames = 4096
    instance = ct_slice(
        2,
        changes={
            0x00280008: explicit(0x00280008, b"IS", str(frames).encode()),
            0x7FE00010: explicit(0x7FE00010, b"OW", b"", frames * 512 * 512 * 2),
        },
    )
    frame = random.randbytes(512 * 512 * 2)
    step = 16378
    pdus = [scu.pdata(scu.pdv(1, 0, frame[at : at + step])) for at in range(0, len(frame), step)]
    block = b"".join(pdus)
    with RawAssociation(scp.port, CONTEXTS, timeout=120) as association:
        association.send(scu.fragments(1, True, scu.store_rq(CT, instance.sop_instance, 1), 16384))
        association.send(scu.pdata(scu.pdv(1, 0, instance.dataset)))
        for _ in range(frames):
            association.send(block)
        association.send(scu.pdata(scu.pdv(1, 2, b"")))
        assert association.read_response().status == 0
        association.release()
    grown = (scp.rss_kib("VmHWM") - idle) / 1024
    print(f"\n2 GiB instance: peak RSS {grown:.1f} MiB above idle")
    assert grown <= 64
    [file] = [file for file in scp.files() if file.stem == instance.sop_instance]
    assert file.stat().st_size > 2 * GIB
    with file.open("rb") as stored:
        stored.seek(-len(frame), os.SEEK_END)
        assert stored.read() == frame


def median_set_up_ms(port: int, requests: list[bytes]) -> float:
    seconds = []
    for request in requests:
        started = time.perf_counter()
        association = RawAssociation(port, [], request=request)
        seconds.append(time.perf_counter() - started)
        association.release()
    return statistics.median(seconds) * 1000


def test_association_set_up_takes_at_most_8_ms(scp: ServiceProcess) -> None:
    classes, syntaxes = sorted(storage_sop_classes()), sorted(known_transfer_syntaxes())
    few = [(2 * n + 1, uid, syntaxes[:3]) for n, uid in enumerate(classes[:20])]
    many = [(2 * n + 1, uid, syntaxes[:4]) for n, uid in enumerate(classes[:128])]
    known = median_set_up_ms(scp.port, [associate_rq(many)] * 31)
    print(f"\nset-up: 128 contexts seen before {known:.1f} ms")
    assert known <= 8
    for contexts in (few, many):
        never_seen = [associate_rq(contexts, extra_items=scu.item(0x55, f"VERSION{n}".encode())) for n in range(31)]
        new = median_set_up_ms(scp.port, never_seen)
        print(f"{len(contexts)} contexts never seen {new:.1f} ms")
        assert new <= 8


def large_request(kind: str, number: int) -> bytes:
    """An A-ASSOCIATE-RQ of 0.95 MB that no other one equals."""
    ours = [(2 * n + 1, uid) for n, uid in enumerate(sorted(storage_sop_classes())[:128])]
    version = scu.item(0x55, f"V{number}".encode())
    if kind == "short syntaxes":  # 128 contexts of 1,000 each, of six or seven bytes
        contexts = [(id_, uid, [f"1.{one}" for one in range(1000)]) for id_, uid in ours[:104]]
    elif kind == "long syntaxes":
        contexts = [(id_, uid, [f"1.2.{number}.{one}.{'9' * 40}" for one in range(130)]) for id_, uid in ours]
    elif kind == "foreign classes":
        contexts = [(id_, f"1.2.{number}.{id_}", [f"1.2.{one:055}" for one in range(120)]) for id_, _ in ours]
    else:  # unknown items
        contexts = [(id_, uid, [EXPLICIT]) for id_, uid in ours]
        unknown = b"".join(scu.item(0x99, bytes(65_000)) for _ in range(14))
        request = associate_rq(contexts, extra_items=version)
        return request[:2] + struct.pack(">L", len(request) - 6 + len(unknown)) + request[6:] + unknown
    return associate_rq(contexts, extra_items=version)


KINDS_OF_REQUESTS = ("short syntaxes", "long syntaxes", "foreign classes", "unknown items")


def test_a_thousand_requests_of_a_megabyte_leave_at_most_32_mib(scp: ServiceProcess) -> None:
    for _ in range(20):
        RawAssociation(scp.port, CONTEXTS).release()
    idle = scp.rss_kib()
    outcomes: Counter[str] = Counter()

    def knock(address: int) -> None:
        for number in range(125):
            request = large_request(KINDS_OF_REQUESTS[number % 4], 1000 * address + number)
            assert 900_000 < len(request) <= 1 << 20
            try:
                RawAssociation(scp.port, [], request=request, source=f"127.0.0.{address}", timeout=30).release()
                outcomes["accepted"] += 1
            except scu.Rejected as rejected:
                outcomes[str(rejected)] += 1

    threads = [threading.Thread(target=knock, args=(address,)) for address in range(2, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert outcomes.total() == 1000, outcomes
    grown, peak = ((scp.rss_kib(kind) - idle) / 1024 for kind in ("VmRSS", "VmHWM"))
    print(f"\n1,000 requests of 0.95 MB, {dict(outcomes)}: {grown:.1f} MiB above idle, {peak:.1f} MiB at most")
    assert grown <= 32
    RawAssociation(scp.port, CONTEXTS).release()


def nested(levels: int) -> bytes:
    opening = struct.pack("<HH2sHL", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    return opening * levels


def test_hostile_structures_are_refused_quickly_and_cost_no_memory(scp: ServiceProcess) -> None:
    base = ct_slice(1, rows=4)
    # The last element of the template is Pixel Data; these come before it.
    head = base.dataset[: base.dataset.index(struct.pack("<HH", 0x7FE0, 0x0010))]
    idle = scp.rss_kib()
    cases = {
        "nested 1,000 deep": head + nested(1_000),
        "nested 5,000 deep": head + nested(5_000),
        "nested 100,000 deep": head + nested(100_000),
        "length FFFFFFFE": head + explicit(0x7FE00010, b"OW", bytes(100), 0xFFFFFFFE),
        "length 80000000": head + explicit(0x7FE00010, b"OW", bytes(100), 0x80000000),
    }
    with RawAssociation(scp.port, CONTEXTS) as association:
        for name, dataset in cases.items():
            association.send(scu.fragments(1, True, scu.store_rq(CT, base.sop_instance, 1), 16384))
            association.send(scu.fragments(1, False, dataset, 16384))
            started = time.perf_counter()
            response = association.read_response()
            assert response.status == 0xC000, name
            assert time.perf_counter() - started < 0.05, name
        association.release()
    assert scp.rss_kib("VmHWM") - idle < 16 * 1024
    assert scp.files() == []


def many_items(kind: str) -> bytes:
    """About 8 MB of elements, items or fragments without a value."""
    item, end = struct.pack("<HHL", 0xFFFE, 0xE000, 0), struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    if kind == "elements":
        tags = ((0x0011 + 2 * (number // 60_000), 0x1000 + number % 60_000) for number in range(600_000))
        return b"".join(struct.pack("<HH2sHL", group, element, b"UN", 0, 0) for group, element in tags)
    if kind == "items":
        return struct.pack("<HH2sHL", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF) + item * 1_000_000 + end
    return struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF) + item * 1_000_000 + end


@pytest.mark.parametrize("kind", ["elements", "items", "fragments"])
def test_a_million_empty_things_take_less_than_a_second_for_8_mb(scp: ServiceProcess, kind: str) -> None:
    base = ct_slice(1, rows=4)
    # Private elements have groups from 0011 on; the sequence belongs before Pixel Data, the fragments are it.
    at = base.dataset.index(
        struct.pack("<HH", 0x0020, 0x000D) if kind == "elements" else struct.pack("<HH", 0x7FE0, 0x0010)
    )
    rest = b"" if kind == "fragments" else base.dataset[at:]
    dataset = base.dataset[:at] + many_items(kind) + rest
    with RawAssociation(scp.port, [(1, CT, [EXPLICIT])], timeout=30) as association:
        association.send(scu.fragments(1, True, scu.store_rq(CT, base.sop_instance, 1), 16384))
        pdus = scu.fragments(1, False, dataset, 16384)
        started = time.perf_counter()
        association.send(pdus)
        response = association.read_response()
        seconds = time.perf_counter() - started
        association.release()
    assert response.status == 0, response.comment
    assert seconds < len(dataset) / 8e6
