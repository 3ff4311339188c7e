"""Data sets made by the tests, and real ones taken apart."""

from __future__ import annotations

import csv
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from support.scu import EXPLICIT, IMPLICIT

CT = "1.2.840.10008.5.1.4.1.1.2"
SR = "1.2.840.10008.5.1.4.1.1.88.11"
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}


@dataclass(frozen=True)
class Instance:
    """What a C-STORE brings."""

    sop_class: str
    sop_instance: str
    transfer_syntax: str
    dataset: bytes


def explicit(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """One element, Explicit VR Little Endian."""
    size = len(value) if length is None else length
    if vr in _LONG:
        return struct.pack("<HH2sHL", tag >> 16, tag & 0xFFFF, vr, 0, size) + value
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, size) + value


def text(value: str | bytes, padding: bytes = b" ") -> bytes:
    raw = value.encode("utf-8") if isinstance(value, str) else value
    return raw + padding * (len(raw) % 2)


def ct_slice(
    number: int,
    *,
    study: str = "1.2.826.0.1.3680043.10.9999.1",
    series: str = "1.2.826.0.1.3680043.10.9999.1.1",
    rows: int = 512,
    changes: dict[int, bytes | None] | None = None,
) -> Instance:
    """A CT slice of `rows` x `rows` 16-bit pixels; `changes` replaces or (None) removes whole elements."""
    sop_instance = f"{series}.{number}"
    uid = lambda value: text(value, b"\0")  # noqa: E731 - shorter than a function here
    elements: dict[int, bytes] = {
        0x00080005: explicit(0x00080005, b"CS", text("ISO_IR 192")),
        0x00080016: explicit(0x00080016, b"UI", uid(CT)),
        0x00080018: explicit(0x00080018, b"UI", uid(sop_instance)),
        0x00080020: explicit(0x00080020, b"DA", b"20260102"),
        0x00080050: explicit(0x00080050, b"SH", text("ACC1")),
        0x00080060: explicit(0x00080060, b"CS", b"CT"),
        0x00100010: explicit(0x00100010, b"PN", text("Doe^Jane")),
        0x00100020: explicit(0x00100020, b"LO", text("P-0001")),
        0x0020000D: explicit(0x0020000D, b"UI", uid(study)),
        0x0020000E: explicit(0x0020000E, b"UI", uid(series)),
        0x00200013: explicit(0x00200013, b"IS", text(str(number))),
        0x00280002: explicit(0x00280002, b"US", struct.pack("<H", 1)),
        0x00280004: explicit(0x00280004, b"CS", text("MONOCHROME2")),
        0x00280010: explicit(0x00280010, b"US", struct.pack("<H", rows)),
        0x00280011: explicit(0x00280011, b"US", struct.pack("<H", rows)),
        0x00280100: explicit(0x00280100, b"US", struct.pack("<H", 16)),
        0x00280101: explicit(0x00280101, b"US", struct.pack("<H", 12)),
        0x00280102: explicit(0x00280102, b"US", struct.pack("<H", 11)),
        0x00280103: explicit(0x00280103, b"US", struct.pack("<H", 0)),
    }
    changes = changes or {}
    if changes.get(0x7FE00010) is None:
        pixels = np.random.default_rng(number).integers(0, 4096, rows * rows, dtype=np.uint16)
        elements[0x7FE00010] = explicit(0x7FE00010, b"OW", pixels.tobytes())
    for tag, value in changes.items():
        if value is None:
            elements.pop(tag)
        else:
            elements[tag] = value
    return Instance(CT, sop_instance, EXPLICIT, b"".join(elements[tag] for tag in sorted(elements)))


def from_file(path: Path) -> Instance | None:
    """The data set of a PS3.10 file as its bytes; the UIDs are those of the data set (what an SCU sends).

    None where it is no PS3.10 file.
    """
    content = path.read_bytes()
    if content[128:132] != b"DICM":
        return None
    at, syntax = 132, IMPLICIT
    while at + 8 <= len(content):
        group, number, vr, length = struct.unpack_from("<HH2sH", content, at)
        if group != 2:
            break
        header = 8
        if vr in _LONG:
            length, header = struct.unpack_from("<L", content, at + 8)[0], 12
        if number == 0x0010:
            syntax = content[at + header : at + header + length].rstrip(b"\0 ").decode("ascii")
        at += header + length
    return Instance(*_identity(path), syntax, content[at:])


def _identity(path: Path) -> tuple[str, str]:
    from pydicom.filereader import read_partial

    with path.open("rb") as file:
        dataset = read_partial(file, stop_when=lambda tag, _vr, _length: tag > 0x00080018, force=True)
    meta = dataset.file_meta
    sop_class = dataset.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID", "")
    sop_instance = dataset.get("SOPInstanceUID") or meta.get("MediaStorageSOPInstanceUID", "")
    return str(sop_class), str(sop_instance)


def dataset_of(path: Path) -> bytes:
    """The data set bytes of a file that we wrote."""
    content = path.read_bytes()
    assert content[:128] == bytes(128)
    assert content[128:132] == b"DICM"
    assert content[132:140] == b"\x02\x00\x00\x00UL\x04\x00"
    return content[144 + struct.unpack_from("<L", content, 140)[0] :]


def curated_folder() -> Path | None:
    """The folder of real files, where there is one: STORESCP_CURATED, or shared/dicom/curated beside the checkout."""
    named = os.environ.get("STORESCP_CURATED")
    folder = Path(named) if named else Path(__file__).parents[3] / "shared" / "dicom" / "curated"
    return folder if folder.is_dir() else None


def _manifest(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "manifest.csv").open(encoding="utf-8", newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def curated_instances(folder: Path) -> Iterator[tuple[str, Instance]]:
    """Every curated file by name, as it would be sent."""
    rows = _manifest(folder)
    for path in sorted(folder.glob("*.dcm")):
        instance = from_file(path)
        if instance is None:
            explicit_vr = path.read_bytes()[4:6].isalpha()
            instance = _bare_dataset(path, rows[path.name]["ts"] or (EXPLICIT if explicit_vr else IMPLICIT))
        yield path.name, instance


def _bare_dataset(path: Path, transfer_syntax: str) -> Instance:
    """A file that is a data set only, or something else altogether."""
    import pydicom

    dataset = pydicom.dcmread(path, force=True, stop_before_pixels=True)
    return Instance(
        str(dataset.get("SOPClassUID", "")), str(dataset.get("SOPInstanceUID", "")), transfer_syntax, path.read_bytes()
    )
