"""Transcoding in plain Python, with pydicom's decoders: from encapsulated syntaxes to Explicit VR Little Endian.

The same rules as the Rust core's, so that the two can be compared: only Pixel Data and what must change with it are
rewritten. What pydicom and its plugins cannot decode is an error here, and the original is stored.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.filereader import data_element_generator
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import pack_bits

from storescp.pure.index import number_of_frames
from storescp.pure.store import file_meta

EXPLICIT = "1.2.840.10008.1.2.1"
_NATIVE = frozenset({"1.2.840.10008.1.2", EXPLICIT, "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"})
_JPEG_LOSSY = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 53, 55))
_JPEG_LS = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (80, 81))
_JPEG_2000 = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (90, 91, 92, 93, 201, 202, 203))
_UNCOMPRESSED, _DEFLATED_FRAMES = "1.2.840.10008.1.2.1.98", "1.2.840.10008.1.2.8.1"
_PIXEL_DATA = 0x7FE00010
_STALE = (0x7FE00001, 0x7FE00002, 0x7FE00003)
_BITS_ALLOCATED, _SAMPLES = (1, 8, 16, 32, 64), (1, 3, 4)
_LARGEST_VALUE = 0xFFFFFFFE


class TranscodeError(Exception):
    """It cannot be transcoded here; the text says why."""


@dataclass(frozen=True)
class _Description:
    rgb: bool
    lossy: str | None


def can_transcode(transfer_syntax: str) -> bool:
    """Whether there is a decoder, as far as the syntax tells."""
    if transfer_syntax in (_UNCOMPRESSED, _DEFLATED_FRAMES):
        return True
    if transfer_syntax in _NATIVE:
        return False
    try:
        return bool(get_decoder(transfer_syntax).available_plugins)
    except NotImplementedError:
        return False


def to_explicit(dataset: bytes, transfer_syntax: str, max_decoded_bytes: int) -> bytes:
    """The data set in Explicit VR Little Endian.

    Raises:
        TranscodeError: attributes that make no sense, damage, no decoder.
    """
    header = file_meta("1.2", "1.2", transfer_syntax, "")
    try:
        image = pydicom.dcmread(BytesIO(header + dataset))
        frames = _check(image, max_decoded_bytes)
        # What pydicom reads from here on is the number of this service's rule.
        image.NumberOfFrames = frames
        first = next(generate_frames(image.PixelData, number_of_frames=frames))
        description = _describe(image, first, transfer_syntax)
        native = _decode(image, transfer_syntax, frames, rgb=description.rgb)
    except TranscodeError:
        raise
    except Exception as error:
        # Whatever pydicom and its plugins raise on a damaged image.
        raise TranscodeError(str(error)) from error
    return _rewrite(dataset, _edits(image, description, native))


def _check(image: Dataset, max_decoded_bytes: int) -> int:
    """PS3.3 C.7.6.3; the number of frames."""
    frames = number_of_frames(_raw_value(image, "NumberOfFrames"))
    if frames is None:
        raise TranscodeError("Number of Frames is not a number")
    if image.BitsAllocated not in _BITS_ALLOCATED or image.SamplesPerPixel not in _SAMPLES:
        raise TranscodeError("Bits Allocated or Samples per Pixel make no sense")
    if (
        not image.Rows
        or not image.Columns
        or not 1 <= image.get("BitsStored", image.BitsAllocated) <= image.BitsAllocated
    ):
        raise TranscodeError("Rows, Columns or Bits Stored make no sense")
    if _native_bytes(image, frames) > min(max_decoded_bytes, _LARGEST_VALUE):
        raise TranscodeError("the pixels decode to too many bytes")
    return frames


def _raw_value(image: Dataset, keyword: str) -> bytes:
    element = image.get_item(keyword) if keyword in image else None
    return element.value or b"" if isinstance(element, RawDataElement) else b""


def _native_bytes(image: Dataset, frames: int) -> int:
    bits = image.Rows * image.Columns * image.SamplesPerPixel * image.BitsAllocated * frames
    return int(-(-bits // 8))


def _describe(image: Dataset, frame: bytes, transfer_syntax: str) -> _Description:
    photometric = image.get("PhotometricInterpretation", "")
    if transfer_syntax in _JPEG_LOSSY:
        return _Description(_is_ycc(frame, photometric), "ISO_10918_1")
    if transfer_syntax in _JPEG_LS:
        near = frame[frame.index(b"\xff\xda") + 5 + 2 * image.SamplesPerPixel]
        return _Description(False, "ISO_14495_1" if near else None)
    if transfer_syntax in _JPEG_2000:
        begin = frame.index(b"\xff\x4f\xff\x51")
        reversible = frame[frame.index(b"\xff\x52", begin) + 13] == 1
        return _Description(photometric in ("YBR_RCT", "YBR_ICT"), None if reversible else "ISO_15444_1")
    return _Description(False, None)


def _is_ycc(frame: bytes, photometric: str) -> bool:
    """Whether a JPEG frame of three components is YCbCr: by its markers, else by the data set."""
    jfif, adobe, ids, at = False, None, b"", 2
    while frame[at + 1] != 0xDA:
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        body = frame[at + 4 : at + 2 + length]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            ids = body[6::3]
        jfif |= marker == 0xE0 and body.startswith(b"JFIF\0")
        if marker == 0xEE and body.startswith(b"Adobe"):
            adobe = body[11]
        at += 2 + length
    if len(ids) != 3:
        return False
    return bool(adobe) if adobe is not None else jfif or (ids != b"RGB" and photometric != "RGB")


def _decode(image: Dataset, transfer_syntax: str, frames: int, *, rgb: bool) -> bytes:
    wanted = _native_bytes(image, frames)
    if transfer_syntax in (_UNCOMPRESSED, _DEFLATED_FRAMES):
        parts = generate_frames(image.PixelData, number_of_frames=frames)
        size = _native_bytes(image, 1)
        if transfer_syntax == _DEFLATED_FRAMES:
            parts = (zlib.decompressobj(-zlib.MAX_WBITS).decompress(part, size + 2) for part in parts)
        native = b"".join(part[:size] for part in parts)
    else:
        decoder = get_decoder(transfer_syntax)
        preferred = "pillow" if transfer_syntax in _JPEG_LOSSY and "pillow" in decoder.available_plugins else ""
        pixels, _ = decoder.as_array(image, raw=not rgb, decoding_plugin=preferred)
        native = pack_bits(pixels, pad=False) if image.BitsAllocated == 1 else pixels.tobytes()
    if len(native) != wanted:
        raise TranscodeError(f"{len(native)} bytes of pixels instead of {wanted}")
    return native


def _edits(image: Dataset, description: _Description, native: bytes) -> dict[int, bytes | None]:
    edits: dict[int, bytes | None] = dict.fromkeys(_STALE)
    if description.lossy is not None and image.get("LossyImageCompression") != "01":
        frames = generate_frames(image.PixelData, number_of_frames=image.NumberOfFrames)
        ratio = len(native) * 100 // max(1, sum(map(len, frames)))
        edits[0x00282110] = _element(0x00282110, b"CS", b"01")
        edits[0x00282112] = _element(0x00282112, b"DS", f"{ratio // 100}.{ratio % 100:02}".encode())
        edits[0x00282114] = _element(0x00282114, b"CS", description.lossy.encode())
    if description.rgb and image.get("PhotometricInterpretation") != "RGB":
        edits[0x00280004] = _element(0x00280004, b"CS", b"RGB")
    if image.SamplesPerPixel > 1 and image.get("PlanarConfiguration") != 0:
        edits[0x00280006] = _element(0x00280006, b"US", b"\0\0")
    vr = b"OW" if image.BitsAllocated > 8 else b"OB"
    padded = native + b"\0" * (len(native) % 2)
    edits[_PIXEL_DATA] = struct.pack("<HH2sHL", 0x7FE0, 0x0010, vr, 0, len(padded)) + padded
    return edits


def _element(tag: int, vr: bytes, value: bytes) -> bytes:
    value += b" " * (len(value) % 2)
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value


def _rewrite(dataset: bytes, edits: dict[int, bytes | None]) -> bytes:
    parts = []
    pending = sorted(edits)
    for tag, element in _top_level(dataset):
        while pending and (pending[0] < tag or (tag == _PIXEL_DATA and pending[0] != tag)):
            parts.append(edits[pending.pop(0)] or b"")
        if tag in edits:
            if tag in pending:
                pending.remove(tag)
            parts.append(edits[tag] or b"")
        elif tag not in (0x00280000, 0x7FE00000):
            parts.append(element)
    parts += [edits[tag] or b"" for tag in pending]
    return b"".join(parts)


def _top_level(dataset: bytes) -> Iterator[tuple[int, bytes]]:
    stream = BytesIO(dataset)
    begin = 0
    for element in data_element_generator(stream, is_implicit_VR=False, is_little_endian=True):
        end = stream.tell()
        yield int(element.tag), dataset[begin:end]
        begin = end
