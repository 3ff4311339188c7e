"""The structure of a data set (PS3.5 Chapter 7), followed to its last byte without recursion.

pydicom reads what it can and forgives a truncated image; this walk does not.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from struct import Struct

from pydicom.datadict import dictionary_VR

from storescp.pure.refusal import Refusal

PIXEL_DATA = 0x7FE00010
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
# What may follow a deflate stream: the trailer of RFC 1952, which some writers add, and a byte of padding.
TRAILER_BYTES = 9
_DEFLATED = frozenset({"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})
# PS3.5 7.1.2: a 16-bit length; all others have a 32-bit one behind two reserved bytes.
_SHORT = frozenset(
    b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split(),
)
_LITTLE = (Struct("<HH").unpack_from, Struct("<H").unpack_from, Struct("<L").unpack_from)
_BIG = (Struct(">HH").unpack_from, Struct(">H").unpack_from, Struct(">L").unpack_from)

TRUNCATED = "data set ends inside an element or sequence"
BEYOND = "an element is longer than what contains it"
MISPLACED = "item or delimiter out of place"


@dataclass(frozen=True)
class WalkLimits:
    """Bounds on one data set."""

    nesting: int
    elements: int
    decoded_bytes: int


@dataclass
class _Frame:
    kind: str  # "sequence", "item" or "fragments"
    explicit: bool
    big: bool
    end: int | None
    bound: int


def encoding_of(transfer_syntax: str) -> tuple[bool, bool]:
    """Whether value representations are explicit, and whether numbers are big endian."""
    return transfer_syntax != "1.2.840.10008.1.2", transfer_syntax == "1.2.840.10008.1.2.2"


def inflate(dataset: bytes, transfer_syntax: str, limits: WalkLimits) -> bytes:
    """The data set without the deflate of its transfer syntax (PS3.5 A.5).

    Raises:
        Refusal: C000 for a broken, cut or too large stream.
    """
    if transfer_syntax not in _DEFLATED:
        return dataset
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = stream.decompress(dataset, limits.decoded_bytes + 1)
    except zlib.error:
        raise _malformed("deflate stream is invalid") from None
    if len(plain) > limits.decoded_bytes:
        raise _malformed("data set inflates beyond the limit")
    if not stream.eof:
        raise _malformed(TRUNCATED)
    if len(stream.unused_data) > TRAILER_BYTES:
        raise _malformed("deflate stream is invalid")
    return plain


@dataclass(frozen=True)
class Walked:
    """What the walk found at top level."""

    values: dict[int, bytes]
    has_pixel_data: bool


def walk(data: bytes, transfer_syntax: str, wanted: frozenset[int], limits: WalkLimits) -> Walked:
    """Follows the structure to the end and keeps the top-level values of `wanted`, which may occur only once.

    Raises:
        Refusal: C000.
    """
    found = _Walk(data, transfer_syntax, wanted, limits)
    return Walked(found.values, found.run())


def _malformed(text: str) -> Refusal:
    return Refusal(0xC000, text)


class _Walk:
    def __init__(self, data: bytes, transfer_syntax: str, wanted: frozenset[int], limits: WalkLimits) -> None:
        self._data = data
        self._explicit, self._big = encoding_of(transfer_syntax)
        self._wanted = wanted
        self.values: dict[int, bytes] = {}
        self._limits = limits
        self._stack: list[_Frame] = []
        self._sequences = 0
        self._position = 0
        self._pixel_data = False

    def run(self) -> bool:
        elements, size = 0, len(self._data)
        while True:
            self._close_finished()
            rest = size - self._position
            if rest < 8:
                padded = rest == 1 and self._data[-1] == 0
                if self._stack or (rest and not padded):
                    raise _malformed(TRUNCATED)
                return self._pixel_data
            elements += 1
            tag, vr, length, explicit, big = self._header()
            if elements > self._limits.elements:
                raise _malformed("too many elements")
            self._element(tag, vr, length, explicit, big)

    def _header(self) -> tuple[int, bytes | None, int, bool, bool]:
        top = self._stack[-1] if self._stack else None
        explicit, big = (top.explicit, top.big) if top else (self._explicit, self._big)
        tags, shorts, longs = _BIG if big else _LITTLE
        at, data = self._position, self._data
        group, element = tags(data, at)
        tag = group << 16 | element
        if group == 0xFFFE or not explicit:
            self._position += 8
            return tag, None, longs(data, at + 4)[0], explicit, big
        vr = data[at + 4 : at + 6]
        if not (65 <= vr[0] <= 90 and 65 <= vr[1] <= 90):
            # Not a VR: some writers fall back to the implicit form for single elements.
            self._position += 8
            return tag, None, longs(data, at + 4)[0], False, big
        if vr in _SHORT:
            self._position += 8
            return tag, vr, shorts(data, at + 6)[0], explicit, big
        if len(data) - at < 12:
            raise _malformed(TRUNCATED)
        self._position += 12
        return tag, vr, longs(data, at + 8)[0], explicit, big

    def _element(self, tag: int, vr: bytes | None, length: int, explicit: bool, big: bool) -> None:
        top = self._stack[-1] if self._stack else None
        if top is not None and (
            self._position > top.bound or (length != _UNDEFINED and self._position + length > top.bound)
        ):
            raise _malformed(BEYOND)
        if top is not None and top.kind == "fragments":
            self._fragment(tag, length)
        elif top is not None and top.kind == "sequence":
            self._sequence_member(tag, length, top)
        elif top is not None and tag == _ITEM_END:
            self._delimited(top, length)
        elif tag >> 16 == 0xFFFE:
            raise _malformed(MISPLACED)
        else:
            if top is None:
                self._note(tag)
            self._value(tag, vr, length, explicit, big)

    def _value(self, tag: int, vr: bytes | None, length: int, explicit: bool, big: bool) -> None:
        if length != _UNDEFINED:
            if vr == b"SQ" or (vr is None and _is_sequence(tag)):
                self._push("sequence", explicit, big, self._position + length)
            else:
                self._pass(length)
                if tag in self._wanted and not self._stack:
                    self.values[tag] = self._data[self._position - length : self._position]
        elif tag == PIXEL_DATA or vr in (b"OB", b"OW"):
            self._push("fragments", explicit, big, None)
        elif vr is None or vr == b"SQ":
            self._push("sequence", explicit, big, None)
        elif vr == b"UN" or vr not in _KNOWN_LONG | _SHORT:
            # PS3.5 6.2.2 note 2: an Implicit VR Little Endian sequence.
            self._push("sequence", False, False, None)
        else:
            raise _malformed("undefined length on a VR that cannot have it")

    def _pass(self, length: int) -> None:
        if length > len(self._data) - self._position:
            raise _malformed(TRUNCATED)
        self._position += length

    def _fragment(self, tag: int, length: int) -> None:
        if tag == _SEQUENCE_END and length == 0:
            self._stack.pop()
        elif tag == _ITEM and length != _UNDEFINED:
            self._pass(length)
        else:
            raise _malformed(MISPLACED)

    def _sequence_member(self, tag: int, length: int, sequence: _Frame) -> None:
        if tag == _ITEM:
            end = None if length == _UNDEFINED else self._position + length
            bound = sequence.bound if end is None else end
            self._stack.append(_Frame("item", sequence.explicit, sequence.big, end, bound))
        elif tag == _SEQUENCE_END:
            self._delimited(sequence, length)
        else:
            raise _malformed(MISPLACED)

    def _delimited(self, frame: _Frame, length: int) -> None:
        if frame.end is not None or length:
            raise _malformed(MISPLACED)
        self._pop()

    def _note(self, tag: int) -> None:
        group = tag >> 16
        if (group < 8 and group != 4) or group == 0xFFFF:
            raise _malformed("element of a group not allowed in a data set")
        if tag in self._wanted:
            if tag in self.values:
                raise _malformed("an identifying attribute occurs twice")
            self.values[tag] = b""
        self._pixel_data |= tag == PIXEL_DATA

    def _push(self, kind: str, explicit: bool, big: bool, end: int | None) -> None:
        if kind == "sequence":
            if self._sequences >= self._limits.nesting:
                raise _malformed("sequences are nested too deep")
            self._sequences += 1
        around = self._stack[-1].bound if self._stack else 1 << 63
        self._stack.append(_Frame(kind, explicit, big, end, around if end is None else end))

    def _pop(self) -> None:
        if self._stack.pop().kind == "sequence":
            self._sequences -= 1

    def _close_finished(self) -> None:
        while self._stack and self._stack[-1].end is not None:
            end = self._stack[-1].end
            if end > self._position:
                break
            if end < self._position:
                raise _malformed(BEYOND)
            self._pop()


_KNOWN_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())


def _is_sequence(tag: int) -> bool:
    try:
        return dictionary_VR(tag) == "SQ"
    except KeyError:
        return False
