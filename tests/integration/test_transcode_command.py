"""`storescpd transcode` and `inspect` with files, and worker processes under damaged ones."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pydicom
import pytest

from storescp import _core
from storescp.engine import pool_config
from storescp.errors import CoreError
from storescp.pure.store import file_meta, split_file
from storescp.settings import TARGETS, Settings
from support.command import run_in_process
from support.compressed import JPEG_2000, JPEG_LS, RLE, compressed_ct
from support.instances import Instance
from support.scu import EXPLICIT

HTJ2K = "1.2.840.10008.1.2.4.201"


def write(path: Path, one: Instance) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = file_meta(one.sop_class, one.sop_instance, one.transfer_syntax, "TEST")
    path.write_bytes(header + one.dataset)
    return path


def test_a_file_is_transcoded_to_a_file_or_into_a_folder(tmp_path: Path) -> None:
    one = compressed_ct(1, JPEG_LS)
    source = write(tmp_path / "a.dcm", one)
    result = run_in_process("transcode", source, tmp_path / "b.dcm", "--to", EXPLICIT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("1 transcoded, ")
    native = _core.transcode(one.dataset, JPEG_LS, EXPLICIT, 1 << 30)
    assert split_file((tmp_path / "b.dcm").read_bytes()) == (EXPLICIT, native)
    (tmp_path / "folder").mkdir()
    assert run_in_process("transcode", tmp_path / "b.dcm", tmp_path / "folder", "--to", HTJ2K).returncode == 0
    assert pydicom.dcmread(tmp_path / "folder" / "b.dcm").file_meta.TransferSyntaxUID == HTJ2K


def test_a_folder_is_mirrored_and_what_fails_is_named(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    for number, syntax in enumerate((RLE, JPEG_LS, JPEG_2000, EXPLICIT)):
        write(source / str(number) / "x.dcm", compressed_ct(number, syntax))
    (source / "note.txt").write_text("no image")
    result = run_in_process("transcode", source, target, "--to", EXPLICIT)
    assert result.returncode == 1
    assert result.stdout.startswith("4 transcoded, 1 not, ")
    assert f"not transcoded {source}/note.txt: not a DICOM file (PS3.10)" in result.stderr
    found = sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())
    assert found == [f"{number}/x.dcm" for number in range(4)]
    again = run_in_process("transcode", source / "0", target / "0", "--to", EXPLICIT)
    assert again.returncode == 1
    assert "is there already" in again.stderr
    assert "lies inside" in run_in_process("transcode", source, source / "deeper", "--to", EXPLICIT).stderr


@pytest.mark.parametrize("target", ["1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.2", "nonsense"])
def test_only_what_can_be_encoded_without_loss_is_a_target(tmp_path: Path, target: str) -> None:
    source = write(tmp_path / "a.dcm", compressed_ct(1, RLE))
    result = run_in_process("transcode", source, tmp_path / "b.dcm", "--to", target)
    assert result.returncode == 2
    listed = [line.strip() for line in result.stderr.splitlines() if line.startswith("  ")]
    assert listed == sorted(listed)
    assert "JPEG-LS Lossless Image Compression (1.2.840.10008.1.2.4.80)" in listed
    assert len(listed) == len(TARGETS)
    assert EXPLICIT in result.stderr
    assert not (tmp_path / "b.dcm").exists()


def test_inspect_says_what_would_happen_and_why(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(f'[dicom_store_scp]\ncornerstonejs_supported_transfer_syntax = ["{EXPLICIT}"]\n')
    good = compressed_ct(1, RLE)
    cut = Instance(
        good.sop_class, good.sop_instance, RLE, good.dataset.replace(b"\x02\0\0\0\x40\0\0\0", b"\xff\0\0\0\x40\0\0\0")
    )
    for one, expected in (
        (compressed_ct(1, EXPLICIT), "as received: viewers read its transfer syntax"),
        (good, f"as {EXPLICIT} Explicit VR Little Endian"),
        (cut, "as received, recorded as Failed: codec: frame 1: RLE: 1 to 15 segments are possible"),
    ):
        result = run_in_process("-c", config, "inspect", write(tmp_path / "x.dcm", one))
        assert result.returncode == 0, result.stderr
        assert f"would be stored     {expected}\n" in result.stdout


def test_damaged_frames_never_break_the_pool(tmp_path: Path) -> None:
    """Random damage to frames of every codec: an error or a result, in time, and the next file works."""
    pool = _core.Transcoder(json.dumps(pool_config(Settings()) | {"timeout": 5}))
    generator = random.Random(1)
    good = write(tmp_path / "good.dcm", compressed_ct(1, RLE))
    results, errors = 0, []
    began = time.monotonic()

    def transcode(path: Path, syntax: str) -> None:
        content = path.read_bytes()
        parts = split_file(content)
        assert parts is not None
        target = tmp_path / "out.dcm"
        target.unlink(missing_ok=True)
        pool.transcode_file(path, len(content) - len(parts[1]), target, b"", syntax, EXPLICIT, 1 << 30)

    for syntax in (RLE, JPEG_LS, JPEG_2000, HTJ2K):
        one = compressed_ct(2, syntax)
        begin = one.dataset.rindex(b"\xe0\x7f\x10\x00OB") + 20
        for _ in range(60):
            damaged = bytearray(one.dataset)
            for _ in range(generator.randint(1, 8)):
                damaged[generator.randrange(begin, len(damaged) - 8)] = generator.randrange(256)
            path = write(tmp_path / "bad.dcm", Instance(one.sop_class, one.sop_instance, syntax, bytes(damaged)))
            try:
                transcode(path, syntax)
                results += 1
            except CoreError as error:
                errors.append(f"{syntax}: {error}")
    transcode(good, RLE)
    print(f"\n{results} results, {len(errors)} errors, {time.monotonic() - began:.1f} s")
    assert len(errors) > 20
    assert not [error for error in errors if "no progress" in error]
    assert time.monotonic() - began < 60
