"""What PS3.5 forbids and other readers follow: both engines take it, name it, and find the identity that pydicom finds."""

from __future__ import annotations

import json
import struct
from importlib import resources
from io import BytesIO

import pydicom
import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

from storescp import _core, advice
from storescp.errors import CoreError
from storescp.pure.index import read_index, wanted
from storescp.pure.refusal import Refusal
from storescp.pure.store import file_meta
from storescp.pure.structure import ANOMALIES, WalkLimits, inflate, walk
from support.instances import Instance, ct_slice, explicit, text
from support.scu import EXPLICIT

LIMITS = WalkLimits(64, 1 << 24, 1 << 31)
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"
UNDEFINED = 0xFFFFFFFF
SEQUENCE, HISTORY = 0x00081140, 0x001021B0
INNER = explicit(0x00081150, b"UI", text("1.2.3", b"\0"))
SIZE = len(INNER)


def item(length: int, content: bytes = b"") -> bytes:
    return struct.pack("<HHL", 0xFFFE, 0xE000, length) + content


def item_end(length: int = 0) -> bytes:
    return struct.pack("<HHL", 0xFFFE, 0xE00D, length)


def sequence_end(length: int = 0) -> bytes:
    return struct.pack("<HHL", 0xFFFE, 0xE0DD, length)


def sequence(content: bytes, length: int = UNDEFINED) -> bytes:
    return explicit(SEQUENCE, b"SQ", content, length)


def odd(vr: bytes, rest: bytes) -> bytes:
    return struct.pack("<HH2s", HISTORY >> 16, HISTORY & 0xFFFF, vr) + rest


def short(vr: bytes, value: bytes) -> bytes:
    return odd(vr, struct.pack("<H", len(value)) + value)


def long(vr: bytes, value: bytes) -> bytes:
    return odd(vr, struct.pack("<HL", 0, len(value)) + value)


def implicit(value: bytes) -> bytes:
    return struct.pack("<HHL", HISTORY >> 16, HISTORY & 0xFFFF, len(value)) + value


def outcome_of_rust(instance: Instance) -> tuple[object, ...]:
    try:
        found = _core.scan(instance.dataset, instance.transfer_syntax, [])
    except CoreError as error:
        return (str(error),)
    return (found.study_instance_uid, found.patient_id, found.has_pixel_data, tuple(found.anomalies))


def outcome_of_python(instance: Instance) -> tuple[object, ...]:
    try:
        plain = inflate(instance.dataset, instance.transfer_syntax, LIMITS)
        found = walk(plain, instance.transfer_syntax, wanted(), LIMITS)
        index = read_index(found)
    except Refusal as refusal:
        return (f"{refusal.status:04X} {refusal.comment}",)
    anomalies = tuple(code for code in ANOMALIES if code in {*found.anomalies, *index.anomalies})
    return (index.study_instance_uid, index.patient_id, found.has_pixel_data, anomalies)


def outcome(instance: Instance) -> tuple[object, ...]:
    """What both engines say, which is the same, and does not contradict what pydicom reads."""
    found = outcome_of_rust(instance)
    assert found == outcome_of_python(instance)
    if len(found) > 1:
        for keyword, ours in (("StudyInstanceUID", found[0]), ("PatientID", found[1])):
            assert read_by_pydicom(instance, keyword) in (None, ours), keyword
    return found


def read_by_pydicom(instance: Instance, keyword: str) -> str | None:
    """Of the file that would be stored; None where pydicom finds nothing or gives up."""
    meta = walk(
        inflate(instance.dataset, instance.transfer_syntax, LIMITS), instance.transfer_syntax, wanted(), LIMITS
    ).file_meta_bytes
    header = file_meta(instance.sop_class, instance.sop_instance, instance.transfer_syntax, "A")
    try:
        value = pydicom.dcmread(BytesIO(header + instance.dataset[meta:])).get(keyword)
    except Exception:  # noqa: BLE001 - whatever pydicom raises on such a data set
        return None
    return None if value is None else str(value)


def with_elements(changes: dict[int, bytes | None], behind: bytes = b"", transfer_syntax: str = EXPLICIT) -> Instance:
    made = ct_slice(1, rows=2, changes=changes)
    return Instance(made.sop_class, made.sop_instance, transfer_syntax, made.dataset + behind)


def encapsulated(end: bytes) -> Instance:
    content = item(0) + item(4, b"\xff\xd8\xff\xd9") + end
    pixels = explicit(0x7FE00010, b"OB", content, UNDEFINED)
    return with_elements({0x7FE00010: pixels}, transfer_syntax=JPEG_LOSSLESS)


