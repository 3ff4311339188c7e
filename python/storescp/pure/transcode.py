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
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import generate_fragments, generate_frames
from pydicom.filereader import data_element_generator, read_dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import pack_bits

from storescp.pure.index import number_of_frames
from storescp.pure.nested import NOT_PIXEL_DATA, PIXEL_DATA, NestedError, Splice, decoded, tokens
from storescp.pure.store import file_meta

EXPLICIT = "1.2.840.10008.1.2.1"
_NATIVE = frozenset({"1.2.840.10008.1.2", EXPLICIT, "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"})
_JPEG_LOSSY = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 53, 55))
_JPEG_LOSSLESS = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (57, 70))
_JPEG_LS = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (80, 81))
_JPEG_2000 = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (90, 91, 92, 93, 201, 202, 203))
_UNCOMPRESSED, _DEFLATED_FRAMES = "1.2.840.10008.1.2.1.98", "1.2.840.10008.1.2.8.1"
_STALE = (0x7FE00001, 0x7FE00002, 0x7FE00003)
_BITS_ALLOCATED, _SAMPLES = (1, 8, 16, 32, 64), (1, 3, 4)
_LARGEST_VALUE = 0xFFFFFFFE


# An element that is left out, or its VR and value.
_Edits = dict[int, tuple[bytes, bytes] | None]


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
        job = _Job(transfer_syntax, max_decoded_bytes)
        edits = job.edits(image, notes_loss=True)
        return _rewrite(dataset, edits, job)
    except TranscodeError:
        raise
    except Exception as error:
        # Whatever pydicom and its plugins raise on a damaged image.
        raise TranscodeError(str(error)) from error


class _Job:
    """One data set on its way: the images in it are of one transfer syntax, and decode to so many bytes at most."""

    def __init__(self, transfer_syntax: str, max_decoded_bytes: int) -> None:
        self._transfer_syntax = transfer_syntax
        self._left = max_decoded_bytes

    def edits(self, image: Dataset, *, notes_loss: bool) -> _Edits:
        """What changes of an image, its Pixel Data among it."""
        frames = _check(image, self._left)
        # What pydicom reads from here on is the number of this service's rule.
        image.NumberOfFrames = frames
        self._left -= _native_bytes(image, frames)
        first = next(generate_frames(image.PixelData, number_of_frames=frames))
        if frames == 1 and sum(map(_begins_a_frame, generate_fragments(image.PixelData))) > 1:
            # Of several, all but the first would be lost.
            raise TranscodeError("more frames than the data set says")
        syntax = _syntax_of(first, self._transfer_syntax, _native_bytes(image, 1))
        image.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
        description = _describe(image, first, syntax)
        native = _decode(image, syntax, frames, rgb=description.rgb)
        # An icon has no attributes that tell of a loss (PS3.3 C.7.6.1.1.6).
        lossy = description.lossy if notes_loss else None
        return _edits(image, _Description(description.rgb, lossy), native)

    def item(self, item: bytes, explicit: bool) -> list[Splice]:
        """The same of an image in an item."""
        image = read_dataset(BytesIO(item), is_implicit_VR=not explicit, is_little_endian=True)
        image.file_meta = FileMetaDataset()
        edits = self.edits(image, notes_loss=False)
        splices, depth, seen = [], 0, list[int]()
        for token in tokens(item, explicit=explicit):
            if depth == 0 and token.kind != "end":
                seen.append(token.tag)
                pending = _due(edits, token.tag)
                added = b"".join(_encoded(tag, edits.pop(tag), explicit=explicit) for tag in pending)
                splices.append(Splice(token.begin, token.begin, added))
                if token.tag in edits:
                    content = _encoded(token.tag, edits.pop(token.tag), explicit=explicit)
                    splices.append(Splice(token.begin, token.end, content))
            depth += {"sequence": 1, "item": 1, "end": -1}.get(token.kind, 0)
        _refuse_repeated(seen)
        return splices

    def element(self, element: bytes) -> bytes:
        """An element at the top of the data set that is not Pixel Data, with the images in it native."""
        if b"\xff\xff\xff\xff" not in element:
            return element
        kind = next(tokens(element, explicit=True)).kind
        if kind == "fragments":
            raise NestedError(NOT_PIXEL_DATA)
        return decoded(element, self.item) if kind == "sequence" else element


def _syntax_of(frame: bytes, labelled: str, native_bytes: int) -> str:
    """The transfer syntax of a frame: that of the data set, unless the frame begins as those of another codec do."""
    if labelled == _UNCOMPRESSED and len(frame) == native_bytes + native_bytes % 2:
        return labelled
    if frame.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")):
        return labelled if labelled in _JPEG_2000 else "1.2.840.10008.1.2.4.90"
    if not frame.startswith(b"\xff\xd8\xff"):
        return labelled
    start = _start_of_frame(frame)
    if start == 0xF7:
        return labelled if labelled in _JPEG_LS else "1.2.840.10008.1.2.4.80"
    if start in (0xC3, 0xC7, 0xCB, 0xCF):
        return labelled if labelled in _JPEG_LOSSLESS else "1.2.840.10008.1.2.4.70"
    return labelled if labelled in _JPEG_LOSSY else "1.2.840.10008.1.2.4.50"


