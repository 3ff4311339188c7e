"""Data sets with images in their items: icons, and others, as compressed as the image around them."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import imagecodecs
import numpy as np

from support.frames import Array, smooth
from support.instances import Instance, explicit, text
from support.odd_frames import decoded, jpeg, jpeg_lossless, packed_rle

JPEG, JPEG_LOSSLESS, JPEG_LS = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80"
JPEG_2000, RLE = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.5"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
ICONS, REFERENCED, PRIVATE = 0x00880200, 0x00081140, 0x00091010
_UNDEFINED = 0xFFFFFFFF


@dataclass(frozen=True)
class Form:
    """How elements, items and sequences are written."""

    explicit_vr: bool = True
    sequences_have_lengths: bool = False
    items_have_lengths: bool = False
    group_lengths: bool = False

    def element(self, tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
        if self.explicit_vr:
            return explicit(tag, vr, value, length)
        return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(value) if length is None else length) + value

    def item(self, content: bytes) -> bytes:
        if self.items_have_lengths:
            return struct.pack("<HHL", 0xFFFE, 0xE000, len(content)) + content
        end = struct.pack("<HHL", 0xFFFE, 0xE00D, 0)
        return struct.pack("<HHL", 0xFFFE, 0xE000, _UNDEFINED) + content + end

    def sequence(self, tag: int, *contents: bytes, vr: bytes = b"SQ") -> bytes:
        """With items of these contents."""
        items = b"".join(map(self.item, contents))
        if self.sequences_have_lengths:
            return self.element(tag, vr, items)
        return self.element(tag, vr, items + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0), _UNDEFINED)


RESULT = Form()
FORMS = {
    "undefined lengths": Form(),
    "lengths of items": Form(items_have_lengths=True),
    "lengths of sequences": Form(sequences_have_lengths=True),
    "lengths": Form(sequences_have_lengths=True, items_have_lengths=True),
    "group lengths": Form(sequences_have_lengths=True, items_have_lengths=True, group_lengths=True),
}


@dataclass(frozen=True)
class Picture:
    """An image of an item: its pixels as they decode, and its frames as they are compressed."""

    pixels: Array
    frames: Sequence[bytes]
    bits_stored: int
    photometric: str = "MONOCHROME2"
    photometric_native: str = ""
    table: bytes = b""
    more: tuple[tuple[int, bytes, bytes], ...] = ()

    def attributes(self, form: Form, photometric: str) -> bytes:
        samples = 3 if self.pixels.shape[-1] == 3 else 1
        rows, columns = self.pixels.shape[-3:-1] if samples == 3 else self.pixels.shape[-2:]
        allocated = self.pixels.dtype.itemsize * 8
        u16 = lambda value: struct.pack("<H", value)  # noqa: E731 - shorter than a function here
        values = {
            0x00280002: (b"US", u16(samples)),
            0x00280004: (b"CS", text(photometric)),
            0x00280010: (b"US", u16(rows)),
            0x00280011: (b"US", u16(columns)),
            0x00280100: (b"US", u16(allocated)),
            0x00280101: (b"US", u16(self.bits_stored)),
            0x00280102: (b"US", u16(self.bits_stored - 1)),
            0x00280103: (b"US", u16(0)),
        }
        if samples == 3:
            values[0x00280006] = (b"US", u16(0))
        if len(self.frames) > 1:
            values[0x00280008] = (b"IS", text(str(len(self.frames))))
        values |= {tag: (vr, value) for tag, vr, value in self.more}
        return b"".join(form.element(tag, *values[tag]) for tag in sorted(values))

    def compressed(self, form: Form) -> bytes:
        """The content of the item."""
        attributes = self.attributes(form, self.photometric)
        if form.group_lengths:
            attributes = form.element(0x00280000, b"UL", struct.pack("<L", len(attributes))) + attributes
        parts = [self.table, *(frame + b"\0" * (len(frame) % 2) for frame in self.frames)]
        body = b"".join(struct.pack("<HHL", 0xFFFE, 0xE000, len(part)) + part for part in parts)
        return attributes + form.element(0x7FE00010, b"OB", body + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0), _UNDEFINED)

    def native(self, form: Form) -> bytes:
        """The same, native."""
        value = self.pixels.tobytes()
        vr = b"OW" if self.pixels.dtype.itemsize > 1 else b"OB"
        attributes = self.attributes(form, self.photometric_native or self.photometric)
        return attributes + form.element(0x7FE00010, vr, value + b"\0" * (len(value) % 2))


def encode(pixels: Array, transfer_syntax: str) -> bytes:
    if transfer_syntax == JPEG:
        return jpeg(pixels, **({"subsampling": 0} if pixels.ndim == 3 else {}))
    if transfer_syntax == JPEG_LOSSLESS:
        return jpeg_lossless(pixels)
    if transfer_syntax == JPEG_LS:
        return bytes(imagecodecs.jpegls_encode(pixels))
    if transfer_syntax == JPEG_2000:
        return bytes(imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", level=0, reversible=True, mct=False))
    return packed_rle(pixels)


def picture(pixels: Array, transfer_syntax: str, bits_stored: int | None = None) -> Picture:
    frame = encode(pixels, transfer_syntax)
    stored = bits_stored or pixels.dtype.itemsize * 8
    if transfer_syntax != JPEG:
        return Picture(pixels, [frame], stored, "RGB" if pixels.ndim == 3 else "MONOCHROME2")
    if pixels.ndim == 3:
        return Picture(decoded(frame), [frame], stored, "YBR_FULL_422", "RGB")
    return Picture(decoded(frame), [frame], stored)


GREY, OTHER = smooth((8, 10), 8, np.uint8), smooth((9, 7), 8, np.uint8)
DEEP = smooth((8, 6), 12, np.uint16)
COLOUR = np.stack([smooth((8, 10), 8, np.uint8) + shift for shift in (0, 9, 40)], axis=-1).astype(np.uint8)
_LUT = bytes(range(256)) + bytes(256)
PALETTE = (
    *((0x00281101 + at, b"US", struct.pack("<3H", 256, 0, 16)) for at in range(3)),
    *((0x00281201 + at, b"OW", _LUT) for at in range(3)),
)


@dataclass(frozen=True)
class Nested:
    """A compressed instance, and the data set that it becomes in Explicit VR Little Endian."""

    name: str
    instance: Instance
    expected: bytes


def pictures(syntax: str) -> Iterator[tuple[str, Picture]]:
    """Icons of every kind that the codec has."""
    yield "grey", picture(GREY, syntax)
    yield "of odd length", picture(OTHER, syntax)
    yield "palette", replace(picture(GREY, syntax), photometric="PALETTE COLOR", more=PALETTE)
    if syntax != JPEG:
        yield "deep", picture(DEEP, syntax, 12)
    if syntax != JPEG_LOSSLESS:
        yield "colour", picture(COLOUR, syntax)
    one = picture(GREY, syntax)
    half = len(one.frames[0]) // 4 * 2
    fragments = [one.frames[0][:half], b"", one.frames[0][half:]]
    yield "with an offset table", replace(one, table=bytes(4))
    several = Picture(np.stack([one.pixels] * 3), list(one.frames) * 3, 8)
    yield "of three frames", several
    small = [one.frames[0][at : at + 6] for at in range(0, len(one.frames[0]), 6)]
    yield "in fragments of six bytes", _in_fragments(one, small)
    yield "in three fragments, one empty", _in_fragments(one, fragments)


def _in_fragments(one: Picture, fragments: list[bytes]) -> Picture:
    # Of several fragments, as many frames: the number is given, which it has to be where it is 1.
    return replace(one, frames=fragments, more=((0x00280008, b"IS", b"1 "),))


def instance(number: int, syntax: str, sequences: dict[int, bytes], main: Picture, *, native: bool = False) -> Instance:
    sop_instance = f"1.2.826.0.1.3680043.10.9999.5.{1000000 + number}"
    uid = lambda value: text(value, b"\0")  # noqa: E731 - shorter than a function here
    form = Form()
    elements = {
        0x00080016: form.element(0x00080016, b"UI", uid(SECONDARY_CAPTURE)),
        0x00080018: form.element(0x00080018, b"UI", uid(sop_instance)),
        0x00080020: form.element(0x00080020, b"DA", b"20260102"),
        0x00100020: form.element(0x00100020, b"LO", text("P-0001")),
        0x0020000D: form.element(0x0020000D, b"UI", uid("1.2.826.0.1.3680043.10.9999.6")),
        0x0020000E: form.element(0x0020000E, b"UI", uid("1.2.826.0.1.3680043.10.9999.6.1")),
        **sequences,
    }
    image = main.native(form) if native else main.compressed(form)
    before = b"".join(elements[tag] for tag in sorted(elements) if tag < 0x00280000)
    behind = b"".join(elements[tag] for tag in sorted(elements) if tag > 0x00280000)
    at = image.index(b"\xe0\x7f\x10\x00")
    return Instance(SECONDARY_CAPTURE, sop_instance, syntax, before + image[:at] + behind + image[at:])


def nested(syntax: str, icon_syntax: str | None = None) -> Iterator[Nested]:
    """Instances of a transfer syntax; their icons are of another where that is given."""
    main = picture(smooth((24, 20), 8, np.uint8), syntax)
    if syntax == JPEG:
        # What a lossy image tells of itself is not in question here.
        main = replace(main, more=((0x00282110, b"CS", b"01"),))
    icon = picture(GREY, icon_syntax or syntax)
    made = [(f"icon, {name}", *_icon(one, FORMS["lengths"])) for name, one in pictures(icon_syntax or syntax)]
    made += [(f"icon, {name}", *_icon(icon, form)) for name, form in FORMS.items()]
    made += list(_places(icon))
    for number, (name, before, after) in enumerate(made):
        yield Nested(
            f"{syntax[17:]}: {name}",
            instance(number, syntax, before, main),
            instance(number, syntax, after, main, native=True).dataset,
        )


def _icon(one: Picture, form: Form) -> tuple[dict[int, bytes], dict[int, bytes]]:
    before = form.sequence(ICONS, one.compressed(form))
    if form.group_lengths:
        before = form.element(0x00880000, b"UL", struct.pack("<L", len(before))) + before
    return {ICONS: before}, {ICONS: RESULT.sequence(ICONS, one.native(RESULT))}


def _places(icon: Picture) -> Iterator[tuple[str, dict[int, bytes], dict[int, bytes]]]:
    lengths = FORMS["lengths"]
    other = RESULT.element(0x00081150, b"UI", b"1.2\0")
    # Beside what changes are items and sequences that do not.
    beside = lengths.sequence(0x00081115, other)
    before = lengths.sequence(ICONS, icon.compressed(lengths))
    after = RESULT.sequence(ICONS, icon.native(RESULT))
    for depth in range(2, 8):
        length = RESULT.element(0x00080000, b"UL", bytes(4)) if depth > 2 else b""
        before = lengths.sequence(REFERENCED, length + beside + before, other)
        after = _items(REFERENCED, RESULT.item(beside + after), lengths.item(other))
        yield f"{depth} deep", {REFERENCED: before}, {REFERENCED: after}
    several = [icon.compressed(lengths), other, icon.compressed(RESULT)]
    items = RESULT.item(icon.native(RESULT)) + lengths.item(other) + RESULT.item(icon.native(RESULT))
    yield (
        "three items, two with icons",
        {ICONS: lengths.element(ICONS, b"SQ", b"".join(map(lengths.item, several)))},
        {ICONS: _items(ICONS, items)},
    )
    reserved = RESULT.element(0x00090010, b"LO", b"ACME")
    yield (
        "private sequence",
        {PRIVATE: reserved + lengths.sequence(PRIVATE, icon.compressed(lengths))},
        {PRIVATE: reserved + RESULT.sequence(PRIVATE, icon.native(RESULT))},
    )
    implicit = Form(explicit_vr=False)
    yield (
        "unknown sequence",
        {PRIVATE: reserved + _items(PRIVATE, implicit.item(icon.compressed(implicit)), vr=b"UN")},
        {PRIVATE: reserved + _items(PRIVATE, implicit.item(icon.native(implicit)), vr=b"UN")},
    )
    yield (
        "an icon with an icon",
        {ICONS: lengths.sequence(ICONS, _with_icon(lengths, icon.compressed(lengths), icon.compressed(lengths)))},
        {ICONS: RESULT.sequence(ICONS, _with_icon(RESULT, icon.native(RESULT), icon.native(RESULT)))},
    )
    yield (
        "a native icon",
        {ICONS: lengths.sequence(ICONS, icon.native(lengths))},
        {ICONS: lengths.sequence(ICONS, icon.native(lengths))},
    )
    value = icon.compressed(lengths)
    yield (
        "an icon in a value",
        {PRIVATE: reserved + explicit(PRIVATE, b"UN", lengths.item(value))},
        {PRIVATE: reserved + explicit(PRIVATE, b"UN", lengths.item(value))},
    )


def _items(tag: int, *items: bytes, vr: bytes = b"SQ") -> bytes:
    return explicit(tag, vr, b"".join(items) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0), _UNDEFINED)


def _with_icon(form: Form, content: bytes, icon: bytes) -> bytes:
    at = content.index(b"\xe0\x7f\x10\x00")
    return content[:at] + form.sequence(ICONS, icon) + content[at:]
