"""Text, dates and counts of both engines, over tables of what devices write."""

from __future__ import annotations

import itertools
import logging
import struct
from collections.abc import Iterator
from datetime import date

import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from pydicom.charset import convert_encodings, decode_bytes

from storescp import _core
from storescp.errors import CoreError
from storescp.pure import charset
from storescp.pure.index import InstanceIndex, read_index, wanted
from storescp.pure.structure import WalkLimits, walk
from storescp.pure.transcode import TranscodeError, to_explicit
from support.compressed import RLE, compressed_ct, with_attribute
from support.instances import ct_slice, explicit, text
from support.scu import EXPLICIT
from support.texts import OTHER_TERMS, SINGLE_BYTE, TEXTS

LIMITS = WalkLimits(64, 1 << 24, 1 << 31)
PATIENT_ID, CHARACTER_SET, STUDY_DATE, FRAMES = 0x00100020, 0x00080005, 0x00080020, 0x00280008


def indices(changes: dict[int, bytes | None]) -> tuple[_core.ScanResult, InstanceIndex]:
    """What the two engines read of an instance."""
    one = ct_slice(1, rows=2, changes=changes)
    found = walk(one.dataset, one.transfer_syntax, wanted(), LIMITS)
    return _core.scan(one.dataset, one.transfer_syntax, []), read_index(found)


def read(term: str | None, value: bytes) -> tuple[str, bool]:
    """Patient ID and whether it is doubtful; the engines agree."""
    rust, pure = indices(
        {
            CHARACTER_SET: None if term is None else explicit(CHARACTER_SET, b"CS", text(term)),
            PATIENT_ID: explicit(PATIENT_ID, b"LO", text(value)),
        }
    )
    assert (rust.patient_id, tuple(rust.anomalies)) == (pure.patient_id, pure.anomalies), (term, value)
    return pure.patient_id, "character_set" in pure.anomalies


def spellings(number: str) -> Iterator[str]:
    yield from (f"ISO_IR {number}", f"ISO IR {number}", f"ISO-IR {number}", f"ISO_IR_{number}", f"ISO_IR{number}")
    yield from (f"iso_ir {number}", f" ISO_IR {number} ", f"ISO 2022 IR {number}", f"ISO_2022_IR_{number}")
    yield from (f"ISO 2022 {number}", f"\\ISO_IR {number}", f"\\ISO 2022 IR {number}", f"iso2022 ir {number}")


@pytest.mark.parametrize(
    ("number", "codec"), [*SINGLE_BYTE.items(), ("192", "utf_8"), ("149", "euc_kr"), ("58", "gb2312")]
)
def test_every_spelling_of_a_term_is_the_term(number: str, codec: str) -> None:
    for term in spellings(number):
        for sample in TEXTS[codec]:
            assert read(term, sample.encode(codec)) == (sample, False), term


@pytest.mark.parametrize(("term", "codec"), OTHER_TERMS.items())
def test_terms_that_others_write(term: str, codec: str) -> None:
    for variant in (term, term.lower(), term.replace("-", "_"), term.replace(" ", ""), f"\\{term}"):
        for sample in TEXTS[codec]:
            found, is_doubtful = read(variant, sample.encode(codec))
            assert found == sample, variant
            # ASCII declares nothing above 7F.
            assert is_doubtful == (codec == "latin_1" and term == "ISO_IR 6"), variant


def test_every_published_term_has_a_sample() -> None:
    assert set(_core.other_character_sets()) == set(OTHER_TERMS)


@pytest.mark.parametrize("term", ["GB18030", "GBK", "GB2312", "ISO 2022 GBK", "ISO 2022 58", "ISO_IR GBK", "\\GB18030"])
def test_chinese_is_read_under_each_of_its_names(term: str) -> None:
    for name in ("王小东", "欧阳娜娜", "买买提·艾山", "李 A-1"):
        assert read(term, name.encode("gbk")) == (name, False)


