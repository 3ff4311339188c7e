"""The attributes that identify and index an instance, decoded and validated."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import cast

from pydicom.datadict import tag_for_keyword

from storescp.pure.charset import decode
from storescp.pure.described import describe
from storescp.pure.refusal import Refusal
from storescp.pure.structure import Walked, Wanted

UID = re.compile(rb"[0-9]+(\.[0-9]+)*")
_IDENTITY = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_INDEX = ("SpecificCharacterSet", *_IDENTITY, "StudyDate", "AccessionNumber", "PatientID", "NumberOfFrames")
_DATE = re.compile(
    rb"(\d{4})([./-]?)(\d{2})\2(\d{2})"
    # A time behind it, as in a DT value or in ISO 8601.
    rb"(?:T?[ \t\n\f\r]*(?:[01]\d|2[0-4])(?::?[0-5]\d(?::?(?:[0-5]\d|60))?)?(?:[.,]\d+)?"
    rb"[ \t\n\f\r]*(?:Z|[+-]\d\d:?\d\d)?)?"
)
_FRAMES = re.compile(rb"\+?(\d+)(?:\.0*)?")
_PADDING = b"\0\t\n\v\f\r "
# A record holds no C0 control character: PostgreSQL stores no NUL, and text that ends there names another patient.
_WITHOUT_CONTROLS = dict.fromkeys(range(0x20), "\ufffd")


def tag_of(keyword: str) -> int:
    """The tag of a keyword that the configuration has checked."""
    return cast(int, tag_for_keyword(keyword))


def wanted(required: Iterable[str] = (), described: Iterable[str] = (), private: int | None = None) -> Wanted:
    """What identifies an instance, and what describes it."""
    identifying = {tag_of(keyword) for keyword in (*_INDEX, *required)}
    if private is not None:
        identifying.add(private)
    return Wanted(frozenset(identifying), frozenset(map(tag_of, described)))


@dataclass(frozen=True)
class InstanceIndex:
    """What is known of an instance once its data set was read."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    patient_id: str
    study_date: date | None
    accession_number: str | None
    number_of_frames: int
    described: str = "{}"  # JSON: what a record has of it
    omitted: tuple[str, ...] = ()  # keywords of what it has not
    anomalies: tuple[str, ...] = ()


def read_index(found: Walked, required: Iterable[str] = (), described: Iterable[str] = ()) -> InstanceIndex:
    """Validates the identifying and index attributes, and reads those that records have.

    Raises:
        Refusal: C000 for a UID that breaks the grammar, A900 for a required attribute.
    """
    values = found.values
    uids = {keyword: _value(values, keyword) for keyword in _IDENTITY}
    for keyword, uid in uids.items():
        if uid and (len(uid) > 64 or not UID.fullmatch(uid)):
            raise Refusal(0xC000, f"{keyword} breaks the UID grammar")
    for keyword, uid in uids.items():
        if not uid:
            raise Refusal(0xA900, f"{keyword} is absent or empty")
    character_set = _value(values, "SpecificCharacterSet")
    patient_id, is_patient_id_doubtful = _text(_value(values, "PatientID"), character_set)
    accession, is_accession_doubtful = _text(_value(values, "AccessionNumber"), character_set)
    study_date = _date(_value(values, "StudyDate"))
    valid = {
        "PatientID": len(patient_id) <= 64,
        "StudyDate": study_date is not None,
        "AccessionNumber": 1 <= len(accession) <= 16,
    }
    for keyword in required:
        if not _value(values, keyword).strip(b" \0"):
            raise Refusal(0xA900, f"{keyword} is absent or empty")
        if not valid.get(keyword, True):
            raise Refusal(0xA900, f"{keyword} is invalid")
    text, omitted, is_description_doubtful = describe(described, found.elements, character_set)
    is_doubtful = is_patient_id_doubtful or is_accession_doubtful or is_description_doubtful
    return InstanceIndex(
        sop_class_uid=uids["SOPClassUID"].decode("ascii"),
        sop_instance_uid=uids["SOPInstanceUID"].decode("ascii"),
        study_instance_uid=uids["StudyInstanceUID"].decode("ascii"),
        series_instance_uid=uids["SeriesInstanceUID"].decode("ascii"),
        patient_id=patient_id[:64],
        study_date=study_date,
        accession_number=accession if 1 <= len(accession) <= 16 else None,
        number_of_frames=number_of_frames(_value(values, "NumberOfFrames")) or 1,
        described=text,
        omitted=tuple(omitted),
        anomalies=("character_set",) if is_doubtful else (),
    )


def _value(values: dict[int, bytes], keyword: str) -> bytes:
    return values.get(tag_of(keyword), b"").rstrip(b"\0 ")


def _text(value: bytes, character_set: bytes) -> tuple[str, bool]:
    text, is_doubtful = decode(value, character_set)
    return text.strip(" \0").translate(_WITHOUT_CONTROLS), is_doubtful


def _date(value: bytes) -> date | None:
    found = _DATE.fullmatch(value.strip(_PADDING))
    if not found:
        return None
    try:
        return date(int(found[1]), int(found[3]), int(found[4]))
    except ValueError:
        return None


def number_of_frames(value: bytes) -> int | None:
    """Number of Frames as pydicom or DCMTK reads it; None where neither can or they differ.

    An empty value and zero are one frame, and the first of several values counts.
    """
    first = value.split(b"\\")[0].strip(_PADDING)
    if not first:
        return 1
    found = _FRAMES.fullmatch(first)
    # A longer number than this has leading zeros or is too large; int() refuses very long ones.
    digits = found[1].lstrip(b"0") if found else b""
    if not found or len(digits) > 10:
        return None
    frames = int(digits or b"0")
    return max(frames, 1) if frames <= 0x7FFFFFFF else None
