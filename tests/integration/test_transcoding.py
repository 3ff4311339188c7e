"""Transcoding on receipt: what viewers get, and that a bad or hostile object costs that object and nothing else."""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.pixels import pixel_array

from storescp import _core
from support.compressed import JPEG_2000, JPEG_LS, ONLY_EXPLICIT, RLE, compressed_ct, encapsulated, with_attribute
from support.instances import Instance, dataset_of, from_file
from support.scu import EXPLICIT, RawAssociation
from support.service import ServiceProcess
from support.waiting import wait_until

StartService = Callable[..., ServiceProcess]
CORES = len(os.sched_getaffinity(0))


def workers(service: ServiceProcess) -> list[int]:
    """Process ids of the service's worker processes."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[1]
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if int(parent) == service.process.pid and b"transcode_worker" in command:
                found.append(int(folder.name))
    return sorted(found)


def send(service: ServiceProcess, *instances: Instance) -> list[int]:
    kinds = dict.fromkeys((one.sop_class, one.transfer_syntax) for one in instances)
    of = {kind: 2 * number + 1 for number, kind in enumerate(kinds)}
    contexts = [(context_id, sop_class, [uid]) for (sop_class, uid), context_id in of.items()]
    with RawAssociation(service.port, contexts) as association:
        association.socket.settimeout(60)
        statuses = [
            association.store(
                of[one.sop_class, one.transfer_syntax], one.sop_class, one.sop_instance, one.dataset
            ).status
            for one in instances
        ]
        association.release()
    return statuses


def stored(service: ServiceProcess, one: Instance) -> Path:
    [file] = [file for file in service.files() if file.stem == one.sop_instance]
    return file


def record_of(service: ServiceProcess, one: Instance, count: int) -> dict[str, Any]:
    [record] = [record for record in service.records(count=count) if record["sop_uid"] == one.sop_instance]
    return record


SPOOLED = {"in memory": {}, "on disk": {"STORESCP_LOCAL_STORAGE__SPOOL_MEMORY_BYTES": "4096"}}
SOURCES = [RLE, JPEG_LS, JPEG_2000, "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2"]


@pytest.fixture(scope="module", params=SPOOLED)
def transcoding(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service that leaves only Explicit VR Little Endian as it is; one for several tests."""
    env = ONLY_EXPLICIT | SPOOLED[request.param]
    service = ServiceProcess(tmp_path_factory.mktemp("transcoding") / "data", env=env)
    yield service
    assert service.stop() == 0
    records = [record["sop_uid"] for record in service.records()]
    assert sorted(records) == sorted(file.stem for file in service.files()), "one record of each file"


@pytest.mark.parametrize("source", SOURCES)
def test_what_viewers_cannot_read_is_stored_as_what_they_can(transcoding: ServiceProcess, source: str) -> None:
    service = transcoding
    one = compressed_ct(SOURCES.index(source), source, frames=3)
    before = len(service.events("association.released"))
    assert send(service, one, one) == [0, 0]
    wait_until(lambda: any(record["sop_uid"] == one.sop_instance for record in service.records()))
    file, record = stored(service, one), record_of(service, one, 1)
    assert (record["transfer_syntax_uid"], record["target_ts"]) == (source, EXPLICIT)
    assert record["transfer_status"] == "Success"
    assert record["file_size"] == file.stat().st_size
    dataset = pydicom.dcmread(file)
    assert dataset.file_meta.TransferSyntaxUID == EXPLICIT
    assert dataset_of(file) == _core.transcode(one.dataset, source, EXPLICIT, 1 << 30)
    assert dataset.pixel_array.shape == (3, 64, 64)
    [event] = service.events("association.released")[before:]
    assert event["transcodes"] == [{"source": source, "target": EXPLICIT, "outcome": "Success", "count": 2}]
    assert event["identical"] == 1
    assert service.temporary_files() == []


