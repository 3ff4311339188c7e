"""Hostile senders over real sockets: what each sends, and what must come of it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import StartService
from support import scu
from support.instances import CT, ct_slice, dataset_of, explicit, text
from support.scu import EXPLICIT, VERIFICATION, Aborted, Closed, RawAssociation, Rejected, associate_rq, item
from support.service import ServiceProcess
from support.waiting import wait_until

CONTEXTS = [(1, CT, [EXPLICIT])]
ECHO = [(1, VERIFICATION, [EXPLICIT])]
# Full figures with STORESCP_HOSTILE=1; without it what takes a minute is done in seconds.
FULL = os.environ.get("STORESCP_HOSTILE") == "1"
FLOOD_SECONDS = 60 if FULL else 5
FUZZED = 10_000 if FULL else 1_000
ABORTED = 10_000 if FULL else 2_000


def baseline(service: ServiceProcess) -> tuple[int, int]:
    return service.threads(), service.descriptors()


def back_to(service: ServiceProcess, before: tuple[int, int], *, pooled: int = 0, seconds: float = 5.0) -> None:
    """Descriptors, and threads beyond the pool of associations, are what they were."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        threads, descriptors = baseline(service)
        if descriptors <= before[1] and threads <= before[0] + pooled:
            return
        service.wait_a_moment()
    raise AssertionError(f"{baseline(service)} instead of {before} and {pooled} pooled threads")


