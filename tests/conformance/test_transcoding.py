"""Real compressed files: the pixels of other decoders, everything else as it was."""

from __future__ import annotations

import csv
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest

from storescp import _core
from storescp.errors import CoreError
from storescp.pure.store import file_meta
from support.instances import Instance, from_file
from support.references import LOSSY, NATIVE, largest_difference, references

pytestmark = [pytest.mark.curated, pytest.mark.filterwarnings("ignore::UserWarning")]

PROJECT = Path(__file__).parents[2]
TABLE = PROJECT / "docs" / "reference" / "transcoding-files.md"
EXPLICIT = "1.2.840.10008.1.2.1"
TARGETS = [uid for uid, _, _, encodes in _core.transfer_syntaxes() if encodes]
DEFLATED = "1.2.840.10008.1.2.1.99"
HTJ2K = ("1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202")
MOST = 1 << 31


@dataclass(frozen=True)
class Row:
    """One line of the table in the documentation."""

    name: str
    source: str
    target: str
    result: str
    reference: str
    difference: str

    def __str__(self) -> str:
        parts = (self.name, self.source, self.target, self.result, self.reference, self.difference)
        return "| " + " | ".join(parts) + " |"


def compressed(curated: Path) -> Iterator[tuple[Path, Instance]]:
    with (curated / "manifest.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            path = curated / row["name"]
            if row["ts"] and row["ts"] not in NATIVE:
                one = from_file(path)
                assert one is not None or row["part10"] == "0", path.name
                if one is not None:
                    yield path, one


def write(path: Path, one: Instance, transfer_syntax: str, dataset: bytes) -> Path:
    path.write_bytes(file_meta(one.sop_class, one.sop_instance, transfer_syntax, "TEST") + dataset)
    return path


def row_of(path: Path, one: Instance, curated: Path, folder: Path) -> Row:
    syntax = one.transfer_syntax
    if re.match(r"1\.2\.840\.10008\.1\.2\.4\.(94|95|10\d|204|205)", syntax):
        return Row(path.name, syntax, "", "as received: video or JPIP", "", "")
    known = list(references(path, curated))
    try:
        dataset = _core.transcode(one.dataset, syntax, EXPLICIT, MOST)
    except CoreError as error:
        verdict = "no reference decodes it either" if not known else "REFERENCES DECODE IT"
        return Row(path.name, syntax, "", f"as received: {error}", verdict, "")
    ours = pydicom.dcmread(write(folder / path.name, one, EXPLICIT, dataset))
    if "PixelData" not in ours:
        return Row(path.name, syntax, EXPLICIT, "no pixel data", "", "")
    pixels = ours.pixel_array
    differences = {name: largest_difference(pixels, theirs) for name, theirs in known}
    comparable = {name: one for name, one in differences.items() if one is not None}
    if not comparable:
        return Row(path.name, syntax, EXPLICIT, "transcoded", "NONE", "")
    best = min(comparable, key=lambda name: comparable[name])
    return Row(path.name, syntax, EXPLICIT, "transcoded", best, str(comparable[best]))


@pytest.mark.timeout(300)
def test_every_compressed_file_has_the_pixels_of_a_reference(curated: Path, tmp_path: Path) -> None:
    """Also writes the table of the documentation where STORESCP_WRITE_TABLES is set, and else compares with it."""
    rows = [row_of(path, one, curated, tmp_path) for path, one in compressed(curated)]
    assert len(rows) > 80
    allowed = {row.name: (2 if "RGB" in _photometric(curated / row.name) else 1) for row in rows}
    wrong = [
        row
        for row in rows
        if row.reference in ("NONE", "REFERENCES DECODE IT")
        or (row.difference and int(row.difference) > (allowed[row.name] if row.source in LOSSY else 0))
    ]
    assert wrong == []
    table = "\n".join(map(str, rows))
    if os.environ.get("STORESCP_WRITE_TABLES"):
        head, begin, _ = TABLE.read_text().partition("|---|---|---|---|---|---|\n")
        TABLE.write_text(f"{head}{begin}{table}\n")
    documented = [line.rsplit("|", 3)[0] for line in TABLE.read_text().splitlines() if line.startswith("| ")][1:]
    assert [str(row).rsplit("|", 3)[0] for row in rows] == documented, "make tables"


def _photometric(path: Path) -> str:
    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    return "RGB" if dataset.get("SamplesPerPixel", 1) == 3 else str(dataset.get("PhotometricInterpretation", ""))


def outside_pixel_data(dataset: bytes, syntax: str) -> dict[str, bytes]:
    """The bytes of every top-level element but those that transcoding may change."""
    from pydicom.filebase import DicomBytesIO
    from pydicom.filereader import read_dataset

    changes = {
        0x00280004, 0x00280006, 0x00282110, 0x00282112, 0x00282114, 0x7FE00001, 0x7FE00002, 0x7FE00003, 0x7FE00010,
        0x00280000, 0x7FE00000,
    }  # fmt: skip
    stream = DicomBytesIO(dataset)
    stream.is_little_endian = True
    elements = read_dataset(stream, is_implicit_VR=False, is_little_endian=True)
    found = {}
    for tag in list(elements.keys()):
        if int(tag) not in changes:
            raw = elements.get_item(tag)
            found[str(tag)] = raw.value if isinstance(raw.value, bytes) else raw.to_json_dict(None, 0)
    return found


@pytest.mark.timeout(300)
def test_only_pixel_data_and_what_must_change_with_it_are_rewritten(curated: Path, tmp_path: Path) -> None:
    compared = 0
    for path, one in compressed(curated):
        try:
            dataset = _core.transcode(one.dataset, one.transfer_syntax, EXPLICIT, MOST)
        except CoreError:
            continue
        before, after = (outside_pixel_data(content, EXPLICIT) for content in (one.dataset, dataset))
        assert before == after, path.name
        source = pydicom.dcmread(path, stop_before_pixels=True)
        result = pydicom.dcmread(write(tmp_path / "one.dcm", one, EXPLICIT, dataset), stop_before_pixels=True)
        if source.get("PhotometricInterpretation") == "PALETTE COLOR":
            assert result.PhotometricInterpretation == "PALETTE COLOR"
        if one.transfer_syntax in LOSSY and result.get("Rows") and one.transfer_syntax != "1.2.840.10008.1.2.4.91":
            assert result.LossyImageCompression == "01", path.name
            if source.get("LossyImageCompression") != "01":
                assert float(result.LossyImageCompressionRatio) > 1
                assert result.LossyImageCompressionMethod.startswith("ISO_")
        if result.get("SamplesPerPixel", 1) > 1:
            assert result.PlanarConfiguration == 0
        compared += 1
    assert compared > 80


def errors_of(program: list[str], path: Path) -> set[str]:
    result = subprocess.run(
        [*program, str(path)], capture_output=True, text=True, errors="replace", check=False, timeout=60
    )
    lines = (result.stdout + result.stderr).splitlines()
    return {re.sub(r"<[^>]*>|\d+", "", line) for line in lines if line.startswith(("Error", "E:", "F:"))}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("target", sorted(TARGETS))
def test_validators_find_no_new_error(curated: Path, tmp_path: Path, target: str) -> None:
    checked = 0
    for path, one in compressed(curated):
        try:
            dataset = _core.transcode(one.dataset, one.transfer_syntax, target, MOST)
        except CoreError:
            continue
        # dciodvfy is older than HTJ2K, whose encapsulation is that of JPEG 2000.
        label = "1.2.840.10008.1.2.4.90" if target in HTJ2K else target
        result = write(tmp_path / path.name, one, label, dataset)
        original = write(tmp_path / "original.dcm", one, one.transfer_syntax, one.dataset)
        # Debian's dciodvfy reads no deflated file at all.
        validators = [["dciodvfy"], ["dcmdump", "-q"]][target == DEFLATED :]
        for program in validators:
            new = errors_of(program, result) - errors_of(program, original)
            assert new == set(), (path.name, program)
        result.unlink()
        checked += 1
    assert checked > 60


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_curated_files_come_back_from_every_target(curated: Path, target: str) -> None:
    """Native, to the target, back: the same pixels to the byte, whatever the image is."""
    compared = refused = 0
    for path in sorted(curated.glob("*.dcm")):
        one = from_file(path)
        if one is None or one.transfer_syntax not in NATIVE:
            continue
        try:
            native = _core.transcode(one.dataset, one.transfer_syntax, EXPLICIT, MOST)
            there = _core.transcode(native, EXPLICIT, target, MOST)
        except CoreError:
            refused += 1
            continue
        back = _core.transcode(there, target, EXPLICIT, MOST)
        assert pixel_data(back) == pixel_data(native), path.name
        compared += 1
    print(f"\n{target}: {compared} of {compared + refused}")
    assert compared > 60


def pixel_data(dataset: bytes) -> object:
    from pydicom.filebase import DicomBytesIO
    from pydicom.filereader import read_dataset

    stream = DicomBytesIO(dataset)
    stream.is_little_endian = True
    elements = read_dataset(stream, is_implicit_VR=False, is_little_endian=True)
    if "PixelData" not in elements:
        return None
    planar = elements.get("PlanarConfiguration", 0)
    value = np.frombuffer(elements.PixelData or b"", np.uint8)
    if planar and elements.SamplesPerPixel > 1:
        frames = int(elements.get("NumberOfFrames", 1) or 1)
        cell = elements.BitsAllocated // 8
        used = value[: frames * elements.Rows * elements.Columns * elements.SamplesPerPixel * cell]
        value = used.reshape(frames, elements.SamplesPerPixel, -1, cell).transpose(0, 2, 1, 3).ravel()
    return value.tobytes().rstrip(b"\0")