CLOSED = item(SIZE, INNER)
OPEN = item(UNDEFINED, INNER)
# PS3.5 7.5: what is superfluous or has a length, and the reader that takes it.
DELIMITERS = {
    "in the length of the sequence": sequence(CLOSED + sequence_end(), SIZE + 16),  # DCMTK, Orthanc, pydicom
    "behind the sequence": sequence(CLOSED, SIZE + 8) + sequence_end(),  # pydicom
    "behind an empty sequence": sequence(sequence_end(), 0),  # pydicom
    "in the length of the item": sequence(item(SIZE + 8, INNER + item_end()), SIZE + 16),  # DCMTK, Orthanc, pydicom
    "behind the item": sequence(CLOSED + item_end() + sequence_end()),  # pydicom
    "behind the item in a length": sequence(CLOSED + item_end(), SIZE + 16),  # pydicom
    "of the item with a length": sequence(OPEN + item_end(UNDEFINED) + sequence_end()),  # all three
    "of the sequence with a length": sequence(OPEN + item_end() + sequence_end(UNDEFINED)),  # all three
    "twice": sequence(OPEN + item_end() + sequence_end() + sequence_end()),  # pydicom
}
# No reader follows these.
BROKEN_DELIMITERS = {
    "sequence's for the item's": sequence(OPEN + sequence_end()),
    "sequence's for the item's, and again": sequence(OPEN + sequence_end() + sequence_end()),
    "item's for the sequence's": sequence(OPEN + item_end() + item_end()),
    "item's among elements": item_end(),
    "with a value": sequence(OPEN + item_end() + sequence_end(4) + bytes(4)),
}


@pytest.mark.parametrize("element", DELIMITERS.values(), ids=DELIMITERS)
def test_a_superfluous_delimiter_is_taken(element: bytes) -> None:
    assert outcome(with_elements({SEQUENCE: element}))[3:] == (("delimiter",),)


@pytest.mark.parametrize("element", BROKEN_DELIMITERS.values(), ids=BROKEN_DELIMITERS)
def test_a_delimiter_that_no_reader_follows_is_refused(element: bytes) -> None:
    [text_] = outcome(with_elements({SEQUENCE: element}))
    assert str(text_).startswith("C000 ")


@pytest.mark.parametrize(
    "behind", [item_end(), item_end(UNDEFINED), sequence_end(), sequence_end(UNDEFINED), item(0), item_end() * 2]
)
def test_a_delimiter_behind_the_data_set_is_taken(behind: bytes) -> None:
    assert outcome(with_elements({}, behind))[3:] == (("delimiter",),)


@pytest.mark.parametrize("end", [sequence_end(UNDEFINED), sequence_end() * 2, item_end() + sequence_end()])
def test_delimiters_of_pixel_data_are_taken(end: bytes) -> None:
    assert outcome(encapsulated(end))[2:] == (True, ("delimiter",))


@pytest.mark.parametrize("end", [b"", bytes(8), item_end(), sequence_end()[:-1]])
def test_pixel_data_that_are_not_closed_are_refused(end: bytes) -> None:
    [text_] = outcome(encapsulated(end))
    assert str(text_).startswith("C000 ")


@pytest.mark.parametrize("count", [2, 3, 7, 8, 9, 12, 512, 70_000])
def test_zero_bytes_behind_the_data_set_are_taken(count: int) -> None:
    assert outcome(with_elements({}, bytes(count)))[3:] == (("trailing_bytes",),)
    [text_] = outcome(with_elements({}, bytes(count) + b"\1"))
    assert str(text_).startswith("C000 ")


VALUE = b"history of nothing. "
ILLEGAL_VRS = {
    **{f"{vr!r} short": short(vr, VALUE) for vr in (b"--", b"??", b"  ", b"\0\0", b"lt", b"L ", b"RE", b"XS")},
    **{f"{vr!r} empty": short(vr, b"") for vr in (b"--", b"??", b"  ", b"\0\0")},
    **{f"{vr!r} long": long(vr, VALUE) for vr in (b"RE", b"ZZ", b"OX")},
    "none": implicit(VALUE),
    "none, empty": implicit(b""),
    "many": short(b"--", VALUE) * 300,
}
UNREADABLE_VRS = {f"{vr!r} long": long(vr, VALUE) for vr in (b"??", b"  ", b"\0\0")}


@pytest.mark.parametrize("element", ILLEGAL_VRS.values(), ids=ILLEGAL_VRS)
def test_an_illegal_value_representation_is_read_as_others_read_it(element: bytes) -> None:
    assert outcome(with_elements({HISTORY: element}))[3:] == (("illegal_vr",),)


@pytest.mark.parametrize("element", UNREADABLE_VRS.values(), ids=UNREADABLE_VRS)
def test_an_illegal_value_representation_without_a_reading_is_named(element: bytes) -> None:
    [text_] = outcome(with_elements({HISTORY: element}))
    assert str(text_).startswith("C000 no reading of VR ")
    assert "(0010,21B0)" in str(text_)


