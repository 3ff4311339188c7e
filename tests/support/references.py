"""What other decoders make of a compressed file: the pixels that ours must equal."""

from __future__ import annotations

import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder, pixel_array

Pixels = NDArray[np.generic]
JPEG_LOSSY = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.55")
NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")
LOSSY = (*JPEG_LOSSY, "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.112")
_DCMTK = {
    **dict.fromkeys((*JPEG_LOSSY, "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"), "dcmdjpeg"),
    **dict.fromkeys(("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"), "dcmdjpls"),
    "1.2.840.10008.1.2.5": "dcmdrle",
}
_JPEG_XL = ("1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.4.111", "1.2.840.10008.1.2.4.112")


def references(path: Path, folder: Path) -> Iterator[tuple[str, Pixels]]:
    """Name and pixels of every reference that can read the file; `folder` holds the uncompressed twins."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(path)
        except Exception as error:  # noqa: BLE001 - whatever pydicom raises of what nobody can read
            print(f"{path.name}: {str(error)[:100]!r}")
            return
        for name, read in _candidates(path, dataset, folder):
            try:
                pixels = read()
            except Exception as error:  # noqa: BLE001 - whatever another decoder raises
                print(f"{path.name}: {name}: {str(error)[:100]!r}")
                continue
            yield name, np.squeeze(np.asarray(pixels))


def _candidates(path: Path, dataset: pydicom.Dataset, folder: Path) -> Iterator[tuple[str, Callable[[], Pixels]]]:
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
    twin = _twin(path, folder)
    if twin is not None:
        yield "uncompressed original", lambda: pydicom.dcmread(twin, force=True).pixel_array
    if syntax in NATIVE:
        yield "pydicom", lambda: pixel_array(dataset, raw=True)
    if syntax in _JPEG_XL:
        yield "libjxl", lambda: _frames(dataset, imagecodecs.jpegxl_decode)
    if syntax == "1.2.840.10008.1.2.4.201":
        yield "OpenJPH", lambda: _frames(dataset, imagecodecs.htj2k_decode)
    if syntax in _DCMTK:
        yield "DCMTK", lambda: _by_dcmtk(_DCMTK[syntax], path)
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        return
    for plugin in decoder.available_plugins:
        # In this process: gdcm's plugin ends it on some files.
        if plugin != "gdcm":
            yield plugin, lambda plugin=plugin: decoder.as_array(dataset, decoding_plugin=plugin)[0]


def _twin(path: Path, folder: Path) -> Path | None:
    """The file with the same pixels that was never compressed, where the name says which."""
    name = path.name
    lossless = name.startswith("wg04") and name.rsplit("_", 1)[1] in ("J2KR.dcm", "JLSL.dcm", "JPLL.dcm", "RLE.dcm")
    if lossless:
        return folder / f"{name.rsplit('_', 1)[0]}_REF.dcm"
    if name in ("drv_encap_uncompressed_US1.dcm", "drv_jxl_lossless_US1.dcm"):
        return folder / "wg04_US1_REF.dcm"
    if name.startswith("pdd_liver_"):
        return folder / "pdd_liver.dcm"
    return None


def _frames(dataset: pydicom.Dataset, decode: Callable[[bytes], Pixels]) -> Pixels:
    count = int(dataset.get("NumberOfFrames", 1) or 1)
    return np.stack([decode(frame) for frame in generate_frames(dataset.PixelData, number_of_frames=count)])


def _sizes_of_jpeg_frames(dataset: pydicom.Dataset) -> set[tuple[int, int]]:
    """Rows and columns by the frame headers (ISO/IEC 10918-1 B.2.2)."""
    sizes = set()
    for frame in generate_frames(dataset.PixelData, number_of_frames=int(dataset.get("NumberOfFrames", 1) or 1)):
        at = 2
        while not (0xC0 <= frame[at + 1] <= 0xCF and frame[at + 1] not in (0xC4, 0xC8, 0xCC)):
            at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
        sizes.add((int.from_bytes(frame[at + 5 : at + 7], "big"), int.from_bytes(frame[at + 7 : at + 9], "big")))
    return sizes


def _by_dcmtk(program: str, path: Path) -> Pixels:
    dataset = pydicom.dcmread(path)
    if program == "dcmdjpeg" and _sizes_of_jpeg_frames(dataset) != {(dataset.Rows, dataset.Columns)}:
        # DCMTK writes the bytes of a narrower frame into a wider one, line after line.
        raise RuntimeError("frames of another size than the data set says")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "native.dcm"
        result = subprocess.run([program, str(path), str(target)], capture_output=True, check=False, timeout=60)
        if result.returncode:
            raise RuntimeError(result.stderr.decode(errors="replace"))
        return pydicom.dcmread(target).pixel_array


def largest_difference(ours: Pixels, theirs: Pixels) -> int | None:
    """In grey levels; none where the shapes differ."""
    ours, theirs = np.squeeze(ours), np.squeeze(theirs)
    if ours.shape != theirs.shape:
        return None
    return int(np.abs(ours.astype(np.int64) - theirs.astype(np.int64)).max(initial=0))