def nested(levels: int, *, closed: bool) -> bytes:
    """Sequences in sequences (PS3.5 7.5), with undefined lengths."""
    opening = struct.pack("<HH2sHL", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    closing = struct.pack("<HHL", 0xFFFE, 0xE00D, 0) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    return opening * levels + (closing * levels if closed else b"")


def before_pixels(one: bytes) -> tuple[bytes, bytes]:
    at = one.index(struct.pack("<HH", 0x7FE0, 0x0010))
    return one[:at], one[at:]


def test_s1_deep_nesting_is_refused_ten_thousand_times(scp: ServiceProcess) -> None:
    one = ct_slice(1, rows=4)
    head, pixels = before_pixels(one.dataset)
    with RawAssociation(scp.port, CONTEXTS, timeout=60) as association:
        for levels in (1_000, 5_000, 100_000):
            for closed in (True, False):
                dataset = head + nested(levels, closed=closed) + pixels
                assert association.store(1, CT, one.sop_instance, dataset).status == 0xC000, (levels, closed)
        hostile = head + nested(1_000, closed=True) + pixels
        message = scu.fragments(1, True, scu.store_rq(CT, one.sop_instance, 1), 16384)
        message += scu.fragments(1, False, hostile, 16384)
        for _ in range(10_000):
            association.send(message)
            assert association.read_response().status == 0xC000
        at_the_limit = head + nested(64, closed=True) + pixels
        assert association.store(1, CT, one.sop_instance, at_the_limit).status == 0
        association.release()
    assert [dataset_of(file) for file in scp.files()] == [at_the_limit]


def test_s2_lengths_beyond_the_end_cost_no_memory(scp: ServiceProcess) -> None:
    one = ct_slice(1, rows=4)
    head, _ = before_pixels(one.dataset)
    idle = scp.rss_kib()
    with RawAssociation(scp.port, CONTEXTS) as association:
        for tag, vr in ((0x7FE00010, b"OW"), (0x00104000, b"LT"), (0x00091001, b"UN"), (0x00081140, b"SQ")):
            for length in (0xFFFFFFFE, 0x80000000):
                if vr == b"LT":
                    element = explicit(tag, vr, b"\1" * 100, length & 0xFFFF)
                else:
                    element = explicit(tag, vr, b"\1" * 100, length)
                dataset = (
                    head[: head.index(struct.pack("<HH", 0x0020, 0x000D))] + element
                    if tag < 0x0020000D
                    else head + element
                )
                assert association.store(1, CT, one.sop_instance, dataset).status == 0xC000, (hex(tag), hex(length))
        association.release()
    assert scp.rss_kib("VmHWM") - idle < 16 * 1024
    assert scp.files() == []


def test_s8_hostile_text_is_stored_as_it_is_and_recorded_as_valid_json(scp: ServiceProcess) -> None:
    values = [
        b"a\r\nFORGED level=error", b"\x1b[2J\x1b[31mred", b"<script>alert(1)</script>", b"\xff\xfe\x80\x81",
        "患者".encode() * 10 + b"  ", b'"},{"x":"', b"\0" * 8, "é".encode() * 31 + b"x ",
    ]  # fmt: skip
    sent = {}
    with RawAssociation(scp.port, CONTEXTS) as association:
        for number, value in enumerate(values):
            changes = {
                0x00100010: explicit(0x00100010, b"PN", text(value)),
                0x00100020: explicit(0x00100020, b"LO", text(b"ID " + value)),
                0x00080050: explicit(0x00080050, b"SH", text(value[:16])),
            }
            one = ct_slice(number, rows=4, changes=changes)
            assert association.store(1, CT, one.sop_instance, one.dataset).status == 0, value
            sent[one.sop_instance] = one.dataset
        association.release()
    records = scp.records(count=len(values))
    assert {record["sop_uid"] for record in records} == set(sent)
    for record in records:
        assert dataset_of(Path(record["file_path"])) == sent[record["sop_uid"]]
        assert len(record["patient_id"]) <= 64
        json.dumps(record).encode("utf-8")
    assert all(json.loads(line) for line in scp.log_lines())


def pdus_of_s10() -> Iterator[tuple[str, bytes]]:
    store = scu.store_rq(CT, "1.2.3", 1)
    yield "PDU of 4 GiB", struct.pack(">BBL", 4, 0, 0xFFFFFFFF)
    yield "PDU of 300 MB", struct.pack(">BBL", 4, 0, 300 << 20) + bytes(100_000)
    yield "PDV length 0", scu.pdata(struct.pack(">LBB", 0, 1, 3))
    yield "PDV length 1", scu.pdata(struct.pack(">LBB", 1, 1, 3))
    yield "PDV beyond its PDU", scu.pdata(struct.pack(">LBB", 5000, 1, 3))
    yield "unknown PDU", struct.pack(">BBL", 9, 0, 4)
    yield "second A-ASSOCIATE-RQ", associate_rq(CONTEXTS)
    yield "A-ASSOCIATE-AC", struct.pack(">BBL", 2, 0, 4) + bytes(4)
    yield "data set before command", scu.pdata(scu.pdv(1, 2, b"data"))
    yield "even context id", scu.pdata(scu.pdv(2, 3, store))
    yield "unknown context id", scu.pdata(scu.pdv(99, 3, store))
    yield "garbage command set", scu.pdata(scu.pdv(1, 3, b"\xff" * 40))
    yield "command set without end", b"".join(scu.pdata(scu.pdv(1, 1, bytes(16000))) for _ in range(10))
    yield "release inside a message", scu.pdata(scu.pdv(1, 1, store)) + struct.pack(">BBLL", 5, 0, 4, 0)


def test_s10_breaches_of_the_protocol_end_in_an_abort_and_leave_nothing(scp: ServiceProcess) -> None:
    RawAssociation(scp.port, CONTEXTS).release()
    before = baseline(scp)
    idle = scp.rss_kib()
    cases = list(pdus_of_s10())
    for name, sent in cases:
        with RawAssociation(scp.port, CONTEXTS) as association:
            association.send(sent)
            with pytest.raises(Aborted):
                association.read_pdu()
            assert association.socket.recv(1) == b"", name
    for length in (0xFFFFFFFF, 300 << 20, (1 << 20) + 1):
        with socket.create_connection(("127.0.0.1", scp.port), 5) as client:
            client.sendall(struct.pack(">BBL", 1, 0, length))
            assert client.recv(100)[0] == 7, "A-ABORT on the header alone"
    back_to(scp, before, pooled=len(cases))
    assert scp.rss_kib("VmHWM") - idle < 32 * 1024
    assert scp.files() == scp.temporary_files() == []


def test_s11_data_sets_without_end_spill_and_are_cut_off(start_service: StartService) -> None:
    scp = start_service(env={"STORESCP_LIMITS__MAX_INSTANCE_BYTES": str(64 << 20)})
    one = ct_slice(1, rows=4)
    head, _ = before_pixels(one.dataset)
    idle = scp.rss_kib()
    piece = scu.pdata(scu.pdv(1, 0, bytes(16000)))
    with RawAssociation(scp.port, CONTEXTS, timeout=60) as association:
        association.send(scu.fragments(1, True, scu.store_rq(CT, one.sop_instance, 1), 16384))
        association.send(scu.pdata(scu.pdv(1, 0, head + explicit(0x7FE00010, b"OW", b"", 0xF0000000))))
        # It is refused at 64 MiB, what follows is read for a while, and then the association is aborted.
        with pytest.raises((Aborted, Closed, ConnectionError)):
            _send_for_ever(association, piece)
    scp.wait_for_event("association.protocol_error")
    assert scp.temporary_files() == scp.files() == []
    assert scp.rss_kib("VmHWM") - idle < 32 * 1024


def _send_for_ever(association: RawAssociation, piece: bytes) -> None:
    for _ in range(40_000):
        association.send(piece)
    association.read_pdu()


def test_s12_idle_and_slow_sockets_stop_nobody(start_service: StartService, tmp_path: Path) -> None:
    """500 idle ones and 50 that send a byte a second, from eight addresses and then from one."""
    for addresses in ([f"127.0.0.{number}" for number in range(2, 10)], ["127.0.0.1"]):
        limit = "256" if len(addresses) > 1 else "600"
        scp = start_service(
            root=tmp_path / str(len(addresses)),
            env={"STORESCP_LIMITS__MAX_CONNECTIONS_PER_ADDRESS": limit},
        )
        with contextlib.ExitStack() as held:
            connections = [
                held.enter_context(
                    socket.create_connection(("127.0.0.1", scp.port), 5, (addresses[number % len(addresses)], 0))
                )
                for number in range(550)
            ]
            stop = threading.Event()
            trickle = threading.Thread(target=_trickle, args=(connections[:50], stop))
            trickle.start()
            try:
                for number in range(20):
                    one = ct_slice(number, rows=16)
                    began = time.monotonic()
                    with RawAssociation(scp.port, [*CONTEXTS, (3, VERIFICATION, [EXPLICIT])], timeout=5) as association:
                        assert association.echo(3).status == 0
                        assert time.monotonic() - began < 1
                        assert association.store(1, CT, one.sop_instance, one.dataset).status == 0
                        association.release()
            finally:
                stop.set()
                trickle.join()
        scp.stop()


def _trickle(connections: list[socket.socket], stop: threading.Event) -> None:
    request = associate_rq(ECHO)
    for at in range(len(request)):
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.send(request[at : at + 1])
        if stop.wait(1):
            return


def test_s12_over_its_limit_only_that_address_is_refused(start_service: StartService) -> None:
    scp = start_service(env={"STORESCP_LIMITS__MAX_CONNECTIONS_PER_ADDRESS": "20"})
    with contextlib.ExitStack() as held:
        for _ in range(20):
            held.enter_context(socket.create_connection(("127.0.0.1", scp.port), 5, ("127.0.0.2", 0)))
        with pytest.raises((Closed, ConnectionError)):
            RawAssociation(scp.port, ECHO, source="127.0.0.2", timeout=5)
        RawAssociation(scp.port, ECHO, source="127.0.0.3").release()
        RawAssociation(scp.port, ECHO).release()
    assert scp.wait_for_event("connection.refused")["cause"] == "connections_per_address"


def test_s12_silence_has_a_deadline_at_every_stage(start_service: StartService) -> None:
    scp = start_service(
        env={
            "STORESCP_LIMITS__REQUEST_TIMEOUT": "1", "STORESCP_LIMITS__IDLE_TIMEOUT": "1",
            "STORESCP_LIMITS__MIN_RATE": "1000000",
        }
    )  # fmt: skip
    began = time.monotonic()
    half_a_request = socket.create_connection(("127.0.0.1", scp.port), 8)
    half_a_request.sendall(associate_rq(ECHO)[:50])
    idle = RawAssociation(scp.port, ECHO, timeout=8)
    half_a_pdu = RawAssociation(scp.port, ECHO, timeout=8)
    half_a_pdu.send(scu.pdata(scu.pdv(1, 3, scu.echo_rq(1)))[:20])
    assert half_a_request.recv(1) == b""
    for association in (idle, half_a_pdu):
        with pytest.raises(Aborted):
            association.read_pdu()
        association.socket.close()
    half_a_request.close()
    assert time.monotonic() - began < 6


def test_a_flood_of_refused_connections_is_no_flood_of_log_lines(start_service: StartService) -> None:
    scp = start_service(env={"STORESCP_LIMITS__MAX_CONNECTIONS_PER_ADDRESS": "1"})
    with RawAssociation(scp.port, ECHO) as association:
        for _ in range(500):
            socket.create_connection(("127.0.0.1", scp.port), 5).close()
        assert association.echo(1).status == 0
        wait_until(lambda: told(scp) == 500)
    scp.stop()
    assert told(scp) == 500
    assert len(scp.events("connection.refused")) < 250


def told(scp: ServiceProcess) -> int:
    """Refused connections that the log tells of, one by one and in sums."""
    return len(scp.events("connection.refused")) + sum(one["count"] for one in scp.events("connection.refused_more"))


def test_s13_floods_of_connections_leave_no_trace(scp: ServiceProcess) -> None:
    for _ in range(200):
        RawAssociation(scp.port, ECHO).abort()
    before, idle = baseline(scp), scp.rss_kib()
    began, made = time.monotonic(), 0
    while (elapsed := time.monotonic() - began) < FLOOD_SECONDS:
        if made < 200 * elapsed:
            socket.create_connection(("127.0.0.1", scp.port), 5).close()
            made += 1
        else:
            scp.wait_a_moment()
    for _ in range(ABORTED):
        RawAssociation(scp.port, ECHO).abort()
    back_to(scp, before, pooled=100)
    assert made >= 190 * FLOOD_SECONDS
    assert scp.rss_kib() - idle < 16 * 1024


def test_s14_titles_are_checked_and_no_tenant_writes_for_another(start_service: StartService) -> None:
    """Associations of two tenants at once, with random titles, contexts, commands, data sets and endings."""
    rules = [
        {"tenant_id": "a", "called_ae": "SCP_A", "calling_ae": "A"},
        {"tenant_id": "b", "called_ae": "SCP_B", "calling_ae": "B"},
    ]
    scp = start_service(
        env={
            "STORESCP_TENANTS__RULES": json.dumps(rules),
            "STORESCP_TENANTS__DEFAULT": "",
            "STORESCP_DICOM_STORE_SCP__ALLOWED_CALLING_AE_TITLES": '["A", "B"]',
            "STORESCP_DICOM_STORE_SCP__ALLOWED_CALLED_AE_TITLES": '["SCP_A", "SCP_B"]',
            "STORESCP_LOCAL_STORAGE__DURABILITY": "none",
        }
    )
    for called, calling, code in (
        (b"OTHER", b"A", (1, 1, 7)), (b"SCP_A", b"C", (1, 1, 3)), (b" ", b"A", (1, 1, 7)), (b"SCP_A", b" ", (1, 1, 3)),
        (b"SCP_A", b"A\x07", (1, 1, 3)), (b"SCP\x1bA", b"A", (1, 1, 7)),
    ):  # fmt: skip
        with pytest.raises(Rejected) as rejected:
            RawAssociation(scp.port, CONTEXTS, called=called, calling=calling)
        assert rejected.value.code == code
    # A right title, but of the other tenant's listener: no rule matches and there is no default.
    one = ct_slice(1, rows=4)
    with RawAssociation(scp.port, CONTEXTS, called=b"SCP_A", calling=b"B") as association:
        assert association.store(1, CT, one.sop_instance, one.dataset).status == 0x0124
        association.release()
    acknowledged: dict[str, set[str]] = {"a": set(), "b": set()}
    _fuzz_as(scp.port, "a", 20, acknowledged["a"])
    scp.records(count=len(acknowledged["a"]))
    # Now the files of the records are open.
    before = baseline(scp)
    threads = [
        threading.Thread(target=_fuzz_as, args=(scp.port, tenant, FUZZED // 2, acknowledged[tenant]))
        for tenant in ("a", "b")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    back_to(scp, before, pooled=100)
    for tenant in ("a", "b"):
        stored = {file.stem for file in (scp.root / tenant).rglob("*.dcm")}
        assert all(uid.startswith(f"1.2.{ord(tenant)}.") for uid in stored)
        assert acknowledged[tenant] <= stored
        assert acknowledged[tenant]
    assert sorted(path.name for path in scp.root.iterdir()) == [".incoming", ".outbox", "a", "b"]
    assert scp.temporary_files() == []


def _fuzz_as(port: int, tenant: str, count: int, acknowledged: set[str]) -> None:
    rng = random.Random(tenant)
    titles = {"called": f"SCP_{tenant.upper()}".encode(), "calling": tenant.upper().encode()}
    for number in range(count):
        series = f"1.2.{ord(tenant)}.1"
        one = ct_slice(number, rows=4, series=series, study=f"1.2.{ord(tenant)}")
        stream = scu.fragments(1, True, scu.store_rq(CT, one.sop_instance, 1), rng.choice((128, 16384)))
        stream += scu.fragments(1, False, one.dataset, rng.choice((128, 1000, 16384)))
        is_whole = rng.random() < 0.2
        if not is_whole:
            stream = _mutate(rng, stream)
        with contextlib.suppress(Aborted, Closed, Rejected, ConnectionError, TimeoutError):
            request = associate_rq(CONTEXTS, **titles)  # type: ignore[arg-type]
            is_cut = rng.random() < 0.1
            if is_cut:
                request = _mutate(rng, request)
                # The titles stay: another tenant's would be no attack but a claim.
                request = request[:10] + titles["called"].ljust(16) + titles["calling"].ljust(16) + request[42:]
            # One whose length says more is waited for in vain.
            timeout = 0.05 if is_cut else 5.0
            with RawAssociation(port, CONTEXTS, request=request, timeout=timeout) as association:
                association.send(stream)
                if is_whole or rng.random() < 0.3:
                    association.socket.shutdown(socket.SHUT_WR)
                    if association.read_response().status == 0 and is_whole:
                        acknowledged.add(one.sop_instance)
                elif rng.random() < 0.5:
                    association.abort()


def _mutate(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(changed))
        match rng.randrange(4):
            case 0:
                changed[at] = rng.randrange(256)
            case 1:
                del changed[at : at + rng.randint(1, 64)]
                changed = changed or bytearray(1)
            case 2:
                changed[at:at] = rng.randbytes(rng.randint(1, 64))
            case _:
                changed[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", bytes(4), b"\x80\0\0\0"))
    return bytes(changed)


def test_s15_extreme_requests_are_bounded(scp: ServiceProcess) -> None:
    identity = b"\x02\x01" + struct.pack(">H", 60_000) + b"u" * 60_000 + struct.pack(">H", 100) + b"p" * 100
    with RawAssociation(scp.port, ECHO, extra_items=item(0x58, identity)) as association:
        assert association.echo(1).status == 0
        association.release()
    many = [(number % 256, CT, [EXPLICIT]) for number in range(1, 256)]
    for contexts in (many, [(1, CT, [EXPLICIT]), (1, VERIFICATION, [EXPLICIT])]):
        with contextlib.suppress(Aborted, Rejected):
            RawAssociation(scp.port, contexts, timeout=5).release()
    odd = [(number, CT, [EXPLICIT]) for number in range(1, 256, 2)]
    with RawAssociation(scp.port, odd) as association:
        assert len(association.accepted) == 128
        association.release()
    for max_pdu in (1, 7):
        with pytest.raises(Rejected):
            RawAssociation(scp.port, ECHO, max_pdu=max_pdu)
    with RawAssociation(scp.port, ECHO, max_pdu=0) as association:
        assert association.echo(1).status == 0
        association.release()


def test_s16_every_file_has_a_zero_preamble(scp: ServiceProcess) -> None:
    one = ct_slice(1, rows=4)
    with RawAssociation(scp.port, CONTEXTS) as association:
        assert association.store(1, CT, one.sop_instance, one.dataset).status == 0
        association.release()
    (file,) = scp.files()
    assert file.read_bytes()[:132] == bytes(128) + b"DICM"


@pytest.mark.parametrize("level", ["tenant", "date", "study", "series", "file"])
@pytest.mark.parametrize("kind", ["link to a folder", "link to a file", "dangling link", "file"])
def test_s17_what_lies_in_the_way_is_never_followed(scp: ServiceProcess, tmp_path: Path, level: str, kind: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    precious = elsewhere / "precious"
    precious.write_bytes(b"precious")
    one = ct_slice(1, rows=4)
    parts = ["1234567890", "20260102", "1.2.826.0.1.3680043.10.9999.1", "1.2.826.0.1.3680043.10.9999.1.1"]
    parts = [*parts, f"{one.sop_instance}.dcm"]
    depth = ["tenant", "date", "study", "series", "file"].index(level)
    place = scp.root.joinpath(*parts[: depth + 1])
    place.parent.mkdir(parents=True, exist_ok=True)
    target = {"link to a folder": elsewhere, "link to a file": precious, "dangling link": elsewhere / "absent"}
    if kind == "file":
        place.write_bytes(b"x")
    else:
        place.symlink_to(target[kind])
    with RawAssociation(scp.port, CONTEXTS) as association:
        status = association.store(1, CT, one.sop_instance, one.dataset).status
        association.release()
    # A plain file of the instance's own name is a duplicate with other bytes, and is replaced; all else is in the way.
    assert status == (0 if (level, kind) == ("file", "file") else 0xA700)
    assert precious.read_bytes() == b"precious"
    assert [path.name for path in elsewhere.iterdir()] == ["precious"]
    assert scp.temporary_files() == []


def test_s18_canaries_are_nowhere_but_in_files_and_records(start_service: StartService) -> None:
    scp = start_service("-v", env={"STORESCP_DICOM_STORE_SCP__REQUIRED_ATTRIBUTES": '["PatientID"]'})
    canaries = {
        0x00100010: (b"PN", "CanaryName"), 0x00100020: (b"LO", "CanaryId"), 0x00080050: (b"SH", "CanaryAcc"),
        0x00100030: (b"DA", "19771123"), 0x00081030: (b"LO", "CanaryStudy"), 0x00200010: (b"SH", "CanaryStudyId"),
        0x00080080: (b"LO", "CanaryClinic"),
    }  # fmt: skip
    changes = {tag: explicit(tag, vr, text(value)) for tag, (vr, value) in canaries.items()}
    good = ct_slice(1, rows=4, changes=changes)
    missing = ct_slice(2, rows=4, changes=changes | {0x00100020: None})
    broken = good.dataset[:-10]
    with RawAssociation(scp.port, CONTEXTS) as association:
        answers = [
            association.store(1, CT, good.sop_instance, good.dataset),
            association.store(1, CT, missing.sop_instance, missing.dataset),
            association.store(1, CT, good.sop_instance, broken),
            association.store(1, CT, "1.2.3", good.dataset),
        ]
        association.release()
    scp.stop()
    assert [answer.status for answer in answers] == [0, 0xA900, 0xC000, 0xA900]
    said = scp.log() + "".join(answer.comment for answer in answers)
    assert not [value for _, value in canaries.values() if value in said]


@pytest.fixture(scope="module")
def shared_scp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    service = ServiceProcess(tmp_path_factory.mktemp("hostile") / "data")
    yield service
    assert service.stop() == 0


@settings(
    max_examples=1000 if FULL else 100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    pieces=st.lists(
        st.one_of(
            st.binary(max_size=200),
            st.builds(lambda context, control, data: scu.pdata(scu.pdv(context, control, data)),
                      st.integers(0, 255), st.integers(0, 255), st.binary(max_size=300)),
            st.builds(lambda kind, length, data: struct.pack(">BBL", kind, 0, length) + data,
                      st.integers(0, 9), st.integers(0, 2**32 - 1), st.binary(max_size=100)),
            st.builds(lambda uid, number: scu.pdata(scu.pdv(1, 3, scu.store_rq(CT, uid, number))),
                      st.text("0123456789./\\", max_size=70), st.integers(0, 65535)),
        ),
        max_size=8,
    )
)  # fmt: skip
def test_the_running_service_survives_any_stream(shared_scp: ServiceProcess, pieces: list[bytes]) -> None:
    with RawAssociation(shared_scp.port, CONTEXTS, timeout=10) as association, contextlib.suppress(ConnectionError):
        for piece in pieces:
            association.send(piece)
        association.socket.shutdown(socket.SHUT_WR)
        while association.socket.recv(4096):
            pass
    with RawAssociation(shared_scp.port, ECHO) as association:
        assert association.echo(1).status == 0
        association.release()
    assert {path.name for path in shared_scp.root.iterdir()} <= {".incoming", ".outbox", "1234567890"}
