"""What a record has of a data set: captured values in the DICOM JSON model (PS3.18 Annex F)."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_sequence

from storescp.pure.charset import decode

MOST_BYTES_OF_VALUE = 10_240
_MOST_BYTES = 64 * 1024
_UNDEFINED = 0xFFFFFFFF
_SPECIFIC_CHARACTER_SET = 0x00080005
_TEXT_VRS = frozenset(
    ["AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"]
)
_ONE_VALUE_VRS = frozenset(["LT", "ST", "UR", "UT"])
_NUMBERS = {"US": "H", "SS": "h", "UL": "L", "SL": "l", "UV": "Q", "SV": "q", "FL": "f", "FD": "d", "AT": "HH"}
_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")
# 64 bits; int() refuses thousands of digits.
_INTEGER = re.compile(r"([+-]?)0*([0-9]{1,19})(?:\.0*)?")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_CONTROLS = dict.fromkeys(range(0x20), "\ufffd")
# PS3.5 6.1.3: what long texts may have.
_CONTROLS_OF_LONG_TEXTS = {code: new for code, new in _CONTROLS.items() if chr(code) not in "\t\n\f\r"}


class _UnreadableError(Exception):
    """A value has no place in a record."""


@dataclass(frozen=True)
class Element:
    """A top-level element as received."""

    vr: str | None  # None where it is not written
    value: bytes  # of a sequence: its items, and its delimiter where its length is undefined
    explicit: bool
    big: bool
    is_undefined_length: bool = False
    is_damaged: bool = False  # or it is not kept


def describe(
    keywords: Iterable[str], found: Mapping[int, Element], character_set: bytes
) -> tuple[str, list[str], bool]:
    """The JSON text, the keywords that are left out of it, and whether a text is doubtful."""
    writer = _Writer()
    texts: list[str] = []
    omitted: list[str] = []
    size = len("{}")
    for tag, keyword in sorted((tag_for_keyword(keyword) or 0, keyword) for keyword in set(keywords)):
        element = found.get(tag)
        if element is None:
            continue
        try:
            text = _encode({f"{tag:08X}": writer.attribute(tag, element, character_set)})[1:-1]
        except _UnreadableError:
            text = ""
        taken = size + len(text.encode()) + (1 if texts else 0)
        if text and taken <= _MOST_BYTES:
            texts.append(text)
            size = taken
        else:
            omitted.append(keyword)
    return "{" + ",".join(texts) + "}", omitted, writer.is_doubtful


def _encode(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class _Writer:
    def __init__(self) -> None:
        self.is_doubtful = False

    def attribute(self, tag: int, element: Element, character_set: bytes) -> dict[str, Any]:
        if element.is_damaged or len(element.value) > MOST_BYTES_OF_VALUE:
            raise _UnreadableError
        vr = element.vr if element.vr not in (None, "UN") else dictionary_VR(tag)
        if vr == "SQ":
            items = [self._item(item, character_set) for item in _items(element)]
            # PS3.18 F.2.5: what is empty has no value.
            return {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}
        if element.is_undefined_length:
            raise _UnreadableError
        return self._element(vr, element.value, element.big and element.vr != "UN", character_set)

    def _item(self, item: Dataset, character_set: bytes) -> dict[str, Any]:
        """Those of its attributes that are text or numbers: sequences in it are left out, and lengths of groups."""
        found: dict[str, Any] = {}
        for tag in sorted(item.keys()):
            raw: Any = item.get_item(tag)
            if not isinstance(raw, RawDataElement) or tag.is_private or not tag.element:
                continue
            value = raw.value or b""
            if tag == _SPECIFIC_CHARACTER_SET:
                character_set = value.rstrip(b"\0 ")
                continue
            vr = raw.VR if raw.VR not in (None, "UN") else _vr_of(tag)
            is_big = not raw.is_little_endian
            if vr in _TEXT_VRS or vr in _NUMBERS:
                found[f"{tag:08X}"] = self._element(vr, value, is_big and raw.VR != "UN", character_set)
        return found

    def _element(self, vr: str, value: bytes, big: bool, character_set: bytes) -> dict[str, Any]:
        values = _numbers(vr, value, big) if vr in _NUMBERS else self._texts(vr, value, character_set)
        return {"vr": vr, "Value": values} if values else {"vr": vr}

    def _texts(self, vr: str, value: bytes, character_set: bytes) -> list[Any]:
        if vr not in _TEXT_VRS:
            raise _UnreadableError
        text, is_doubtful = decode(value.rstrip(b"\0 "), character_set)
        self.is_doubtful |= is_doubtful
        text = text.translate(_CONTROLS_OF_LONG_TEXTS if vr in ("LT", "ST", "UT") else _CONTROLS)
        if not text:
            return []
        return [text] if vr in _ONE_VALUE_VRS else [_one(vr, one.rstrip(" ")) for one in text.split("\\")]


def _one(vr: str, value: str) -> object:
    trimmed = value.lstrip(" ")
    if not trimmed:
        return None  # PS3.18 F.2.5
    if vr == "PN":
        return {group: part for group, part in zip(_GROUPS, value.split("="), strict=False) if part}
    if vr == "IS" and (found := _INTEGER.fullmatch(trimmed)) and int(found[2]) < 1 << 63:
        return int(found[1] + found[2])
    if vr == "DS" and _NUMBER.fullmatch(trimmed) and math.isfinite(number := float(trimmed)):
        return number
    return trimmed if vr == "AE" else value


def _numbers(vr: str, value: bytes, big: bool) -> list[Any]:
    layout = (">" if big else "<") + _NUMBERS[vr]
    if len(value) % struct.calcsize(layout):
        raise _UnreadableError
    found: list[Any] = []
    for numbers in struct.iter_unpack(layout, value):
        if vr == "AT":
            found.append("{:04X}{:04X}".format(*numbers))
        else:
            found.append(numbers[0] if math.isfinite(numbers[0]) else _not_finite(numbers[0]))
    return found


def _not_finite(number: float) -> str:
    return "NaN" if math.isnan(number) else "inf" if number > 0 else "-inf"


def _vr_of(tag: int) -> str | None:
    try:
        return dictionary_VR(tag)
    except KeyError:
        return None


def _items(element: Element) -> Iterable[Dataset]:
    # PS3.5 6.2.2 note 2: a sequence in a UN is in Implicit VR Little Endian.
    is_implicit, is_little = (True, True) if element.vr == "UN" else (not element.explicit, not element.big)
    length = _UNDEFINED if element.is_undefined_length else len(element.value)
    try:
        return read_sequence(BytesIO(element.value), is_implicit, is_little, length, "ascii")
    except Exception as error:
        raise _UnreadableError from error
