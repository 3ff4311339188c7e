"""The views: DICOM JSON of each level, as pydicom reads it."""

from __future__ import annotations

import json
from typing import Any

import pydicom

from storescp.index.database import Database
from support.databases import described, messages, rows


def datasets(url: str, view: str) -> list[pydicom.Dataset]:
    found = [one["dicom"] for one in rows(url, view)]
    return [pydicom.Dataset.from_json(one if isinstance(one, dict) else json.loads(one)) for one in found]


SAID: dict[str, Any] = {
    "00100010": ("PN", {"Alphabetic": 'O"Neill^J', "Ideographic": "山田^太郎", "Phonetic": "やまだ^たろう"}),
    "00100030": ("DA", "19700131"),
    "00080030": ("TM", "101530.25"),
    "00081030": ("LO", 'Thorax "à la" 100 % \u2028'),
    "00080060": ("CS", "CT"),
    "00200011": ("IS", 7),
    "00200013": ("IS", 12),
    "00280010": ("US", 512),
    "00400244": ("DA", "20240229"),
    "00400275": ("SQ", {"00400009": {"vr": "SH", "Value": ["STEP"]}, "00401001": {"vr": "SH"}}),
}


def test_views_return_dicom_json_of_each_level(database: Database, url: str) -> None:
    other = described(2, 2, said={"00080060": ("CS", "SR"), "0008103E": ("LO", "A", "B")}, series_uid="1.1.2")
    database.apply("main", {0: messages(described(1, 3, said=SAID, accession_number="A1"), other)})
    [study] = datasets(url, "qido_study")
    assert str(study.PatientName) == 'O"Neill^J=山田^太郎=やまだ^たろう'
    assert (study.PatientName.family_name, study.PatientName.phonetic) == ('O"Neill', "やまだ^たろう")
    assert (study.PatientBirthDate, study.StudyDate, study.StudyTime) == ("19700131", "20240229", "101530.25")
    assert study.StudyDescription == SAID["00081030"][1]
    assert list(study.ModalitiesInStudy) == ["CT", "SR"]
    assert (study.NumberOfStudyRelatedSeries, study.NumberOfStudyRelatedInstances) == (2, 2)
    assert (study.AccessionNumber, study.PatientID, study.StudyInstanceUID) == ("A1", "p1", "1.1")
    assert study.InstanceAvailability == "ONLINE"
    assert study["StudyID"].is_empty
    assert study["ReferringPhysicianName"].is_empty
    first, second = sorted(datasets(url, "qido_series"), key=lambda one: str(one.SeriesInstanceUID))
    assert (first.Modality, first.SeriesNumber, first.NumberOfSeriesRelatedInstances) == ("CT", 7, 1)
    assert first.PerformedProcedureStepStartDate == "20240229"
    assert first.RequestAttributesSequence[0].ScheduledProcedureStepID == "STEP"
    assert list(second.SeriesDescription) == ["A", "B"]
    assert (second.Modality, second.SeriesNumber, list(second.RequestAttributesSequence)) == ("SR", None, [])
    [instance] = [one for one in datasets(url, "qido_instance") if one.SOPInstanceUID == "1.1.1.1"]
    assert (instance.InstanceNumber, instance.Rows, instance.Columns, instance.NumberOfFrames) == (12, 512, None, 1)


def test_nothing_said_is_an_attribute_without_a_value(database: Database, url: str) -> None:
    database.apply("main", {0: messages(described(1, patient_id="", study_date=None, sop_class_uid=""))})
    [study] = datasets(url, "qido_study")
    assert all(study[name].is_empty for name in ("PatientID", "PatientName", "StudyDate", "ModalitiesInStudy"))
    [instance] = datasets(url, "qido_instance")
    assert instance["SOPClassUID"].is_empty