@pytest.mark.parametrize("target", [RLE, JPEG_LS, JPEG_2000, "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.1.99"])
def test_the_target_is_configured(start_service: StartService, target: str) -> None:
    env = {
        "STORESCP_DICOM_STORE_SCP__CORNERSTONEJS_SUPPORTED_TRANSFER_SYNTAX": json.dumps([target]),
        "STORESCP_DICOM_STORE_SCP__UNSUPPORTED_TS_CHANGE_TO": target,
    }
    service = start_service(env=env)
    one = compressed_ct(1, EXPLICIT)
    assert send(service, one) == [0]
    assert record_of(service, one, 1)["target_ts"] == target
    assert dataset_of(stored(service, one)) == _core.transcode(one.dataset, EXPLICIT, target, 1 << 30)


def hostile() -> dict[str, Instance]:
    """One instance for each way to lie about pixels, each with a UID of its own."""
    made: dict[str, Instance] = {}
    numbers = iter(range(1, 1000))

    def rle() -> Instance:
        return compressed_ct(next(numbers), RLE)

    for name, tag, value in (
        ("rows 65535", 0x00280010, 65535),
        ("columns 65535", 0x00280011, 65535),
        ("rows 0", 0x00280010, 0),
        *((f"bits allocated {bits}", 0x00280100, bits) for bits in (0, 1, 2, 12, 2048, 65535)),
        *((f"samples per pixel {samples}", 0x00280002, samples) for samples in (0, 2, 65535)),
        ("pixel representation 7", 0x00280103, 7),
    ):
        made[name] = with_attribute(rle(), tag, b"US", value)
    for text in (b"2147483647", b"99999999999 ", b"junk", b"-1", b"0 "):
        one = compressed_ct(next(numbers), RLE, frames=2)
        made[f"frames {text.decode()}"] = with_attribute(one, 0x00280008, b"IS", text)
    one = rle()
    frame = _items(one)[1]
    for name, head in (
        ("255 segments", b"\xff\0\0\0"),
        ("offset past the end", b"\x02\0\0\0\x40\0\0\0\xf0\xff\xff\xff"),
        ("offset inside the header", b"\x02\0\0\0\x03\0\0\0"),
        ("no segments", b"\0\0\0\0"),
    ):
        made[f"rle {name}"] = encapsulated(rle(), b"", head + frame[len(head) :])
    made["rle cut short"] = encapsulated(rle(), b"", frame[: len(frame) // 4 * 2])
    made["no fragments"] = encapsulated(rle())
    made["an offset table only"] = encapsulated(rle(), b"")
    made["empty fragments"] = encapsulated(rle(), b"", b"", b"")
    made["a lying offset table"] = encapsulated(
        compressed_ct(next(numbers), RLE, frames=2), b"\xff\xff\xff\xff\x01\0\0\0", frame, frame, frame
    )
    for syntax in (JPEG_2000, JPEG_LS):
        one = compressed_ct(next(numbers), syntax)
        frame = _items(one)[1]
        made[f"{syntax} cut short"] = encapsulated(one, b"", frame[: len(frame) // 4 * 2])
        one = compressed_ct(next(numbers), syntax)
        made[f"{syntax} junk"] = encapsulated(one, b"", random.randbytes(2000))
    one = compressed_ct(next(numbers), JPEG_2000)
    frame = _items(one)[1]
    made["j2k of 2^32 - 1 columns"] = encapsulated(one, b"", frame[:8] + b"\xff" * 4 + frame[12:])
    made["j2k tiles of 1 x 1"] = encapsulated(
        compressed_ct(next(numbers), JPEG_2000), b"", frame[:24] + b"\0\0\0\1\0\0\0\1" + frame[32:]
    )
    return made


def _items(one: Instance) -> list[bytes]:
    at = one.dataset.index(b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff") + 12
    items = []
    while one.dataset[at : at + 4] == b"\xfe\xff\x00\xe0":
        length = int.from_bytes(one.dataset[at + 4 : at + 8], "little")
        items.append(one.dataset[at + 8 : at + 8 + length])
        at += 8 + length
    return items


def test_what_cannot_be_transcoded_is_stored_byte_for_byte_and_says_so(start_service: StartService) -> None:
    service = start_service(env=ONLY_EXPLICIT)
    made = hostile()
    good = compressed_ct(5000, RLE)
    idle = None
    for name, one in made.items():
        assert send(service, one) == [0], name
        idle = idle or service.rss_kib()
        assert dataset_of(stored(service, one)) == one.dataset, name
    assert send(service, good) == [0]
    assert service.rss_kib("VmHWM") - (idle or 0) < 16 * 1024
    records = {record["sop_uid"]: record for record in service.records(count=len(made) + 1)}
    for name, one in made.items():
        record = records[one.sop_instance]
        assert record["transfer_status"] == "Failed", name
        assert record["target_ts"] == record["transfer_syntax_uid"] == one.transfer_syntax, name
    assert records[good.sop_instance]["transfer_status"] == "Success"
    events = service.events("association.released")
    assert len(events) == len(made) + 1
    failed = [event["transcode_failures"] for event in events[:-1]]
    assert all(len(reasons) == 1 for reasons in failed)
    assert service.temporary_files() == []
    assert len(workers(service)) <= CORES


def test_big_endian_cells_that_are_read_in_two_ways_are_not_touched(start_service: StartService) -> None:
    """A dose of 32 bits: turned as a whole to pydicom, in words of 16 bits to DCMTK and GDCM. Nothing in it tells."""
    file = get_testdata_file("rtdose_expb_1frame.dcm", download=False)
    one = from_file(Path(str(file)))
    assert one is not None
    service = start_service(env=ONLY_EXPLICIT)
    assert send(service, one) == [0]
    assert dataset_of(stored(service, one)) == one.dataset
    (record,) = service.records(count=1)
    assert record["transfer_status"] == "Failed"
    assert record["target_ts"] == one.transfer_syntax
    (released,) = service.events("association.released")
    assert "two ways" in json.dumps(released["transcode_failures"])


def test_implicit_elements_of_a_jpeg_instance_are_stored_in_the_form_of_the_target(start_service: StartService) -> None:
    """Readers that look at the first element to tell would take the whole for implicit."""
    file = Path(str(get_testdata_file("SC_rgb_jpeg.dcm", download=False)))
    with pytest.warns(UserWarning, match="found implicit VR"):
        one, received = from_file(file), pydicom.dcmread(file)
    assert one is not None
    assert one.dataset[4:8] == b"\x18\0\0\0"
    for tag, value in ((b"\x08\0\x20\0", b"20260102"), (b"\x10\0\x20\0", b"P1")):
        empty, filled = tag + bytes(4), tag + len(value).to_bytes(4, "little") + value
        assert one.dataset.count(empty) == 1
        one = replace(one, dataset=one.dataset.replace(empty, filled))
    service = start_service(env=ONLY_EXPLICIT)
    assert send(service, one) == [0]
    transcoded = pydicom.dcmread(stored(service, one))
    assert transcoded.original_encoding == (False, True)
    difference = transcoded.pixel_array.astype(int) - pixel_array(received, raw=False).astype(int)
    assert abs(difference).max() <= 2
    changed = {
        "StudyDate",
        "PatientID",
        "PixelData",
        "LossyImageCompression",
        "LossyImageCompressionRatio",
        "LossyImageCompressionMethod",
    }
    for element in received:
        if element.keyword not in changed:
            assert transcoded[element.tag].value == element.value, element


def test_an_rle_frame_in_several_fragments_is_legitimate(start_service: StartService) -> None:
    service = start_service(env=ONLY_EXPLICIT)
    one = compressed_ct(1, RLE)
    frame = _items(one)[1]
    pieces = [frame[at : at + 100] for at in range(0, len(frame), 100)]
    split = encapsulated(one, b"", *pieces)
    assert send(service, split) == [0]
    assert record_of(service, split, 1)["transfer_status"] == "Success"
    assert dataset_of(stored(service, split)) == _core.transcode(one.dataset, RLE, EXPLICIT, 1 << 30)


@functools.cache
def _slow_template() -> Instance:
    """One frame is compressed, and the others are its copies: to compress all takes a quarter of a minute."""
    one = compressed_ct(1, JPEG_2000, rows=256)
    many = with_attribute(compressed_ct(1, JPEG_2000, frames=2, rows=256), 0x00280008, b"IS", b"600 ")
    return encapsulated(many, b"", *[_items(one)[1]] * 600)


def slow_ct(number: int) -> Instance:
    """Takes a second or more to decode; `number` is a digit."""
    return renumbered(_slow_template(), number)


def renumbered(one: Instance, number: int) -> Instance:
    """The same pixels under another UID; `number` has as many digits as the one it had."""
    uid = f"{one.sop_instance.rsplit('.', 1)[0]}.{number}"
    assert len(uid) == len(one.sop_instance)
    return replace(one, sop_instance=uid, dataset=one.dataset.replace(one.sop_instance.encode(), uid.encode()))


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGSEGV, "the decoder crashed (signal 11)"),
        (signal.SIGABRT, "the decoder crashed (signal 6)"),
        (signal.SIGKILL, "the decoder crashed (signal 9)"),
        (signal.SIGSTOP, "no progress for 1 s"),
    ],
    ids=["crash", "abort", "killed", "hang"],
)
def test_a_decoder_that_crashes_or_hangs_costs_one_object(
    start_service: StartService, number: signal.Signals, reason: str
) -> None:
    service = start_service(env=ONLY_EXPLICIT | {"STORESCP_TRANSCODING__TIMEOUT": "1"})
    quick = [compressed_ct(number, JPEG_LS) for number in range(10, 20)]
    assert send(service, *quick[:5]) == [0] * 5
    descriptors, threads = service.descriptors(), service.threads()
    for round_number in range(3):
        victim = slow_ct(round_number)
        sender = threading.Thread(target=send, args=(service, victim))
        sender.start()
        busy: list[int] = []

        def find_busy(busy: list[int] = busy) -> bool:
            busy[:] = [pid for pid in workers(service) if _is_running(pid)]
            return bool(busy)

        wait_until(find_busy)
        os.kill(busy[0], number)
        # Meanwhile the others go on.
        assert send(service, quick[5 + round_number]) == [0]
        sender.join(30)
        assert not sender.is_alive()
        assert dataset_of(stored(service, victim)) == victim.dataset
    reasons = [
        event["transcode_failures"] for event in service.events("association.released") if "transcode_failures" in event
    ]
    assert reasons == [{reason: 1}] * 3
    assert send(service, *quick[8:]) == [0, 0]
    records = service.records(count=13)
    statuses = {record["sop_uid"]: record["transfer_status"] for record in records}
    assert [statuses[slow_ct(n).sop_instance] for n in range(3)] == ["Failed"] * 3
    assert all(statuses[one.sop_instance] == "Success" for one in quick)
    # Threads that serve associations stay for the next ones.
    wait_until(lambda: service.descriptors() <= descriptors + CORES and service.threads() <= threads + 4)
    assert len(workers(service)) <= CORES


def _is_running(pid: int) -> bool:
    """Whether it works: its processor time grows."""

    def ticks() -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    try:
        before = ticks()
        threading.Event().wait(0.1)
        return ticks() > before + 3
    except OSError:
        return False


def test_a_decoder_that_wants_too_much_memory_costs_one_object(start_service: StartService) -> None:
    service = start_service(env=ONLY_EXPLICIT | {"STORESCP_TRANSCODING__WORKER_MEMORY_BYTES": str(256 << 20)})
    large = _flat_ct(1, rows=12000)
    small = compressed_ct(2, RLE)
    assert send(service, large, small) == [0, 0]
    assert dataset_of(stored(service, large)) == large.dataset
    assert record_of(service, large, 2)["transfer_status"] == "Failed"
    assert record_of(service, small, 2)["transfer_status"] == "Success"


def test_associations_take_turns(start_service: StartService) -> None:
    """One with many slow instances does not keep the others waiting."""
    service = start_service(env=ONLY_EXPLICIT | {"STORESCP_TRANSCODING__WORKERS": "1"})
    template = compressed_ct(10, JPEG_2000, frames=10, rows=256)
    slow = [renumbered(template, number) for number in range(10, 70)]
    quick = [compressed_ct(number, JPEG_LS) for number in range(100, 105)]
    sender = threading.Thread(target=send, args=(service, *slow))
    sender.start()
    wait_until(lambda: len(service.files()) >= 2)
    assert send(service, *quick) == [0] * 5
    done = {file.stem for file in service.files()}
    assert {one.sop_instance for one in quick} <= done
    assert len(done) < len(slow)
    assert len(workers(service)) == 1
    sender.join(60)


@pytest.mark.parametrize("ending", ["SIGTERM", "SIGKILL"])
def test_workers_end_with_the_service(start_service: StartService, ending: str) -> None:
    service = start_service(env=ONLY_EXPLICIT)
    sender = threading.Thread(target=_send_and_lose, args=(service, slow_ct(1)))
    sender.start()
    wait_until(lambda: any(_is_running(pid) for pid in workers(service)))
    pids = workers(service)
    if ending == "SIGTERM":
        assert service.stop() == 0
    else:
        service.kill()
    sender.join(30)
    wait_until(lambda: not any(_is_worker(pid) for pid in pids), 5)
    if ending == "SIGTERM":
        assert len(service.files()) == 1


def test_a_drain_that_is_over_ends_what_is_being_transcoded(start_service: StartService) -> None:
    """The sender gets no success, so it sends the instance again; nothing of it is stored."""
    service = start_service(env=ONLY_EXPLICIT | {"STORESCP_SERVICE__DRAIN_TIMEOUT": "0.3"})
    instances = [slow_ct(number) for number in range(1, min(CORES + 2, 10))]
    senders = [threading.Thread(target=_send_and_lose, args=(service, one)) for one in instances]
    for sender in senders:
        sender.start()
    wait_until(lambda: any(_is_running(pid) for pid in workers(service)))
    began = time.monotonic()
    assert service.stop() == 0
    assert time.monotonic() - began < 5
    for sender in senders:
        sender.join(30)
    assert service.files() == []
    assert service.temporary_files() == []
    assert service.records() == []


def _send_and_lose(service: ServiceProcess, one: Instance) -> None:
    try:
        send(service, one)
    except Exception:  # noqa: BLE001 - the service ends the association, and each library says so in its way
        return


def _is_worker(pid: int) -> bool:
    try:
        return b"transcode_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_a_full_disk_while_transcoding_is_transient(start_service: StartService, tmp_path: Path) -> None:
    """The original would fit, but the sender can try again when there is room for the result."""
    import subprocess

    root = tmp_path / "small"
    root.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(root)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        env = ONLY_EXPLICIT | {"STORESCP_LOCAL_STORAGE__MIN_FREE_BYTES": "0"}
        service = start_service(root=root / "data", env=env)
        flat = _flat_ct(1, rows=4096)
        assert len(flat.dataset) < 1 << 20
        assert send(service, flat) == [0xA700]
        assert service.files() == []
        assert service.temporary_files() == []
        assert send(service, compressed_ct(2, RLE)) == [0]
        assert service.stop() == 0
    finally:
        subprocess.run(["umount", str(root)], check=True)


def _flat_ct(number: int, rows: int) -> Instance:
    from support.instances import ct_slice, explicit

    pixels = explicit(0x7FE00010, b"OW", bytes(rows * rows * 2))
    one = ct_slice(number, rows=rows, changes={0x7FE00010: pixels})
    dataset = _core.transcode(one.dataset, EXPLICIT, RLE, 1 << 30)
    return Instance(one.sop_class, one.sop_instance, RLE, dataset)


@pytest.mark.parametrize("target", ["1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.2", "1.2.3"])
def test_lossy_and_unknown_targets_are_refused_at_start(tmp_path: Path, target: str) -> None:
    import subprocess
    import sys

    result = subprocess.run(
        [sys.executable, "-m", "storescp", "-o", str(tmp_path / "data"), "-p", "0"],
        env=os.environ | {"STORESCP_DICOM_STORE_SCP__UNSUPPORTED_TS_CHANGE_TO": target},
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert result.returncode == 78
    assert "a lossless transfer syntax that can be encoded" in result.stderr
