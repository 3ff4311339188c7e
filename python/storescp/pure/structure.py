"""The structure of a data set (PS3.5 Chapter 7), followed to its last byte without recursion.

pydicom reads what it can and forgives a truncated image; this walk does not. What PS3.5 forbids and other readers
follow is an anomaly.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from struct import Struct

from pydicom.datadict import dictionary_VR

from storescp.pure.described import MOST_BYTES_OF_VALUE, Element
from storescp.pure.refusal import Refusal

PIXEL_DATA = 0x7FE00010
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
# What may follow a deflate stream: the trailer of RFC 1952, which some writers add, and a byte of padding.
TRAILER_BYTES = 9
_DEFLATED = frozenset({"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})
_NATIVE = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"})
# PS3.5 7.1: groups that no element of a data set is in.
_RESERVED = frozenset({1, 2, 3, 5, 6, 7, 0xFFFF})
# PS3.5 7.1.2: a 16-bit length; all others have a 32-bit one behind two reserved bytes.
_SHORT = frozenset(
    b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split(),
)
_LITTLE = (Struct("<HH").unpack_from, Struct("<H").unpack_from, Struct("<L").unpack_from)
_BIG = (Struct(">HH").unpack_from, Struct(">H").unpack_from, Struct(">L").unpack_from)

# In the order of records.
ANOMALIES = (
    "delimiter",
    "trailing_bytes",
    "illegal_vr",
    "reserved_group",
    "file_meta_in_data_set",
    "character_set",
    "sequence_content",
    "pixel_data_encoding",
    "transcoding_busy",
)
TRUNCATED = "data set ends inside an element or sequence"
BEYOND = "an element is longer than what contains it"
MISPLACED = "item or delimiter out of place"
FORBIDDEN = "element of a group not allowed in a data set"


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
    if len(stream.unused_data.rstrip(b"\0")) > TRAILER_BYTES:
        raise _malformed("deflate stream is invalid")
    return plain


@dataclass(frozen=True)
class Wanted:
    """The top-level elements whose values are kept."""

    identifying: frozenset[int]  # these may occur only once
    describing: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Walked:
    """What the walk found at top level."""

    values: dict[int, bytes]  # of those that identify; of a sequence b""
    elements: dict[int, Element]  # those that describe
    has_pixel_data: bool
    anomalies: frozenset[str]
    odd_pixel_data: bool  # an anomaly concerns Pixel Data
    file_meta_bytes: int  # elements of group 0002 at the beginning


def walk(data: bytes, transfer_syntax: str, wanted: Wanted, limits: WalkLimits) -> Walked:
    """Follows the structure to the end and keeps what is wanted.

    Behind a value representation that does not exist there are several ways to read on. One must reach the end, and
    what the others find must identify the same instance.

    Raises:
        Refusal: C000.
    """
    found = _Walk(data, transfer_syntax, wanted, limits, None)
    try:
        found.run()
    except _UnknownVr as unknown:
        found = _one_of(
            [_Walk(data, transfer_syntax, wanted, limits, way) for way in ("future", "short", "absent")], str(unknown)
        )
    except Refusal as refusal:
        refusal.values = found.values
        raise
    odd = found.odd_pixel_data
    if found.pixel_data and (
        transfer_syntax in _NATIVE if found.encapsulated else _is_standard_encapsulated(transfer_syntax)
    ):
        found.anomalies.add("pixel_data_encoding")
        odd = True
    anomalies = frozenset(found.anomalies)
    return Walked(found.values, found.elements, found.pixel_data, anomalies, odd, found.file_meta_bytes)


def _one_of(ways: list[_Walk], unknown: str) -> _Walk:
    whole, limits = [], []
    for way in ways:
        try:
            way.run()
            whole.append(way)
        except _Structure:
            pass
        except Refusal as refusal:
            limits.append(refusal)
    if not whole:
        raise limits[0] if limits else _malformed(f"no reading of {unknown} reaches the end")
    chosen = min(whole, key=lambda way: "sequence_content" in way.anomalies)
    for other in ways:
        differs = (
            (other.values, other.pixel_data) != (chosen.values, chosen.pixel_data)
            if other in whole
            else any(chosen.values.get(tag) != value for tag, value in other.values.items())
        )
        if differs:
            raise _malformed(f"readings of {unknown} differ in identity")
    return chosen


def _malformed(text: str) -> Refusal:
    return Refusal(0xC000, text)


class _Structure(Refusal):
    """The structure cannot be followed."""

    def __init__(self, text: str) -> None:
        super().__init__(0xC000, text)


class _UnknownVr(Exception):
    """A value representation that is none, and it is not decided how to read on."""


class _Walk:
    def __init__(
        self, data: bytes, transfer_syntax: str, wanted: Wanted, limits: WalkLimits, unknown_vr: str | None
    ) -> None:
        self._data = data
        self._explicit, self._big = encoding_of(transfer_syntax)
        self._wanted = wanted
        self._limits = limits
        self._unknown_vr = unknown_vr
        self._stack: list[_Frame] = []
        self._sequences = 0
        self._position = 0
        self._past_file_meta = False
        self._ended = False
        self._seen: set[int] = set()
        self.values: dict[int, bytes] = {}
        self.elements: dict[int, Element] = {}
        # Where the element at top level that is wanted begins, while it is open, and its tag.
        self._open: tuple[int, int] | None = None
        self.anomalies: set[str] = set()
        self.pixel_data = self.encapsulated = self.odd_pixel_data = False
        self.file_meta_bytes = 0

    def run(self) -> None:
        elements = 0
        while True:
            try:
                self._close_finished()
                self._keep()
                if self._is_over():
                    return
                elements += 1
                begin = self._position
                tag, vr, length, explicit, big = self._header()
                if elements > self._limits.elements:
                    raise _malformed("too many elements")
                self._element(begin, tag, vr, length, explicit, big)
            except _Structure as error:
                self._pass_over(error)

    def _keep(self) -> None:
        """Keeps the value of a wanted element that has ended."""
        if self._open is not None and not self._stack:
            tag, begin = self._open
            # One byte more than is taken.
            end = min(self._position, begin + MOST_BYTES_OF_VALUE + 1)
            self.elements[tag] = replace(self.elements[tag], value=self._data[begin:end])
            self._open = None

    def _is_over(self) -> bool:
        """Behind the last element come zero bytes at most."""
        rest = len(self._data) - self._position
        if self._stack:
            room = self._stack[-1].bound - self._position
            if room < 8:
                # Something is open at the end of a sequence of defined length, or something was lost.
                raise _Structure(BEYOND if room else MISPLACED)
            if rest < 8:
                raise _Structure(TRUNCATED)
            return False
        if rest < 8 or self._data[self._position : self._position + 8] == bytes(8):
            if self._data.count(0, self._position) != rest:
                raise _Structure(TRUNCATED if rest < 8 else FORBIDDEN)
            if rest > 1:
                self.anomalies.add("trailing_bytes")
            return True
        return False

    def _pass_over(self, error: _Structure) -> None:
        """Whoever does not open a sequence of defined length reads on behind it, whatever is in it."""
        end = self._stack[0].end if self._stack else None
        if end is None or end < self._position or str(error) in (TRUNCATED, FORBIDDEN, BEYOND):
            raise error
        self.anomalies.add("sequence_content")
        if self._open is not None:
            tag, _ = self._open
            self.elements[tag] = replace(self.elements[tag], is_damaged=True)
            self._open = None
        self._stack.clear()
        self._sequences = 0
        self._pass(end - self._position)

    def _header(self) -> tuple[int, bytes | None, int, bool, bool]:
        top = self._stack[-1] if self._stack else None
        explicit, big = (top.explicit, top.big) if top else (self._explicit, self._big)
        tags, shorts, longs = _BIG if big else _LITTLE
        at, data = self._position, self._data
        group, element = tags(data, at)
        tag = group << 16 | element
        # Items and delimiters have no VR, and nothing else is in a sequence.
        if group == 0xFFFE or not explicit or (top is not None and top.kind != "item"):
            self._position += 8
            return tag, None, longs(data, at + 4)[0], explicit, big
        vr = data[at + 4 : at + 6]
        form = "short" if vr in _SHORT else "long"
        if form == "long" and vr not in _KNOWN_LONG:
            form = self._form_of(tag, vr)
            if tag == PIXEL_DATA and form != "absent":
                self.odd_pixel_data = True
            self.anomalies.add("illegal_vr")
            vr = b"UN"
        if form == "absent":
            self._position += 8
            return tag, None, longs(data, at + 4)[0], False, big
        if form == "short":
            self._position += 8
            return tag, vr, shorts(data, at + 6)[0], explicit, big
        if top is not None and top.bound - at < 12:
            raise _Structure(BEYOND)
        if len(data) - at < 12:
            raise _Structure(TRUNCATED)
        self._position += 12
        return tag, vr, longs(data, at + 8)[0], explicit, big

    def _form_of(self, tag: int, vr: bytes) -> str:
        """How DCMTK, pydicom and others read a header whose VR is not in PS3.5 6.2."""
        is_future = 65 <= vr[0] <= 90 and 65 <= vr[1] <= 90
        if self._unknown_vr is None:
            printable = all(32 <= byte <= 126 and byte != 92 for byte in vr)
            name = f"VR '{vr.decode('ascii')}'" if printable else f"VR {vr.hex().upper()}H"
            raise _UnknownVr(f"{name} of ({tag >> 16:04X},{tag & 0xFFFF:04X})")
        if self._unknown_vr == "short":
            return "short" if b"AA" <= vr <= b"ZZ" else "absent"
        if is_future:
            return "long"
        return "short" if self._unknown_vr == "future" else "absent"

    def _element(self, begin: int, tag: int, vr: bytes | None, length: int, explicit: bool, big: bool) -> None:
        top = self._stack[-1] if self._stack else None
        is_beyond = top is not None and length != _UNDEFINED and self._position + length > top.bound
        if is_beyond and (tag == _ITEM if top is not None and top.kind != "item" else tag >> 16 != 0xFFFE):
            raise _Structure(BEYOND)
        if top is not None and top.kind == "fragments":
            self._fragment(tag, length)
        elif top is not None and top.kind == "sequence":
            self._sequence_member(tag, length, top)
        elif top is not None and tag == _ITEM_END:
            self._delimited(top, length)
        elif tag >> 16 == 0xFFFE:
            self._stray(tag, length, top)
        else:
            if top is None:
                if self._ended:
                    raise _Structure(MISPLACED)
                self._note(tag, begin)
                # What is in a sequence identifies nothing.
                is_nameless = tag in self._wanted.identifying and (vr == b"SQ" or length == _UNDEFINED)
                if is_nameless:
                    self.values[tag] = b""
                if tag in self._wanted.describing:
                    name = None if vr is None else vr.decode("ascii")
                    self.elements[tag] = Element(
                        name, b"", explicit, big, is_undefined_length=length == _UNDEFINED, is_damaged=is_nameless
                    )
                    self._open = (tag, self._position)
            self._value(tag, vr, length, explicit, big)

    def _stray(self, tag: int, length: int, top: _Frame | None) -> None:
        """An item or delimiter among elements: for readers an empty element, or the end of the data set."""
        if top is None and (tag == _ITEM_END or (tag == _SEQUENCE_END and length == _UNDEFINED)):
            self._ended = True
        elif tag not in (_ITEM, _SEQUENCE_END) or length or (top is not None and top.end is None):
            raise _Structure(MISPLACED)
        self.anomalies.add("delimiter")

    def _value(self, tag: int, vr: bytes | None, length: int, explicit: bool, big: bool) -> None:
        if length != _UNDEFINED:
            if vr == b"SQ" or (vr is None and _is_sequence(tag)):
                self._push("sequence", explicit, big, self._position + length)
            else:
                self._pass(length)
                if tag in self._wanted.identifying and not self._stack:
                    self.values[tag] = self._data[self._position - length : self._position]
        elif tag == PIXEL_DATA or vr in (b"OB", b"OW"):
            self.encapsulated |= tag == PIXEL_DATA and not self._stack
            self._push("fragments", explicit, big, None)
        elif vr is None or vr == b"SQ":
            self._push("sequence", explicit, big, None)
        elif vr == b"UN":
            # PS3.5 6.2.2 note 2: an Implicit VR Little Endian sequence.
            self._push("sequence", False, False, None)
        else:
            raise _Structure("undefined length on a VR that cannot have it")

    def _pass(self, length: int) -> None:
        if length > len(self._data) - self._position:
            raise _Structure(TRUNCATED)
        self._position += length

    def _fragment(self, tag: int, length: int) -> None:
        if tag == _ITEM and length != _UNDEFINED:
            self._pass(length)
            return
        if tag == _SEQUENCE_END:
            self._stack.pop()
        elif tag != _ITEM_END or length:
            raise _Structure(MISPLACED)
        if tag == _ITEM_END or length:
            self.anomalies.add("delimiter")
            self.odd_pixel_data = True

    def _sequence_member(self, tag: int, length: int, sequence: _Frame) -> None:
        if tag == _ITEM:
            end = None if length == _UNDEFINED else self._position + length
            bound = sequence.bound if end is None else end
            self._stack.append(_Frame("item", sequence.explicit, sequence.big, end, bound))
        elif tag == _SEQUENCE_END:
            self._delimited(sequence, length)
        elif tag == _ITEM_END:
            self.anomalies.add("delimiter")
        else:
            raise _Structure(MISPLACED)

    def _delimited(self, frame: _Frame, length: int) -> None:
        if frame.end is not None and frame.end != self._position:
            raise _Structure(MISPLACED)
        if frame.end is not None or length:
            self.anomalies.add("delimiter")
        self._pop()

    def _note(self, tag: int, begin: int) -> None:
        group = tag >> 16
        if group == 0:
            raise _Structure(FORBIDDEN)
        if group == 2 and not self._past_file_meta:
            self.anomalies.add("file_meta_in_data_set")
        elif group in _RESERVED:
            self.anomalies.add("reserved_group")
        if group != 2 and not self._past_file_meta:
            self._past_file_meta, self.file_meta_bytes = True, begin
        if tag in self._wanted.identifying:
            if tag in self._seen:
                raise _malformed("an identifying attribute occurs twice")
            self._seen.add(tag)
        self.pixel_data |= tag == PIXEL_DATA

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
                raise _Structure(BEYOND)
            self._pop()


_KNOWN_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())


def _is_standard_encapsulated(transfer_syntax: str) -> bool:
    return transfer_syntax == "1.2.840.10008.1.2.5" or (
        transfer_syntax.startswith("1.2.840.10008.1.2.4.") and transfer_syntax not in _DEFLATED
    )


def _is_sequence(tag: int) -> bool:
    try:
        return dictionary_VR(tag) == "SQ"
    except KeyError:
        return False