# Where pydicom reads what was meant, so do the engines. Latin-1 under another set's name is what pydicom assumes of unknown terms.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_pydicom_reads_is_read(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "pydicom")
    numbers = [*SINGLE_BYTE, "6", "58", "87", "149", "159", "192"]
    forms = ("ISO_IR {}", "ISO 2022 IR {}", "\\ISO 2022 IR {}", "ISO 2022 IR 100\\ISO 2022 IR {}", "ISO IR {}")
    terms = [form.format(number) for form in forms for number in numbers]
    terms += [*OTHER_TERMS, "GB18030", "GBK", "ISO 2022 GBK", "ISO 2022 58", "GB18030\\ISO_IR 192"]
    designated = {"iso2022_jp": b"", "euc_kr": b"\x1b$)C", "gb2312": b"\x1b$)A"}
    count = 0
    for term, (codec, samples) in itertools.product(terms, TEXTS.items()):
        encodings = convert_encodings(term.split("\\"))
        for sample in samples:
            for value in {sample.encode(codec), designated.get(codec, b"") + sample.encode(codec)}:
                if decode_bytes(value, encodings, set(b"\\\t\n\f\r")) == sample and codec != "latin_1":
                    assert read(term, value)[0] == sample, (term, codec)
                    count += 1
    assert count > 150


def groups(values: Iterator[bytes], size: int = 30) -> Iterator[list[bytes]]:
    while group := list(itertools.islice(values, size)):
        yield group


@pytest.mark.parametrize("term", ["GB18030", "EUC-KR", "SHIFT_JIS", "EUC-JP", "BIG5", "ISO_IR 192"])
def test_the_engines_have_the_same_tables_of_two_bytes(term: str) -> None:
    trails = (0x1F, 0x20, 0x31, *range(0x3F, 0x100))
    pairs = (bytes(pair) for pair in itertools.product(range(0x80, 0x100), trails))
    for group in groups(pairs):
        read(term, b"|".join(group))


@pytest.mark.parametrize("escape", [b"\x1b$B", b"\x1b$(D", b"\x1b$(C", b"\x1b$A"])
def test_the_engines_have_the_same_tables_of_seven_bits(escape: bytes) -> None:
    pairs = (escape + bytes(pair) for pair in itertools.product(range(0x21, 0x7F), repeat=2))
    for group in groups(pairs, 12):
        read("\\ISO 2022 IR 87", b"\x1b(B|".join(group))


def test_the_engines_have_the_same_tables_of_one_byte() -> None:
    for term in (*_core.character_sets(), *_core.other_character_sets(), *(f"CP{page}" for page in range(1250, 1259))):
        for group in groups(bytes([byte]) for byte in range(0x21, 0x100)):
            read(term, b"|".join(group))


TERMS = st.sampled_from([*_core.character_sets(), *_core.other_character_sets(), "", "UNKNOWN"])
PIECES = st.one_of(
    st.binary(max_size=6),
    st.sampled_from(
        [b"\x1b", b"\x1b$B", b"\x1b$(D", b"\x1b(B", b"\x1b(I", b"\x1b)I", b"\x1b$)C", b"\x1b$)A", b"\x1b-L"]
    ),
    st.text(max_size=3).map(str.encode),
    st.sampled_from("王小东").map(lambda character: character.encode("gbk")),
)


@settings_of_hypothesis(max_examples=500, deadline=None)
@given(st.lists(TERMS, max_size=3).map("\\".join), st.lists(PIECES, max_size=8).map(b"".join))
def test_the_engines_read_any_text_the_same(term: str, value: bytes) -> None:
    found, _ = read(term, value)
    assert not any(character < " " for character in found)


@settings_of_hypothesis(max_examples=500, deadline=None)
@given(st.text(st.characters(max_codepoint=0x7F), max_size=20), st.binary(max_size=8))
def test_the_engines_understand_any_term_the_same(term: str, value: bytes) -> None:
    read(term, value)


@given(st.binary(max_size=64), st.binary(max_size=40))
def test_doubt_is_never_silent(value: bytes, term: bytes) -> None:
    found, is_doubtful = charset.decode(value, term)
    sent = {"\ufffd".encode(), "\ufffd".encode("gb18030")}
    assert is_doubtful or "\ufffd" not in found or any(one in value for one in sent)


@pytest.mark.parametrize(
    ("term", "value", "expected"),
    [
        ("ISO_IR 192", "王".encode("gbk"), "\ufffd\ufffd"),
        ("GB18030", b"\xcd", "\ufffd"),
        ("UNKNOWN", "Müller".encode("latin-1"), "Müller"),
        ("UNKNOWN", "王".encode(), "王"),
        ("", "Müller".encode("latin-1"), "Müller"),
        (None, "Müller".encode("latin-1"), "Müller"),
        ("ISO_IR 100", b"a\x1b?b", "a\ufffd?b"),
    ],
)
def test_what_is_assumed_or_replaced_is_doubtful(term: str | None, value: bytes, expected: str) -> None:
    assert read(term, value) == (expected, True)


