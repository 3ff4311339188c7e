"""Frames with oddities that real encoders and devices leave in them, of which most concern no pixel."""

from __future__ import annotations

import io
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image

from support.frames import Array, smooth

JPEG, PROGRESSIVE, JPEG_LOSSLESS = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.55", "1.2.840.10008.1.2.4.70"
JPEG_LS, JPEG_2000, RLE = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.5"
_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"


@dataclass(frozen=True)
class Odd:
    """A frame: `pixels` are those that were encoded, as exactly as the codec keeps them."""

    name: str
    transfer_syntax: str
    frame: bytes
    pixels: Array


GREY = smooth((40, 48), 8, np.uint8)
COLOUR = np.stack([smooth((40, 48), 8, np.uint8) + shift for shift in (0, 9, 40)], axis=-1).astype(np.uint8)
DEEP = smooth((40, 48), 12, np.uint16)


def segment(marker: int, body: bytes, length: int | None = None) -> bytes:
    """A marker segment; `length` where it is not the true one."""
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2 if length is None else length) + body


def segments(frame: bytes) -> tuple[list[bytes], bytes]:
    """The marker segments behind SOI, and the rest from the first SOS on."""
    at, found = 2, []
    while frame[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
        found.append(frame[at:end])
        at = end
    return found, frame[at:]


def behind_soi(frame: bytes, added: bytes) -> bytes:
    return frame[:2] + added + frame[2:]


def before_sos(frame: bytes, added: bytes) -> bytes:
    head, rest = segments(frame)
    return _SOI + b"".join(head) + added + rest


_ICC = b"ICC_PROFILE\0"
METADATA: dict[str, bytes] = {
    "ICC profile without its numbers": segment(0xE2, _ICC + b"ab"),
    "ICC profile, part 2 of 2 only": segment(0xE2, _ICC + b"\2\2profiled"),
    "ICC profile, part 0 of 0": segment(0xE2, _ICC + b"\0\0profiled"),
    "ICC profile, part 1 twice": segment(0xE2, _ICC + b"\1\2profiled") * 2,
    "ICC profile, parts of different counts": segment(0xE2, _ICC + b"\1\2prof") + segment(0xE2, _ICC + b"\2\3iled"),
    "ICC profile, whole": segment(0xE2, _ICC + b"\1\1profiled"),
    "APP2 of FlashPix": segment(0xE2, b"FPXR\0\0"),
    "JFIF of version 9": segment(0xE0, b"JFIF\0\x09\x01\0\0\1\0\1\0\0"),
    "JFIF cut short": segment(0xE0, b"JFIF\0"),
    "JFIF with a thumbnail that is not there": segment(0xE0, b"JFIF\0\1\2\0\0\1\0\1\x50\x50"),
    "JFXX": segment(0xE0, b"JFXX\0\x10abc"),
    "AVI1": segment(0xE0, b"AVI1\0\0\0\0"),
    "EXIF of junk": segment(0xE1, b"Exif\0\0" + bytes(range(64))),
    "EXIF with a thumbnail's markers": segment(0xE1, b"Exif\0\0" + b"\xff\xd8\xff\xdb\0\4ab\xff\xda\xff\xd9"),
    "Adobe cut short": segment(0xEE, b"Adobe"),
    "Photoshop cut short": segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4"),
    "APP15 empty": segment(0xEF, b""),
    "APP3 of 60000 bytes": segment(0xE3, bytes(60000)),
    "comment": segment(0xFE, b"made by a device"),
    "comment that is empty": segment(0xFE, b""),
    "comment with a marker in it": segment(0xFE, b"\xff\xda\xff\xd9ab"),
    "every APP": b"".join(segment(number, b"abc\0") for number in (*range(0xE1, 0xEE), 0xEF)),
    "comment of length 0": segment(0xFE, b"", 0),
    "comment of length 1": segment(0xFE, b"", 1),
    "APP5 of length 0": segment(0xE5, b"", 0),
    "APP1 shorter than it is": segment(0xE1, b"Exif\0\0abcdefgh", 8),
    "comment shorter than it is": segment(0xFE, b"made by a device", 6),
    "zeros between segments": bytes(5),
    "text between segments": b"text",
    "fill bytes": b"\xff" * 7,
}


def jpeg(pixels: Array, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=90, **options)
    return out.getvalue()


def jpeg_lossless(pixels: Array) -> bytes:
    return bytes(imagecodecs.ljpeg_encode(pixels))


def decoded(frame: bytes) -> Array:
    return np.asarray(Image.open(io.BytesIO(frame)))


def _by_cjpeg(pixels: Array, *options: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        source, scans = Path(folder) / "source.pnm", Path(folder) / "scans"
        Image.fromarray(pixels).save(source)
        scans.write_text("0;\n1;\n2;\n")
        given = [option.replace("SCANS", str(scans)) for option in options]
        command = ["cjpeg", "-quality", "90", *given, str(source)]
        return subprocess.run(command, capture_output=True, check=True).stdout


def _ending_plainly(encode: Callable[[Array], bytes], pixels: Array) -> tuple[bytes, Array]:
    """A frame, of rolled pixels, whose last sample does not look like padding: zeros could stand for what was cut off."""
    for shift in range(pixels.shape[1]):
        rolled = np.roll(pixels, shift, axis=1)
        frame = encode(rolled)
        if frame[-3] != 0:
            return frame, rolled if encode is jpeg_lossless else decoded(frame)
    raise AssertionError("each ends in zeros")


def jpeg_frames() -> Iterator[Odd]:
    """Baseline, extended, progressive and lossless."""
    grey = jpeg(GREY)
    for kind, syntax, (frame, pixels) in (
        ("grey", JPEG, _ending_plainly(jpeg, GREY)),
        ("colour", JPEG, _ending_plainly(lambda pixels: jpeg(pixels, subsampling=0), COLOUR)),
        ("progressive", PROGRESSIVE, _ending_plainly(lambda pixels: jpeg(pixels, progressive=True), COLOUR)),
        ("lossless", JPEG_LOSSLESS, _ending_plainly(jpeg_lossless, GREY)),
        ("lossless 16", JPEG_LOSSLESS, _ending_plainly(jpeg_lossless, DEEP)),
    ):
        yield Odd(f"{kind}: as it is", syntax, frame, pixels)
        for name, added in METADATA.items():
            yield Odd(f"{kind}: {name}", syntax, behind_soi(frame, added), pixels)
            yield Odd(f"{kind}: {name}, before the scan", syntax, before_sos(frame, added), pixels)
        for name, end in {
            "no EOI": b"",
            "no EOI, zeros": bytes(6),
            "no EOI, one zero": bytes(1),
            "no EOI, FF": b"\xff",
            "no EOI, FFs": b"\xff\xff\xff",
            "half an EOI": b"\xff",
            "zeros before EOI": bytes(4) + _EOI,
            "FFs before EOI": b"\xff\xff\xff" + _EOI,
            "EOI twice": _EOI * 2,
            "zeros behind EOI": _EOI + bytes(64),
            "FFs behind EOI": _EOI + b"\xff" * 5,
            "text behind EOI": _EOI + b"some private trailer",
            "a thumbnail behind EOI": _EOI + grey,
            "a comment before EOI": segment(0xFE, b"late") + _EOI,
            "a broken ICC profile before EOI": segment(0xE2, _ICC + b"ab") + _EOI,
            "DNL before EOI": segment(0xDC, struct.pack(">H", 40)) + _EOI,
        }.items():
            yield Odd(f"{kind}: {name}", syntax, frame[:-2] + end, pixels)
        yield Odd(f"{kind}: SOI twice", syntax, _SOI + frame, pixels)
        yield Odd(f"{kind}: SOI three times", syntax, _SOI * 2 + frame, pixels)
        yield Odd(f"{kind}: SOI before the scan", syntax, before_sos(frame, _SOI), pixels)
        yield Odd(f"{kind}: a zero before SOI", syntax, b"\0" + frame, pixels)
        yield Odd(f"{kind}: an even zero before SOI", syntax, b"\0\0" + frame, pixels)
        yield Odd(f"{kind}: DRI of 0", syntax, before_sos(frame, segment(0xDD, b"\0\0")), pixels)
        yield Odd(f"{kind}: DRI beyond the image", syntax, before_sos(frame, segment(0xDD, b"\xff\xff")), pixels)
        yield Odd(f"{kind}: height 0 and DNL", syntax, _without_height(frame), pixels)
        for cut in (1, 2, 3, 5, 20, len(frame) // 3):
            yield Odd(f"{kind}: cut by {cut}, no EOI", syntax, frame[: -2 - cut], pixels)
            yield Odd(f"{kind}: cut by {cut}, EOI", syntax, frame[: -2 - cut] + _EOI, pixels)
    yield from _restarts()
    yield from _scans()


def _without_height(frame: bytes) -> bytes:
    head, rest = segments(frame)
    changed, height = [], b""
    for one in head:
        is_start = one[1] in (0xC0, 0xC1, 0xC2, 0xC3)
        height = one[5:7] if is_start else height
        changed.append(one[:5] + b"\0\0" + one[7:] if is_start else one)
    return _SOI + b"".join(changed) + rest[:-2] + segment(0xDC, height) + _EOI


def _restarts() -> Iterator[Odd]:
    frame = _by_cjpeg(GREY, "-grayscale", "-restart", "4B")
    pixels = decoded(frame)
    yield Odd("restarts: as it is", JPEG, frame, pixels)
    at = [k for k in range(len(frame) - 1) if frame[k] == 0xFF and 0xD0 <= frame[k + 1] <= 0xD7]
    for name, change in {
        "all RST0": lambda k, _: 0xD0,
        "from RST1 on": lambda k, old: 0xD0 + (old - 0xD0 + 1) % 8,
        "one is wrong": lambda k, old: 0xD6 if k == 1 else old,
        "one is EOI": lambda k, old: 0xD9 if k == 1 else old,
    }.items():
        odd = bytearray(frame)
        for number, place in enumerate(at):
            odd[place + 1] = change(number, odd[place + 1])
        yield Odd(f"restarts: {name}", JPEG, bytes(odd), pixels)
    for name, odd in {
        "a zero before one": frame[: at[1]] + b"\0" + frame[at[1] :],
        "FFs before one": frame[: at[1]] + b"\xff\xff" + frame[at[1] :],
        "one is missing": frame[: at[1]] + frame[at[1] + 2 :],
        "one more at the end": frame[:-2] + bytes((0xFF, 0xD0 + len(at) % 8)) + _EOI,
        "DRI twice": before_sos(frame, segment(0xDD, b"\0\4")),
        "DRI is missing": b"".join([_SOI, *(one for one in segments(frame)[0] if one[1] != 0xDD), segments(frame)[1]]),
    }.items():
        yield Odd(f"restarts: {name}", JPEG, odd, pixels)


def _scans() -> Iterator[Odd]:
    frame = _by_cjpeg(COLOUR, "-scans", "SCANS", "-sample", "1x1")
    pixels = decoded(frame)
    yield Odd("scans: as it is", JPEG, frame, pixels)
    at = [k for k in range(len(frame) - 1) if frame[k : k + 2] == b"\xff\xda"]
    for name, parameters in {"Se of 0": b"\0\0\0", "Al of 1": b"\0\x3f\1", "Ss of 1": b"\1\x3f\0"}.items():
        for number, place in enumerate(at):
            odd = bytearray(frame)
            odd[place + 7 : place + 10] = parameters
            yield Odd(f"scans: {name} in scan {number}", JPEG, bytes(odd), pixels)
    for name, added in METADATA.items():
        yield Odd(f"scans: {name} between scans", JPEG, frame[: at[1]] + added + frame[at[1] :], pixels)
    yield Odd("scans: no EOI", JPEG, frame[:-2], pixels)
    yield Odd("scans: the last one is missing", JPEG, frame[: at[2]] + _EOI, pixels)
    yield Odd("scans: the last one and EOI are missing", JPEG, frame[: at[2]], pixels)
    progressive = jpeg(COLOUR, progressive=True)
    last = progressive.rindex(b"\xff\xda")
    yield Odd("progression: the last scan and EOI are missing", PROGRESSIVE, progressive[:last], decoded(progressive))


def jpeg_2000_frames() -> Iterator[Odd]:
    """Codestreams, and what stands around them."""
    for kind, pixels in (("grey", GREY), ("colour", COLOUR), ("deep", DEEP)):
        options = {"level": 0, "reversible": True}
        frame = bytes(imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", **options))
        boxed = bytes(imagecodecs.jpeg2k_encode(pixels, codecformat="jp2", **options))
        yield Odd(f"{kind}: as it is", JPEG_2000, frame, pixels)
        yield Odd(f"{kind}: JP2", JPEG_2000, boxed, pixels)
        colr = boxed.index(b"colr")
        cut = boxed.index(b"jp2c") - 4
        uuid = b"uuid" + bytes(16)
        box = lambda body: struct.pack(">L", len(body) + 4) + body  # noqa: E731 - shorter than a function here
        for name, odd in {
            "JP2, colr of an unknown method": boxed[: colr + 4] + b"\x09" + boxed[colr + 5 :],
            "JP2, colr of an unknown space": boxed[: colr + 7] + b"\xff\xff\xff\xff" + boxed[colr + 11 :],
            "JP2, colr is no box": boxed[:colr] + b"????" + boxed[colr + 4 :],
            "JP2, colr of length 0": boxed[: colr - 4] + bytes(4) + boxed[colr:],
            "JP2, uuid": boxed[:cut] + box(uuid + b"abcd") + boxed[cut:],
            "JP2, uuid with a codestream's first bytes": boxed[:cut] + box(uuid + frame[:30]) + boxed[cut:],
            "JP2, uuid longer than it is": boxed[:cut] + struct.pack(">L", 400) + uuid + boxed[cut:],
            "JP2, xml of junk": boxed[:cut] + box(b"xml <a" + bytes(9)) + boxed[cut:],
            "JP2, no header box": boxed[:12] + boxed[boxed.index(b"ftyp") - 4 : boxed.index(b"jp2h") - 4] + boxed[cut:],
            "JP2, codestream of length 0": boxed[:cut] + bytes(4) + boxed[cut + 4 :],
            "JP2, junk behind": boxed + b"trailer!",
            "no JP2 signature": boxed[12:],
        }.items():
            yield Odd(f"{kind}: {name}", JPEG_2000, odd, pixels)
        yield from _codestreams(kind, frame, pixels)


def _codestreams(kind: str, frame: bytes, pixels: Array) -> Iterator[Odd]:
    sot = frame.index(b"\xff\x90")
    for name, added in {
        "comment": segment(0x64, b"\0\1made by a device"),
        "comment of an unknown kind": segment(0x64, b"\0\x09abcd"),
        "comment that is empty": segment(0x64, b"\0\1"),
        "comment without a kind": segment(0x64, b""),
        "an unknown segment": segment(0x6F, b"abcd"),
        "a marker without a segment": b"\xff\x30",
        "PLM of junk": segment(0x57, b"\0\0ab"),
        "CRG": segment(0x63, bytes(4 * (pixels.ndim * 2 - 3))),
    }.items():
        yield Odd(f"{kind}: {name}", JPEG_2000, frame[:sot] + added + frame[sot:], pixels)
        sod = frame.index(b"\xff\x93")
        longer = struct.pack(">L", int.from_bytes(frame[sot + 6 : sot + 10], "big") + len(added))
        part = frame[:sot] + frame[sot : sot + 6] + longer + frame[sot + 10 : sod] + added + frame[sod:]
        yield Odd(f"{kind}: {name}, in the tile-part", JPEG_2000, part, pixels)
    for name, odd in {
        "no EOC": frame[:-2],
        "zeros behind EOC": frame + bytes(8),
        "zeros before EOC": frame[:-2] + bytes(8) + _EOI,
        "zeros and no EOC": frame[:-2] + bytes(8),
        "EOC twice": frame + _EOI,
        "junk behind EOC": frame + b"trailer!",
        "a codestream behind EOC": frame + frame,
        "Psot of 0": frame[: sot + 6] + bytes(4) + frame[sot + 10 :],
        "Psot too long": frame[: sot + 6] + b"\0\1\0\0" + frame[sot + 10 :],
        "TNsot of 0": frame[: sot + 11] + b"\0" + frame[sot + 12 :],
        "TNsot of 2": frame[: sot + 11] + b"\2" + frame[sot + 12 :],
        "Rsiz of cinema": frame[:6] + b"\0\3" + frame[8:],
        "Rsiz unknown": frame[:6] + b"\x0f\xff" + frame[8:],
        "cut by 3": frame[:-5],
        "cut by 3, EOC": frame[:-5] + _EOI,
        "cut by a third": frame[: len(frame) * 2 // 3],
        "cut by a third, EOC": frame[: len(frame) * 2 // 3] + _EOI,
    }.items():
        yield Odd(f"{kind}: {name}", JPEG_2000, odd, pixels)


def jpeg_ls_frames() -> Iterator[Odd]:
    """With the application segments that are in use, and damaged ones."""
    for kind, pixels in (("grey", GREY), ("colour", COLOUR), ("deep", DEEP)):
        frame = bytes(imagecodecs.jpegls_encode(pixels))
        yield Odd(f"{kind}: as it is", JPEG_LS, frame, pixels)
        more = {
            "APP8 of no transform": segment(0xE8, b"mrfx\0"),
            "APP8 of transform 9": segment(0xE8, b"mrfx\x09"),
            "APP8 of transform 5": segment(0xE8, b"mrfx\x05"),
            "APP8 cut short": segment(0xE8, b"mrf"),
            "APP8 of something else": segment(0xE8, b"abcd\1"),
            "APP8 too long": segment(0xE8, b"mrfx\0\0\0\0"),
            "SPIFF cut short": segment(0xE8, b"SPIFF\0\2\0"),
            "SPIFF": segment(0xE8, b"SPIFF\0\2\0\0\1\0\0\0\x28\0\0\0\x30\x08\x08\6\0\0\0\0\1\0\0\0\1")
            + segment(0xE8, b"\0\0\0\1\xff\xd8"),
            "LSE with the defaults": segment(0xF8, b"\1" + struct.pack(">5H", 255, 3, 7, 21, 64)),
            "LSE of zeros": segment(0xF8, b"\1" + bytes(10)),
            "DRI of 0": segment(0xDD, b"\0\0"),
        }
        for name, added in (METADATA | more).items():
            if "LSE with" in name and kind == "deep":
                continue
            yield Odd(f"{kind}: {name}", JPEG_LS, behind_soi(frame, added), pixels)
            yield Odd(f"{kind}: {name}, before the scan", JPEG_LS, before_sos(frame, added), pixels)
        for name, end in {
            "no EOI": b"",
            "no EOI, zeros": bytes(6),
            "a zero before EOI": b"\0" + _EOI,
            "zeros before EOI": bytes(4) + _EOI,
            "FFs before EOI": b"\xff\xff\xff" + _EOI,
            "EOI twice": _EOI * 2,
            "zeros behind EOI": _EOI + bytes(64),
            "FFs behind EOI": _EOI + b"\xff" * 5,
            "text behind EOI": _EOI + b"some private trailer",
            "a thumbnail behind EOI": _EOI + frame,
            "a comment before EOI": segment(0xFE, b"late") + _EOI,
        }.items():
            yield Odd(f"{kind}: {name}", JPEG_LS, frame[:-2] + end, pixels)
        yield Odd(f"{kind}: SOI twice", JPEG_LS, _SOI + frame, pixels)
        for cut in (2, 5, len(frame) // 3):
            yield Odd(f"{kind}: cut by {cut}, no EOI", JPEG_LS, frame[: -2 - cut], pixels)
            yield Odd(f"{kind}: cut by {cut}, EOI", JPEG_LS, frame[: -2 - cut] + _EOI, pixels)


def _literal(plane: bytes, longest: int = 128) -> bytes:
    parts = [plane[at : at + longest] for at in range(0, len(plane), longest)]
    return b"".join(bytes([len(part) - 1]) + part for part in parts)


def rle(segments_: list[bytes], *, count: int | None = None, gap: bytes = b"", pad: bool = True) -> bytes:
    """A frame of packed planes; `gap` stands before each."""
    body, offsets = b"", []
    for one in segments_:
        body += gap
        offsets.append(64 + len(body))
        body += one + b"\0" * (len(one) % 2 if pad else 0)
    numbers = [len(segments_) if count is None else count, *offsets]
    return struct.pack("<16L", *numbers, *[0] * (16 - len(numbers))) + body


def _planes(pixels: Array) -> list[bytes]:
    """PS3.5 G.2: the bytes of a sample by themselves, the most significant first."""
    cells = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
    step = len(cells) // (pixels.shape[0] * pixels.shape[1])
    return [cells[at::step] for at in range(step)]


def packed_rle(pixels: Array) -> bytes:
    """A frame of RLE Lossless, without runs."""
    return rle([_literal(plane) for plane in _planes(pixels)])


def rle_frames() -> Iterator[Odd]:
    """Planes that are too long, too short, padded or more than they should be."""
    for kind, pixels in (("grey", GREY), ("colour", COLOUR), ("deep", DEEP)):
        planes = _planes(pixels)
        packed = [_literal(plane) for plane in planes]
        for name, odd in {
            "as it is": rle(packed),
            "without padding": rle(packed, pad=False),
            "a byte too many": rle([_literal(plane + b"\7") for plane in planes]),
            "a byte too many in the last literal": rle([_literal(plane + b"\7", 100) for plane in planes]),
            "a row too many": rle([_literal(plane + plane[:48]) for plane in planes]),
            "a run over the end": rle([_literal(plane[:-1]) + bytes((200, plane[-1])) for plane in planes]),
            "the last plane too long": rle([*packed[:-1], _literal(planes[-1] + b"\7" * 9)]),
            "the first plane too long": rle([_literal(planes[0] + b"\7" * 9), *packed[1:]]),
            "zeros behind each plane": rle([one + bytes(6) for one in packed]),
            "no-operations behind each plane": rle([one + b"\x80\x80" for one in packed]),
            "no-operations within": rle([one[:129] + b"\x80" + one[129:] for one in packed]),
            "a literal that is cut behind each plane": rle([one + b"\x7f\1" for one in packed]),
            "a byte too few": rle([_literal(plane[:-1]) for plane in planes]),
            "a row too few": rle([_literal(plane[:-48]) for plane in planes]),
            "the last plane a byte too few": rle([*packed[:-1], _literal(planes[-1][:-1])]),
            "the last literal cut": rle([*packed[:-1], packed[-1][:-3]], pad=False),
            "a segment more": rle([*packed, packed[0]]),
            "a segment fewer": rle(packed[:-1] or [b""]),
            "an empty segment more": rle([*packed, b""]),
            "gaps between segments": rle(packed, gap=b"\x11\x22"),
            "zeros behind the frame": rle(packed) + bytes(40),
            "junk behind the frame": rle(packed) + b"trailer!",
            "count of 15": rle(packed, count=15),
        }.items():
            yield Odd(f"{kind}: {name}", RLE, odd, pixels)


def mislabelled_frames() -> Iterator[Odd]:
    """Frames of one codec in the transfer syntax of another."""
    frames = {
        JPEG: jpeg(GREY),
        JPEG_LOSSLESS: jpeg_lossless(GREY),
        JPEG_LS: bytes(imagecodecs.jpegls_encode(GREY)),
        JPEG_2000: bytes(imagecodecs.jpeg2k_encode(GREY, codecformat="j2k", level=0, reversible=True)),
        RLE: rle([_literal(GREY.tobytes())]),
    }
    pixels = {JPEG: decoded(frames[JPEG])}
    for label in frames:
        for kind, frame in frames.items():
            if kind != label:
                yield Odd(f"{kind[17:]} in {label[17:]}", label, frame, pixels.get(kind, GREY))


def odd_frames() -> Iterator[Odd]:
    yield from jpeg_frames()
    yield from jpeg_2000_frames()
    yield from jpeg_ls_frames()
    yield from rle_frames()
    yield from mislabelled_frames()
