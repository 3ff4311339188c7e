"""The attributes that identify and index an instance, decoded with pydicom and validated."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from typing import cast

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import tag_for_keyword

from storescp.pure.refusal import Refusal

UID = re.compile(rb"[0-9]+(\.[0-9]+)*")
_IDENTITY = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_INDEX = ("SpecificCharacterSet", *_IDENTITY, "StudyDate", "AccessionNumber", "PatientID", "NumberOfFrames")
_DEFAULT_ENCODING = "latin-1"
# PS3.5 6.1.2.5.3: after these the initial character sets are active again.
_TEXT_DELIMITERS = set(b"\\\t\n\f\r")
# A record holds no C0 control character: PostgreSQL stores no NUL, and text that ends there names another patient.
_WITHOUT_CONTROLS = dict.fromkeys(range(0x20), "\ufffd")


def tag_of(keyword: str) -> int:
    """The tag of a keyword that the configuration has checked."""
    return cast(int, tag_for_keyword(keyword))


def captured_tags(required_attributes: tuple[str, ...]) -> frozenset[int]:
    """The tags that may occur only once."""
    return frozenset(tag_of(keyword) for keyword in (*_INDEX, *required_attributes))


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
    anomalies: tuple[str, ...] = ()


def read_index(values: dict[int, bytes], required_attributes: tuple[str, ...]) -> InstanceIndex:
    """Validates the identifying and index attributes.

    Raises:
        Refusal: C000 for a UID that breaks the grammar, A900 for a required attribute.
    """
    uids = {keyword: _value(values, keyword) for keyword in _IDENTITY}
    for keyword, uid in uids.items():
        if uid and (len(uid) > 64 or not UID.fullmatch(uid)):
            raise Refusal(0xC000, f"{keyword} breaks the UID grammar")
    for keyword, uid in uids.items():
        if not uid:
            raise Refusal(0xA900, f"{keyword} is absent or empty")
    encodings = _encodings(_value(values, "SpecificCharacterSet"))
    patient_id = _text(_value(values, "PatientID"), encodings)
    accession = _text(_value(values, "AccessionNumber"), encodings)
    study_date = _date(_value(values, "StudyDate"))
    valid = {
        "PatientID": len(patient_id) <= 64,
        "StudyDate": study_date is not None,
        "AccessionNumber": 1 <= len(accession) <= 16,
    }
    for keyword in required_attributes:
        if not _value(values, keyword).strip(b" \0"):
            raise Refusal(0xA900, f"{keyword} is absent or empty")
        if not valid.get(keyword, True):
            raise Refusal(0xA900, f"{keyword} is invalid")
    return InstanceIndex(
        sop_class_uid=uids["SOPClassUID"].decode("ascii"),
        sop_instance_uid=uids["SOPInstanceUID"].decode("ascii"),
        study_instance_uid=uids["StudyInstanceUID"].decode("ascii"),
        series_instance_uid=uids["SeriesInstanceUID"].decode("ascii"),
        patient_id=patient_id[:64],
        study_date=study_date,
        accession_number=accession if 1 <= len(accession) <= 16 else None,
        number_of_frames=_frames(_value(values, "NumberOfFrames")),
    )


def _value(values: dict[int, bytes], keyword: str) -> bytes:
    return values.get(tag_of(keyword), b"").rstrip(b"\0 ")


def _encodings(value: bytes) -> list[str]:
    terms = [term.strip() for term in value.decode("latin-1").split("\\")]
    try:
        return list(convert_encodings(terms))
    except (LookupError, ValueError):
        return [_DEFAULT_ENCODING]


def _text(value: bytes, encodings: list[str]) -> str:
    try:
        text = decode_bytes(value, encodings, _TEXT_DELIMITERS)
    except (LookupError, ValueError):
        # Broken text never fails an instance.
        text = value.decode(encodings[0], "replace")
    return text.strip(" \0").translate(_WITHOUT_CONTROLS)


def _date(value: bytes) -> date | None:
    text = value.decode("latin-1").strip(" ")
    if re.fullmatch(r"\d{4}\.\d{2}\.\d{2}", text, re.ASCII):
        text = text.replace(".", "")
    if not re.fullmatch(r"\d{8}", text, re.ASCII):
        return None
    try:
        return date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        return None


def _frames(value: bytes) -> int:
    text = value.strip(b" ").lstrip(b"+")
    number = int(text) if text.isdigit() and len(text) < 20 else 0
    return number if 1 <= number <= 0x7FFFFFFF else 1