def _begins_a_frame(fragment: bytes) -> bool:
    """Whether a fragment begins as codestreams do, or as frames of RLE Lossless (PS3.5 G.5)."""
    if fragment.startswith((b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")):
        return True
    return len(fragment) > 8 and 1 <= int.from_bytes(fragment[:4], "little") <= 15 and fragment[4:8] == b"\x40\0\0\0"


def _start_of_frame(frame: bytes) -> int:
    """The marker of the frame header (ISO/IEC 10918-1 Table B.1); 0 where there is none."""
    for marker, _ in _segments(frame):
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return marker
    return 0


def _segments(frame: bytes) -> Iterator[tuple[int, bytes]]:
    """The marker segments before the first scan. Damage in metadata and between segments is passed over."""
    at = 2
    while True:
        while at + 4 <= len(frame) and not (frame[at] == 0xFF and frame[at + 1] not in (0, 0xFF)):
            at += 1
        if at + 4 > len(frame) or frame[at + 1] == 0xDA:
            return
        length = max(2, int.from_bytes(frame[at + 2 : at + 4], "big"))
        yield frame[at + 1], frame[at + 4 : at + 2 + length]
        at += 2 + length


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
    jfif, adobe, ids = False, None, b""
    for marker, body in _segments(frame):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            ids = body[6::3]
        jfif |= marker == 0xE0 and body.startswith(b"JFIF\0")
        if marker == 0xEE and body.startswith(b"Adobe") and len(body) > 11:
            adobe = body[11]
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


def _edits(image: Dataset, description: _Description, native: bytes) -> _Edits:
    edits: _Edits = dict.fromkeys(_STALE)
    if description.lossy is not None and image.get("LossyImageCompression") != "01":
        frames = generate_frames(image.PixelData, number_of_frames=image.NumberOfFrames)
        ratio = len(native) * 100 // max(1, sum(map(len, frames)))
        edits[0x00282110] = b"CS", b"01"
        edits[0x00282112] = b"DS", f"{ratio // 100}.{ratio % 100:02}".encode()
        edits[0x00282114] = b"CS", description.lossy.encode()
    if description.rgb and image.get("PhotometricInterpretation") != "RGB":
        edits[0x00280004] = b"CS", b"RGB"
    if image.SamplesPerPixel > 1 and image.get("PlanarConfiguration") != 0:
        edits[0x00280006] = b"US", b"\0\0"
    edits[PIXEL_DATA] = b"OW" if image.BitsAllocated > 8 else b"OB", native
    return edits


def _due(edits: _Edits, tag: int) -> list[int]:
    """The edits that come before an element; all do before Pixel Data."""
    return [one for one in sorted(edits) if one < tag or (tag == PIXEL_DATA and one != tag)]


def _encoded(tag: int, edit: tuple[bytes, bytes] | None, *, explicit: bool) -> bytes:
    if edit is None:
        return b""
    vr, value = edit
    value += (b"\0" if tag == PIXEL_DATA else b" ") * (len(value) % 2)
    group, number = tag >> 16, tag & 0xFFFF
    if not explicit:
        return struct.pack("<HHL", group, number, len(value)) + value
    if tag == PIXEL_DATA:
        return struct.pack("<HH2sHL", group, number, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


def _refuse_repeated(tags: list[int]) -> None:
    """Readers would not agree on which of two elements of the image counts."""
    image = [tag for tag in tags if tag >> 16 in (0x0028, PIXEL_DATA >> 16)]
    if len(set(image)) < len(image):
        raise TranscodeError("an element of the image occurs twice")


def _rewrite(dataset: bytes, edits: _Edits, job: _Job) -> bytes:
    elements = [
        (tag, element if tag in edits else job.element(element), element) for tag, element in _top_level(dataset)
    ]
    _refuse_repeated([tag for tag, _, _ in elements])
    changed = {0x0028, PIXEL_DATA >> 16} | {tag >> 16 for tag, now, before in elements if now != before}
    parts = []
    for tag, element, _ in elements:
        parts += [_encoded(due, edits.pop(due), explicit=True) for due in _due(edits, tag)]
        if tag in edits:
            parts.append(_encoded(tag, edits.pop(tag), explicit=True))
        elif tag & 0xFFFF or tag >> 16 not in changed:
            parts.append(element)
    parts += [_encoded(tag, edits[tag], explicit=True) for tag in sorted(edits)]
    result = b"".join(parts)
    if any(token.kind == "fragments" for token in tokens(result, explicit=True)):
        raise TranscodeError("encapsulated pixels would be left in a native data set")
    return result


def _top_level(dataset: bytes) -> Iterator[tuple[int, bytes]]:
    stream = BytesIO(dataset)
    begin = 0
    for element in data_element_generator(stream, is_implicit_VR=False, is_little_endian=True):
        end = stream.tell()
        yield int(element.tag), dataset[begin:end]
        begin = end
