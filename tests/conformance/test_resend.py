"""What was transcoded can be sent on: DCMTK reads it, Orthanc takes it.

A sample of 100 files, always the same; with STORESCP_RESEND_ALL=1 every one.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from storescp import _core
from storescp.errors import CoreError
from storescp.pure.store import file_meta
from support.frames import transcode
from support.instances import Instance, curated_folder, curated_instances, explicit, text
from support.nested import nested
from support.odd_frames import JPEG, JPEG_2000, JPEG_LOSSLESS, JPEG_LS, RLE, Odd, odd_frames
from support.orthanc import Orthanc, running

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.skipif(shutil.which("storescu") is None, reason="needs storescu"),
]
EXPLICIT, IMPLICIT, DEFLATED = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99"
TARGETS = sorted(uid for uid, _, _, encodes in _core.transfer_syntaxes() if encodes)
# DCMTK does not know HTJ2K, whose encapsulation is that of JPEG 2000.
LABELS = {"1.2.840.10008.1.2.4.201": JPEG_2000, "1.2.840.10008.1.2.4.202": JPEG_2000}
# storescu reads deflated files, and does not always come to the end of deflating them again.
OPTIONS = {EXPLICIT: "-xe", IMPLICIT: "-xi", DEFLATED: "-xe", RLE: "-xr", JPEG_LS: "-xt", JPEG_2000: "-xv"}
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
# Originals that storescu does not send either.
NOT_BY_STORESCU = {
    "hd_seg_image_sm_control_labelmap.dcm": "a SOP class newer than DCMTK 3.6.7",
    "orth_UnknownSopClassUid.dcm": "a private SOP class",
    "pyd_rtdose_rle.dcm": "its SOP Class UID is of VR UN",
}
SAMPLE = 100
# Files that one storescu sends.
BATCH = 40
MOST = 1 << 31


@dataclass(frozen=True)
class Job:
    """A file that can be made: its name, target, and the making. None where there is nothing to transcode."""

    name: str
    target: str
    sop_class: str
    sop_instance: str
    make: Callable[[], bytes]


def _transcoded(one: Instance, target: str) -> bytes:
    return _core.transcode(one.dataset, one.transfer_syntax, target, MOST)


def _to_every_target(name: str, one: Instance) -> Iterator[Job]:
    for target in TARGETS:
        if target != one.transfer_syntax:
            yield Job(f"{name} to {target}", target, one.sop_class, one.sop_instance, partial(_transcoded, one, target))


def of_curated_files() -> Iterator[Job]:
    folder = curated_folder()
    for name, one in curated_instances(folder) if folder else ():
        if name not in NOT_BY_STORESCU and _is_taken(one):
            yield from _to_every_target(name, one)


def _is_taken(one: Instance) -> bool:
    """Whether the service stores it: without an identity nobody takes it."""
    try:
        _core.scan(one.dataset, one.transfer_syntax, [])
    except CoreError:
        return False
    return True


def of_nested_pixels() -> Iterator[Job]:
    for syntax in (JPEG, JPEG_LOSSLESS, JPEG_LS, JPEG_2000, RLE):
        for case in nested(syntax):
            yield from _to_every_target(case.name, case.instance)


def of_odd_frames() -> Iterator[Job]:
    for number, odd in enumerate(odd_frames()):
        sop_instance = f"1.2.826.0.1.3680043.10.9999.7.{number}"
        name = f"{odd.name} in {odd.transfer_syntax}"
        yield Job(name, EXPLICIT, SECONDARY_CAPTURE, sop_instance, partial(_odd, odd, sop_instance))


def _odd(odd: Odd, sop_instance: str) -> bytes:
    return _identity(sop_instance) + _native(odd)


def _native(odd: Odd) -> bytes:
    stored = 12 if odd.pixels.dtype.itemsize == 2 else 8
    photometric = "YBR_FULL_422" if odd.pixels.ndim == 3 and odd.transfer_syntax == JPEG else None
    return transcode(odd.frame, odd.transfer_syntax, odd.pixels, bits_stored=stored, photometric=photometric)


def _identity(sop_instance: str) -> bytes:
    values = {
        0x00080016: SECONDARY_CAPTURE,
        0x00080018: sop_instance,
        0x0020000D: "1.2.826.0.1.3680043.10.9999.7",
        0x0020000E: "1.2.826.0.1.3680043.10.9999.7.1",
    }
    return b"".join(explicit(tag, b"UI", text(value, b"\0")) for tag, value in values.items())


def jobs() -> list[Job]:
    found = [*of_curated_files(), *of_nested_pixels(), *of_odd_frames()]
    # Always the same sample, whatever the seed of the run.
    random.Random(1).shuffle(found)
    return found


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    accepts = {"DicomAlwaysAllowStore": True, "UnknownSopClassAccepted": True, "DeflatedTransferSyntaxAccepted": True}
    with running(tmp_path_factory.mktemp("orthanc"), OverwriteInstances=True, **accepts) as started:
        yield started


def write(job: Job, path: Path) -> bool:
    """Whether it can be transcoded; what cannot is kept as received, and no result."""
    try:
        dataset = job.make()
    except CoreError:
        return False
    label = LABELS.get(job.target, job.target)
    path.write_bytes(file_meta(job.sop_class, job.sop_instance, label, "TEST") + dataset)
    return True


def sent(files: list[Path], label: str, port: int) -> tuple[set[str], str]:
    """The names of the files that were sent and accepted, and what storescu said."""
    command = ["storescu", "-v", "-nh", "-R", OPTIONS[label], "127.0.0.1", str(port), *map(str, files)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=600,
        # Without it DCMTK waits 40 ms for a delayed acknowledgement with each instance.
        env=os.environ | {"TCP_NODELAY": "1"},
    )
    accepted, name = set(), ""
    for line in (done.stdout + done.stderr).splitlines():
        if found := re.match(r"I: Sending file: (.*)", line):
            name = Path(found[1]).name
        elif line.startswith("I: Received Store Response (Success)"):
            accepted.add(name)
    return accepted, done.stdout + done.stderr


def batches(wanted: int, folder: Path) -> Iterator[tuple[str, dict[Path, Job]]]:
    """Files of one transfer syntax at a time, which are gone afterwards."""
    waiting: dict[str, dict[Path, Job]] = {}
    for number, job in enumerate(jobs()):
        if wanted == 0:
            break
        path = folder / f"{number}.dcm"
        if not write(job, path):
            continue
        wanted -= 1
        label = LABELS.get(job.target, job.target)
        batch = waiting.setdefault(label, {})
        batch[path] = job
        if len(batch) == BATCH:
            yield label, waiting.pop(label)
    yield from waiting.items()


def test_every_transcoded_file_is_sent_on_and_taken(orthanc: Orthanc, tmp_path: Path) -> None:
    wanted = -1 if os.environ.get("STORESCP_RESEND_ALL") == "1" else SAMPLE
    refused: dict[str, str] = {}
    counts = Counter[str]()
    for label, written in batches(wanted, tmp_path):
        accepted, said = sent(list(written), label, orthanc.port)
        refused |= {job.name: said for path, job in written.items() if path.name not in accepted}
        counts[label] += len(written)
        for path in written:
            path.unlink()
    print(f"\n{counts.total()} sent: {dict(counts)}")
    assert list(refused) == [], next(iter(refused.values()))[-3000:]
    assert counts.total() >= SAMPLE
