"""DICOM audit messages as XML (PS3.15 A.5.1 to A.5.3)."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

# DCM (PS3.16 Annex D).
APPLICATION_ACTIVITY = ("110100", "Application Activity")
INSTANCES_TRANSFERRED = ("110104", "DICOM Instances Transferred")
SECURITY_ALERT = ("110113", "Security Alert")
USER_AUTHENTICATION = ("110114", "User Authentication")
APPLICATION_START = ("110120", "Application Start")
APPLICATION_STOP = ("110121", "Application Stop")
LOGIN = ("110122", "Login")
NODE_AUTHENTICATION = ("110126", "Node Authentication")
SECURITY_CONFIGURATION = ("110129", "Security Configuration")
RESTRICTED_FUNCTION = ("110132", "Use of Restricted Function")
_APPLICATION = ("110150", "Application")
_DESTINATION = ("110152", "Destination Role ID")
_SOURCE = ("110153", "Source Role ID")
_STUDY = ("110180", "Study Instance UID")
SUCCESS, MINOR_FAILURE = "0", "4"
# XML 1.0 has no way to write these.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Event:
    """What happened (EventIdentification)."""

    event: tuple[str, str]
    kind: tuple[str, str] | None
    action: str  # C create, E execute
    outcome: str = SUCCESS
    description: str | None = None


@dataclass(frozen=True)
class Participant:
    """A node (ActiveParticipant): its AE titles, its address, whether it began."""

    user: str
    ae_titles: tuple[str, ...]
    address: str | None
    is_requestor: bool
    role: tuple[str, str]


@dataclass(frozen=True)
class Study:
    """A study that was stored, or a part of it (ParticipantObjectIdentification)."""

    tenant: str
    uid: str
    patient_id: str
    accession_number: str | None
    classes: Sequence[tuple[str, int]]


def ourselves(ae_title: str, process: int, *, is_requestor: bool, receives: bool) -> Participant:
    """This service."""
    return Participant(str(process), (ae_title,), None, is_requestor, _DESTINATION if receives else _APPLICATION)


def sender(address: str, ae_title: str | None, subject: str | None) -> Participant:
    """The node on the other side: known by its certificate, else by the AE title that it claims."""
    return Participant(subject or ae_title or address, (ae_title,) if ae_title else (), address, True, _SOURCE)


def message(
    at: datetime,
    event: Event,
    participants: Sequence[Participant],
    source_id: str,
    studies: Sequence[Study] = (),
) -> str:
    """An AuditMessage on one line."""
    root = ET.Element("AuditMessage")
    attributes = {"EventActionCode": event.action, "EventDateTime": at.isoformat(timespec="milliseconds")}
    identification = ET.SubElement(root, "EventIdentification", attributes | {"EventOutcomeIndicator": event.outcome})
    _code(identification, "EventID", event.event)
    if event.kind is not None:
        _code(identification, "EventTypeCode", event.kind)
    if event.description:
        ET.SubElement(identification, "EventOutcomeDescription").text = _clean(event.description)
    for participant in participants:
        _participant(root, participant)
    # Type 4: an application server process (PS3.15 A.5.2).
    source = ET.SubElement(root, "AuditSourceIdentification", AuditSourceID=_clean(source_id))
    ET.SubElement(source, "AuditSourceTypeCode", {"csd-code": "4"})
    for study in studies:
        _study(root, study)
    return ET.tostring(root, encoding="unicode", short_empty_elements=True)


def _participant(root: ET.Element, participant: Participant) -> None:
    attributes = {"UserID": _clean(participant.user)}
    if participant.ae_titles:
        attributes["AlternativeUserID"] = _clean("AETITLES=" + ";".join(participant.ae_titles))
    attributes["UserIsRequestor"] = "true" if participant.is_requestor else "false"
    if participant.address is not None:
        # Type 2: an IP address.
        attributes |= {"NetworkAccessPointID": participant.address, "NetworkAccessPointTypeCode": "2"}
    _code(ET.SubElement(root, "ActiveParticipant", attributes), "RoleIDCode", participant.role)


def _study(root: ET.Element, study: Study) -> None:
    # Type 2 is a system object, role 3 a report: what PS3.15 A.5.3.7 says of studies.
    item = ET.SubElement(
        root,
        "ParticipantObjectIdentification",
        ParticipantObjectID=study.uid,
        ParticipantObjectTypeCode="2",
        ParticipantObjectTypeCodeRole="3",
        ParticipantObjectDataLifeCycle="1",
    )
    _code(item, "ParticipantObjectIDTypeCode", _STUDY)
    ET.SubElement(item, "ParticipantObjectName").text = _clean(study.tenant)
    description = ET.SubElement(item, "ParticipantObjectDescription")
    if study.accession_number:
        ET.SubElement(description, "Accession", Number=_clean(study.accession_number))
    for uid, count in study.classes:
        ET.SubElement(description, "SOPClass", UID=uid, NumberOfInstances=str(count))
    patient = ET.SubElement(
        root,
        "ParticipantObjectIdentification",
        ParticipantObjectID=_clean(study.patient_id) or "(none)",
        ParticipantObjectTypeCode="1",
        ParticipantObjectTypeCodeRole="1",
    )
    attributes = {"csd-code": "2", "codeSystemName": "RFC-3881", "originalText": "Patient Number"}
    ET.SubElement(patient, "ParticipantObjectIDTypeCode", attributes)


def _code(parent: ET.Element, name: str, code: tuple[str, str]) -> None:
    value, meaning = code
    ET.SubElement(parent, name, {"csd-code": value, "codeSystemName": "DCM", "originalText": meaning})


def _clean(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
