"""`dicom` of a record is what pydicom makes of the same attributes (PS3.18 Annex F)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from storescp import Record, _core
from storescp.engine import Engine, engine_config
from storescp.pure.engine import PureEngine
from storescp.settings import RECORD_ATTRIBUTES, Settings
from support.engines import ENGINES, publish
from support.instances import from_file

pytestmark = [pytest.mark.curated, pytest.mark.filterwarnings("ignore::UserWarning")]

# More than is usual: text of each kind, several values, numbers, and sequences.
MANY = (
    *RECORD_ATTRIBUTES,
    *("ImageType", "InstanceCreationDate", "StationName", "InstitutionName", "OperatorsName", "ManufacturerModelName"),
    *("PatientAge", "PatientWeight", "PatientComments", "OtherPatientIDs", "EthnicGroup", "AdditionalPatientHistory"),
    *("SliceThickness", "PixelSpacing", "ImagePositionPatient", "WindowCenter", "RescaleSlope", "ImageComments"),
    *("FrameOfReferenceUID", "FrameIncrementPointer", "SamplesPerPixel", "SoftwareVersions", "TextValue"),
    *("ReferencedStudySequence", "ProcedureCodeSequence", "AnatomicRegionSequence", "ConceptNameCodeSequence"),
    *("AcquisitionDateTime", "ContentDescription", "DeviceSerialNumber", "ProtocolName"),
)

_BINARY = frozenset(["OB", "OD", "OF", "OL", "OV", "OW", "UN"])
# Records are in UTF-8.
_CHARACTER_SET = 0x00080005
_CONTROLS = dict.fromkeys(range(0x20), "\ufffd")
_CONTROLS_OF_LONG_TEXTS = {code: new for code, new in _CONTROLS.items() if chr(code) not in "\t\n\f\r"}

# Files that pydicom does not read to the end.
UNREADABLE = frozenset({"fodbad_GH177_D_CLUNIE_CT1_IVRLE_BigEndian_undefined_length.dcm"})
# What differs from pydicom, and why. (File, keyword) to the reason.
DIFFERENCES = {
    ("fod_GH1301.dcm", "PatientSex"): "a Chinese character, which pydicom does not decode in CS",
    (
        "pyd_693_J2KI.dcm",
        "ImageType",
    ): "a space at the end of one of several CS values, which is not significant (PS3.5 6.2)",
}


def without_controls(vr: str, value: Any) -> Any:
    """Each control character of a text becomes U+FFFD: pydicom leaves them."""
    if isinstance(value, str):
        return value.translate(_CONTROLS_OF_LONG_TEXTS if vr in ("LT", "ST", "UT") else _CONTROLS)
    if isinstance(value, dict):
        # PS3.18 F.2.2: a component group that is empty is not there.
        return {group: without_controls(vr, text) for group, text in value.items() if text}
    return value


def is_described(inner: DataElement) -> bool:
    """Of the elements of an item: text and numbers of the Standard, but no length of a group."""
    is_standard = not inner.tag.is_private and inner.tag.element != 0 and inner.tag != _CHARACTER_SET
    return is_standard and inner.VR != "SQ" and inner.VR not in _BINARY


def expected_of(dataset: Dataset, tag: int) -> dict[str, Any]:
    """pydicom's JSON of an attribute; of sequences one level, the attributes of the Standard with text or numbers."""
    element = dataset[tag]
    if element.VR == "SQ":
        items = [
            {f"{inner.tag:08X}": expected_of(item, inner.tag) for inner in item if is_described(inner)}
            for item in element.value
        ]
        # PS3.18 F.2.5: what is empty has no value.
        return {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}
    found = element.to_json_dict(None, 0)
    if "Value" in found:
        # PS3.18 F.2.5: an empty one of several is null.
        values = [without_controls(str(element.VR), value) for value in found["Value"]]
        found["Value"] = [None if value in ("", {}) else value for value in values]
    return found


def expected_attributes(path: Path, keywords: tuple[str, ...]) -> Iterator[tuple[str, int, dict[str, Any] | str]]:
    """Of each attribute that the file has; the kind of error where pydicom cannot read it."""
    dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)
    for keyword in keywords:
        tag = tag_for_keyword(keyword)
        assert tag is not None
        if tag in dataset:
            try:
                yield keyword, tag, expected_of(dataset, tag)
            except Exception as error:  # noqa: BLE001 - whatever pydicom raises
                yield keyword, tag, type(error).__name__


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("keywords", [RECORD_ATTRIBUTES, MANY], ids=["default", "many"])
def test_attributes_are_those_that_pydicom_reads(
    curated: Path, tmp_path: Path, name: str, keywords: tuple[str, ...]
) -> None:
    settings = Settings.model_validate(
        {
            "storage": {"root": tmp_path, "durability": "none"},
            "message_queue": {"record_attributes": keywords},
        }
    )
    engine: Engine = PureEngine(settings) if name == "python" else _core.Engine(engine_config(settings))
    files, values = 0, 0
    differ: dict[tuple[str, str], tuple[Any, Any]] = {}
    for path in sorted(curated.glob("*.dcm")):
        one = from_file(path)
        if one is None:
            continue
        engine.ingest(one.dataset, one.sop_class, one.sop_instance, one.transfer_syntax, "CT1", "A", "127.0.0.1", "t")
        for text in publish(engine):
            record = Record.from_json(text)
            files += 1
            found = dict(record.dicom)
            if path.name in UNREADABLE:
                continue
            for keyword, tag, expected in expected_attributes(path, keywords):
                values += 1
                ours = found.pop(f"{tag:08X}", None)
                if ours != expected:
                    differ[path.name, keyword] = (ours, expected)
            assert not found, path.name
    engine.close()
    print(f"\n{files} records, {values} attributes")
    assert files > 100
    assert values > files * 10
    assert differ.keys() == {one for one in DIFFERENCES if one[1] in keywords}, differ