@pytest.mark.parametrize("behind", [b"", explicit(0x00100020, b"LO", b"P-0002")])
def test_readings_with_another_patient_are_refused(behind: bytes) -> None:
    """One reading takes what is hidden for a value, the other one for elements."""
    hidden = explicit(0x00100020, b"LO", b"P-0009")
    ambiguous = odd(b"RE", struct.pack("<HL", 4, len(hidden)) + hidden)
    [text_] = outcome(with_elements({0x00100020: ambiguous + behind}))
    assert text_ == "C000 readings of VR 'RE' of (0010,21B0) differ in identity"


@pytest.mark.parametrize("group", [0x0001, 0x0003, 0x0005, 0x0006, 0x0007, 0xFFFF])
def test_elements_of_reserved_groups_are_taken(group: int) -> None:
    tag = group << 16 | 0x0010
    assert outcome(with_elements({tag: explicit(tag, b"LO", b"AB")}))[3:] == (("reserved_group",),)


def test_file_meta_information_in_the_data_set_is_taken() -> None:
    meta = explicit(0x00020010, b"UI", text("1.2.840.10008.1.2", b"\0"))
    assert outcome(with_elements({0x00020010: meta}))[3:] == (("file_meta_in_data_set",),)
    assert outcome(with_elements({}, meta))[3:] == (("reserved_group",),)


NO_ITEMS = {
    "text": VALUE,
    "an open item": OPEN,
    "a rest": CLOSED + b"\1" * 11,
    "the wrong delimiter": OPEN + sequence_end(),
}


@pytest.mark.parametrize("content", NO_ITEMS.values(), ids=NO_ITEMS)
def test_a_sequence_whose_length_is_known_is_passed_over(content: bytes) -> None:
    assert outcome(with_elements({SEQUENCE: sequence(content, len(content))}))[3:] == (("sequence_content",),)


@pytest.mark.parametrize("content", [item(SIZE + 20, INNER), item(SIZE, INNER[:-2]), CLOSED + b"\0\0"])
def test_an_element_that_lost_a_part_is_refused(content: bytes) -> None:
    [text_] = outcome(with_elements({SEQUENCE: sequence(content, len(content))}))
    assert text_ == "C000 an element is longer than what contains it"


def test_pixel_data_that_do_not_fit_the_transfer_syntax_are_named() -> None:
    compressed = encapsulated(sequence_end())
    native = Instance(compressed.sop_class, compressed.sop_instance, EXPLICIT, compressed.dataset)
    assert outcome(native)[2:] == (True, ("pixel_data_encoding",))
    assert outcome(with_elements({}, transfer_syntax=JPEG_LOSSLESS))[2:] == (True, ("pixel_data_encoding",))


def test_every_code_is_in_the_schema_and_explained() -> None:
    schema = json.loads(resources.files("storescp").joinpath("record-2.schema.json").read_text(encoding="utf-8"))
    assert tuple(schema["properties"]["anomalies"]["items"]["enum"]) == ANOMALIES
    assert tuple(_core.anomalies()) == ANOMALIES
    assert tuple(advice.ANOMALIES) == ANOMALIES


PARTS = [
    *DELIMITERS.values(),
    *ILLEGAL_VRS.values(),
    *UNREADABLE_VRS.values(),
    *BROKEN_DELIMITERS.values(),
    *(sequence(content, len(content)) for content in NO_ITEMS.values()),
    item_end(),
    sequence_end(),
    item(0),
    bytes(8),
    explicit(0x00020010, b"UI", text("1.2.840.10008.1.2", b"\0")),
    explicit(0x00050010, b"LO", b"AB"),
    explicit(0x00100020, b"LO", b"P-0009"),
]
PLACES = [0x00020000, 0x00080001, SEQUENCE, 0x0010001F, HISTORY, 0x0020000F, 0x7FE0000F, 0x7FE00011]


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings_of_hypothesis(max_examples=600, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(PLACES),
        st.lists(st.sampled_from(PARTS) | st.binary(max_size=24), min_size=1, max_size=3).map(b"".join),
        max_size=4,
    ),
    st.binary(max_size=12) | st.just(b""),
)
def test_no_mixture_of_oddities_is_taken_for_another_instance(places: dict[int, bytes], behind: bytes) -> None:
    outcome(with_elements(dict(places), behind))


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings_of_hypothesis(max_examples=300, deadline=None)
@given(st.sampled_from(PARTS), st.integers(0, 60), st.binary(min_size=1, max_size=8))
def test_no_damage_to_an_oddity_is_taken_for_another_instance(part: bytes, at: int, patch: bytes) -> None:
    at %= len(part) + 1
    outcome(with_elements({SEQUENCE: part[:at] + patch + part[at + len(patch) :]}))
