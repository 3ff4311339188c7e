"""Pixel Data in items: icons, and images in sequences of any kind, at any depth (PS3.5 A.4).

The same rules as the Rust core's: they are native in every result, and around them stays what was received, byte for
byte, but for lengths that would be wrong.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pydicom.datadict import dictionary_VR

PIXEL_DATA = 0x7FE00010
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = b"\xff\xff\xff\xff"
_SHORT = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())

NOT_PIXEL_DATA = "fragments in an element that is not Pixel Data"


class NestedError(Exception):
    """The structure, or fragments of what is not Pixel Data; the text says which."""


@dataclass(frozen=True)
class Splice:
    """What stands in the place of a part; an empty one is a place between two bytes."""

    begin: int
    end: int
    content: bytes


@dataclass(frozen=True)
class Token:
    """One step: an element with its value, fragments with their items, or an end of a sequence or item."""

    kind: str  # "element", "fragments", "sequence", "item" or "end"
    tag: int
    begin: int
    end: int
    explicit: bool


@dataclass
class _Open:
    kind: str
    tag: int
    content_at: int
    explicit: bool
    end: int | None
    holds: bool = False
    is_image: bool = False
    group_lengths: list[Token] = field(default_factory=list)
    changed: set[int] = field(default_factory=set)


DecodeItem = Callable[[bytes, bool], list[Splice]]


def decoded(element: bytes, decode_item: DecodeItem) -> bytes:
    """A sequence at the top of a data set with the pixels of its items native.

    `decode_item` gets the content of an item with encapsulated Pixel Data, and whether its VRs are explicit.

    Raises:
        NestedError: fragments of what is not Pixel Data.
    """
    splices: list[Splice] = []
    stack: list[_Open] = []
    for token in tokens(element, explicit=True):
        if token.kind in ("sequence", "item"):
            length = element[token.end - 4 : token.end]
            end = None if length == _UNDEFINED else token.end + int.from_bytes(length, "little")
            stack.append(_Open(token.kind, token.tag, token.end, token.explicit, end))
        elif token.kind == "fragments":
            if token.tag != PIXEL_DATA:
                raise NestedError(NOT_PIXEL_DATA)
            for one in stack:
                one.holds = True
            stack[-1].is_image = True
        elif token.kind == "end":
            closed = stack.pop()
            if closed.holds:
                splices += _closed(element, closed, token.begin, decode_item)
            if closed.holds and closed.kind == "sequence" and stack:
                stack[-1].changed.add(closed.tag >> 16)
        elif token.tag & 0xFFFF == 0:
            stack[-1].group_lengths.append(token)
    return spliced(element, splices)


def _closed(element: bytes, closed: _Open, end: int, decode_item: DecodeItem) -> Iterator[Splice]:
    if closed.is_image:
        for one in decode_item(element[closed.content_at : end], closed.explicit):
            yield Splice(closed.content_at + one.begin, closed.content_at + one.end, one.content)
        closed.changed |= {0x0028, PIXEL_DATA >> 16}
    for length in closed.group_lengths:
        if length.tag >> 16 in closed.changed:
            yield Splice(length.begin, length.end, b"")
    if closed.end is not None:
        yield Splice(closed.content_at - 4, closed.content_at, _UNDEFINED)
        delimiter = _ITEM_END if closed.kind == "item" else _SEQUENCE_END
        yield Splice(end, end, struct.pack("<HHL", delimiter >> 16, delimiter & 0xFFFF, 0))


def spliced(content: bytes, splices: list[Splice]) -> bytes:
    """The content with every splice in its place; those of one place stay in order."""
    parts, at = [], 0
    for splice in sorted(splices, key=lambda splice: splice.begin):
        parts += [content[at : splice.begin], splice.content]
        at = splice.end
    return b"".join([*parts, content[at:]])


def tokens(content: bytes, *, explicit: bool) -> Iterator[Token]:
    """The elements of a little endian data set, with what is inside sequences.

    Raises:
        NestedError: it ends inside an element, or an item is out of place.
    """
    stack: list[_Open] = []
    at = 0
    while True:
        top = stack[-1] if stack else None
        if top is not None and top.end == at:
            stack.pop()
            yield Token("end", top.tag, at, at, top.explicit)
            continue
        if at >= len(content) or (top is not None and top.end is not None and at > top.end):
            if stack or at > len(content):
                raise NestedError("an item or sequence does not end where it says")
            return
        begin = at
        tag, vr, length, at, inside = _header(content, at, explicit=top.explicit if top else explicit)
        if top is not None and tag in (_ITEM_END, _SEQUENCE_END):
            stack.pop()
            yield Token("end", top.tag, begin, at, top.explicit)
        elif (
            tag == _ITEM
            or vr == b"SQ"
            or (vr is None and _is_sequence(tag))
            or (length is None and not _holds(tag, vr))
        ):
            kind = "item" if tag == _ITEM else "sequence"
            # PS3.5 6.2.2 note 2: the value of such a UN is an Implicit VR Little Endian sequence.
            inside = inside and vr in (None, b"SQ")
            stack.append(_Open(kind, tag, at, inside, None if length is None else at + length))
            yield Token(kind, tag, begin, at, inside)
        elif length is None:
            at = _end_of_fragments(content, at)
            yield Token("fragments", tag, begin, at, inside)
        else:
            at += length
            yield Token("element", tag, begin, at, inside)


def _header(content: bytes, at: int, *, explicit: bool) -> tuple[int, bytes | None, int | None, int, bool]:
    try:
        group, number = struct.unpack_from("<HH", content, at)
        vr = content[at + 4 : at + 6] if explicit and group != 0xFFFE else None
        if vr is not None and not (65 <= vr[0] <= 90 and 65 <= vr[1] <= 90):
            # Not a VR: some writers fall back to the implicit form for single elements.
            vr, explicit = None, False
        if vr in _SHORT:
            length, size = struct.unpack_from("<H", content, at + 6)[0], 8
        else:
            size = 8 if vr is None else 12
            length = struct.unpack_from("<L", content, at + size - 4)[0]
    except (struct.error, IndexError):
        raise NestedError("the data set ends inside an element") from None
    return group << 16 | number, vr, None if length == 0xFFFFFFFF else length, at + size, explicit


def _end_of_fragments(content: bytes, at: int) -> int:
    while True:
        tag, _, length, at, _ = _header(content, at, explicit=False)
        if tag == _SEQUENCE_END:
            return at
        if tag != _ITEM or length is None:
            raise NestedError("an item is out of place")
        at += length


def _holds(tag: int, vr: bytes | None) -> bool:
    return tag == PIXEL_DATA or vr in (b"OB", b"OW")


def _is_sequence(tag: int) -> bool:
    try:
        return dictionary_VR(tag) == "SQ"
    except KeyError:
        return False
