"""Frames that other decoders read: the same pixels, or the original is kept where samples are damaged."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.pixels import get_decoder

from storescp.errors import CoreError
from storescp.pure.store import file_meta
from support.frames import Array, decode, image
from support.instances import explicit, text
from support.odd_frames import (
    JPEG,
    JPEG_LS,
    PROGRESSIVE,
    RLE,
    Odd,
    jpeg_2000_frames,
    jpeg_frames,
    jpeg_ls_frames,
    mislabelled_frames,
    rle_frames,
)

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]
KINDS: dict[str, Callable[[], Iterator[Odd]]] = {
    "JPEG": jpeg_frames,
    "JPEG 2000": jpeg_2000_frames,
    "JPEG-LS": jpeg_ls_frames,
    "RLE": rle_frames,
    "mislabelled": mislabelled_frames,
}
# Some reference has the pixels by luck, and says or should say that there is damage.
DAMAGED = ("cut by", "restarts: one is wrong", "is missing", "too few", "fewer", "literal cut")
# A transform of which CharLS knows no inverse: the pixels are those of a decoder that ignores it only because there was none.
DOUBTFUL = ("colour: APP8 of transform",)


def limit(odd: Odd) -> int:
    """Grey levels: other inverse transforms round otherwise (ISO/IEC 10918-2), twice in colour."""
    return 2 if odd.transfer_syntax in (JPEG, PROGRESSIVE) or odd.name.startswith((".4.50", "4.50")) else 0


def attributes(odd: Odd) -> dict[str, object]:
    lossy_colour = odd.pixels.ndim == 3 and odd.transfer_syntax in (JPEG, PROGRESSIVE)
    return {
        "bits_stored": 12 if odd.pixels.dtype.itemsize == 2 else 8,
        "photometric": "YBR_FULL_422" if lossy_colour else None,
    }


def ours(odd: Odd) -> Array | None:
    try:
        return decode(odd.frame, odd.transfer_syntax, odd.pixels, **attributes(odd))
    except CoreError as error:
        if not str(error).startswith(("codec: ", "frames: ")):
            raise
        return None


def difference(theirs: Array, odd: Odd) -> int:
    theirs = np.squeeze(np.asarray(theirs))
    if theirs.shape != odd.pixels.shape:
        return 1 << 16
    return int(np.abs(theirs.astype(int) - odd.pixels.astype(int)).max())


@pytest.mark.parametrize("kind", KINDS)
def test_damage_outside_the_samples_is_no_damage_to_pixels(kind: str) -> None:
    """What is beside the samples may be anything that `METADATA` and the others have; what is of them may not."""
    read = 0
    for odd in KINDS[kind]():
        pixels = ours(odd)
        if pixels is None:
            continue
        assert difference(pixels, odd) <= limit(odd), odd.name
        assert not any(word in odd.name for word in DAMAGED if word != "is missing"), odd.name
        read += 1
    assert read >= {"JPEG": 400, "JPEG 2000": 90, "JPEG-LS": 200, "RLE": 45, "mislabelled": 10}[kind]


def write(odd: Odd, path: Path) -> Path:
    frame = odd.frame + b"\0" * (len(odd.frame) % 2)
    items = b"".join(struct.pack("<HHL", 0xFFFE, 0xE000, len(item)) + item for item in (b"", frame))
    uid = lambda tag, value: explicit(tag, b"UI", text(value, b"\0"))  # noqa: E731 - shorter than a function here
    identity = [
        uid(0x00080016, "1.2.840.10008.5.1.4.1.1.7"),
        uid(0x00080018, "2.25.1"),
        uid(0x0020000D, "2.25.2"),
        uid(0x0020000E, "2.25.3"),
    ]
    end = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    dataset = b"".join([*identity, *image(odd.pixels, **attributes(odd))])  # type: ignore[arg-type]
    header = file_meta("1.2.840.10008.5.1.4.1.1.7", "2.25.1", odd.transfer_syntax, "TEST")
    path.write_bytes(header + dataset + b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff" + items + end)
    return path


def by_pydicom(path: Path, odd: Odd) -> Iterator[tuple[str, Array]]:
    # pydicom has none for the retired syntax, and its decoders of JPEG do not look at the syntax.
    syntax = JPEG if odd.transfer_syntax == PROGRESSIVE else odd.transfer_syntax
    decoder = get_decoder(syntax)
    for plugin in decoder.available_plugins:
        if plugin == "gdcm":
            continue
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
        try:
            yield plugin, decoder.as_array(dataset, decoding_plugin=plugin)[0]
        except Exception:  # noqa: BLE001 - whatever another decoder raises
            continue
        except BaseException as error:
            # pylibjpeg's RLE decoder panics.
            if type(error).__name__ != "PanicException":
                raise


def by_program(path: Path, odd: Odd) -> Iterator[tuple[str, Array]]:
    program = {JPEG_LS: "dcmdjpls", RLE: "dcmdrle"}.get(odd.transfer_syntax, "dcmdjpeg")
    target = path.with_suffix(".native")
    for command in ([program], ["gdcmconv", "-w"]):
        target.unlink(missing_ok=True)
        try:
            done = subprocess.run([*command, path, target], capture_output=True, check=False, timeout=20)
        except FileNotFoundError:
            continue
        if done.returncode == 0 and target.exists():
            try:
                yield command[0], pydicom.dcmread(target).pixel_array
            except Exception:  # noqa: BLE001 - what it wrote cannot be read
                continue


def worse_than_others(odd: Odd, folder: Path) -> str | None:
    """Which reference has the pixels where we have none."""
    if ours(odd) is not None or any(word in odd.name for word in (*DAMAGED, *DOUBTFUL)):
        return None
    path = write(odd, folder / f"{abs(hash((odd.name, odd.transfer_syntax)))}.dcm")
    for by in (by_pydicom, by_program):
        for name, pixels in by(path, odd):
            if difference(pixels, odd) <= limit(odd):
                return f"{odd.name}: {name}"
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_what_another_decoder_reads_is_read(kind: str, tmp_path: Path) -> None:
    """pydicom with its plugins, DCMTK and GDCM are asked for what we refuse."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = threads.map(lambda odd: worse_than_others(odd, tmp_path), KINDS[kind]())
        assert [one for one in found if one] == []