DATES = {
    b"20260102": True,
    b"2026.01.02": True,
    b"2026-01-02": True,
    b"2026/01/02": True,
    b"20260102120000": True,
    b"20260102120000.123456": True,
    b"20260102120000.123456+0100": True,
    b"202601021200": True,
    b"2026010212": True,
    b"20260102 120000": True,
    b"20260102T120000Z": True,
    b"2026-01-02 12:00:00": True,
    b"2026-01-02T12:00:00.5+01:00": True,
    b"2026.01.02 12:00": True,
    b"\t20260102\0": True,
    b"": False,
    b"20260230": False,
    b"2026-01.02": False,
    b"02.01.2026": False,
    b"20260102-20260103": False,
    b"20260102\\20260103": False,
    b"202601021": False,
    b"20260102250000": False,
    b"20260102 noon": False,
    b"20260102T": False,
}


@pytest.mark.parametrize(("value", "is_date"), DATES.items())
def test_study_date_is_read_in_the_forms_of_devices(value: bytes, is_date: bool) -> None:
    rust, pure = indices({STUDY_DATE: explicit(STUDY_DATE, b"DA", text(value))})
    assert pure.study_date == (date(2026, 1, 2) if is_date else None)
    assert rust.study_date == ("2026-01-02" if is_date else None)


@given(st.text("0123456789.-/: TZ+,\t", max_size=28).filter(lambda value: value.strip() != ""))
def test_the_engines_read_any_date_the_same(value: str) -> None:
    for written in (value, "20260102" + value, "2026-01-02" + value):
        rust, pure = indices({STUDY_DATE: explicit(STUDY_DATE, b"DA", text(written))})
        assert rust.study_date == (pure.study_date and pure.study_date.isoformat())


@pytest.mark.parametrize(
    ("value", "frames"),
    [
        (b"12 ", 12),
        (b"\t5\0", 5),
        (b"+5", 5),
        (b"0005", 5),
        (b"2.0", 2),
        (b"2.", 2),
        (b"0", 1),
        (b"00", 1),
        (b"", 1),
        (b"2\\3", 2),
        (b"1.5", 1),
        (b"-3", 1),
        (b"1e1", 1),
        (b"1_0", 1),
        (b"junk", 1),
        (b"99999999999", 1),
    ],
)
def test_number_of_frames_is_read_in_the_forms_of_devices(value: bytes, frames: int) -> None:
    rust, pure = indices({FRAMES: explicit(FRAMES, b"IS", text(value))})
    assert rust.number_of_frames == pure.number_of_frames == frames


@given(st.text("0123456789.+-e_ \t\\\0", max_size=14))
def test_the_engines_read_any_number_of_frames_the_same(value: str) -> None:
    rust, pure = indices({FRAMES: explicit(FRAMES, b"IS", text(value))})
    assert rust.number_of_frames == pure.number_of_frames


@pytest.mark.parametrize(
    ("value", "frames"),
    [
        (b"0 ", 1),
        (b"00", 1),
        (b"", 1),
        (b"1.0 ", 1),
        (b"\t1", 1),
        (b"1\0", 1),
        (b"+2", 2),
        (b"2.0 ", 2),
        (b"2\\9 ", 2),
        (b"\t2\0\0", 2),
        (b"1.5 ", None),
        (b"junk", None),
        (b"-2", None),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_index_and_transcoders_read_number_of_frames_by_one_rule(value: bytes, frames: int | None) -> None:
    pixels = struct.pack("<64H", *range(64))
    made = compressed_ct(1, RLE, frames=frames or 2, rows=8, pixels=pixels)
    one = with_attribute(made, FRAMES, b"IS", value)
    assert _core.scan(one.dataset, RLE, []).number_of_frames == (frames or 1)
    if frames is None:
        with pytest.raises(CoreError):
            _core.transcode(one.dataset, RLE, EXPLICIT, 1 << 30)
        with pytest.raises(TranscodeError):
            to_explicit(one.dataset, RLE, 1 << 30)
    else:
        native = _core.transcode(one.dataset, RLE, EXPLICIT, 1 << 30)
        assert native.endswith(pixels * frames)
        assert to_explicit(one.dataset, RLE, 1 << 30) == native
