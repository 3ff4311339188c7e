"""The typed record, its settings, and the recipes that load it."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, date, datetime
from importlib import resources
from pathlib import Path
from typing import Any
from uuid import UUID

import jsonschema
import pytest
import sqlglot
from pydantic import ValidationError

from storescp import Record, _core
from storescp.engine import Engine, engine_config
from storescp.pure.engine import PureEngine
from storescp.settings import RECORD_ATTRIBUTES, Settings
from support.engines import ENGINES, publish, take
from support.instances import ct_slice, explicit

_CHECKOUT = Path(__file__).parents[2]
_DATABASES = _CHECKOUT / "docs" / "how-to" / "databases.md"


def schema() -> dict[str, Any]:
    text = resources.files("storescp").joinpath("record-2.schema.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def record_of(
    name: str, root: Path, changes: dict[int, bytes | None] | None = None, **sections: dict[str, object]
) -> dict[str, Any]:
    """The record of a CT slice, by an engine with these settings; it follows the schema."""
    settings = Settings.model_validate(
        {"storage": {"root": root, "durability": "none", "min_free_bytes": 0}} | sections
    )
    engine: Engine = PureEngine(settings) if name == "python" else _core.Engine(engine_config(settings))
    try:
        assert take(engine, ct_slice(1, rows=4, changes=changes)) == (0, "")
        [payload] = publish(engine)
    finally:
        engine.close()
    found: dict[str, Any] = json.loads(payload)
    jsonschema.validate(found, schema(), format_checker=jsonschema.FormatChecker())
    return found


@pytest.mark.parametrize("name", ENGINES)
def test_a_record_says_what_the_settings_ask_for(name: str, tmp_path: Path) -> None:
    usual = record_of(name, tmp_path / "usual")
    assert usual["dicom"]["00100010"] == {"vr": "PN", "Value": [{"Alphabetic": "Doe^Jane"}]}
    assert usual["dicom"]["00280010"] == {"vr": "US", "Value": [4]}
    assert (usual["dicom_omitted"], usual["file_url"], usual["schema_version"]) == ([], None, 2)
    assert usual["created_time"] + "Z" == usual["received_at"]
    queue = {"record_attributes": ["Modality"], "missing_study_date": "1900-01-01"}
    other = record_of(
        name, tmp_path / "other", {0x00080020: None}, message_queue=queue, service={"node_id": "DICOM_STORE_SCP"}
    )
    assert other["dicom"] == {"00080060": {"vr": "CS", "Value": ["CT"]}}
    assert (other["study_date"], other["worker_node_id"]) == ("1900-01-01", "DICOM_STORE_SCP")
    assert "/00000000/" in other["file_path"]
    none = record_of(name, tmp_path / "none", message_queue={"record_attributes": []})
    assert none["dicom"] == {}


@pytest.mark.parametrize("name", ENGINES)
def test_local_time_has_no_zone_either(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    time.tzset()
    try:
        found = record_of(name, tmp_path, message_queue={"created_time": "local"})
    finally:
        monkeypatch.undo()
        time.tzset()
    local, moment = datetime.fromisoformat(found["created_time"]), datetime.fromisoformat(found["received_at"])
    assert local.tzinfo is None
    assert (local.replace(tzinfo=UTC) - moment).total_seconds() == (5 * 60 + 45) * 60


@pytest.mark.parametrize("name", ENGINES)
def test_what_is_too_long_is_named(name: str, tmp_path: Path) -> None:
    long = {0x00081030: explicit(0x00081030, b"UT", b"x" * 10_242)}
    found = record_of(name, tmp_path, long)
    assert found["dicom_omitted"] == ["StudyDescription"]
    assert "00081030" not in found["dicom"]


@pytest.mark.parametrize("name", ENGINES)
def test_a_description_that_no_character_set_explains_is_an_anomaly(name: str, tmp_path: Path) -> None:
    found = record_of(name, tmp_path, {0x00081030: explicit(0x00081030, b"LO", b"a\x01\xff ")})
    assert found["anomalies"] == ["character_set"]
    assert found["dicom"]["00081030"] == {"vr": "LO", "Value": ["a\ufffd\ufffd"]}


@pytest.mark.parametrize("keyword", ["PixelData", "SmallestImagePixelValue", "SpecificCharacterSet", "NoSuchKeyword"])
def test_attributes_that_no_record_can_have_are_refused(keyword: str) -> None:
    with pytest.raises(ValidationError, match="a keyword of"):
        Settings.model_validate({"message_queue": {"record_attributes": [keyword]}})


def test_the_default_attributes_may_be_written_down() -> None:
    settings = Settings.model_validate({"message_queue": {"record_attributes": list(RECORD_ATTRIBUTES)}})
    assert settings.message_queue.record_attributes == Settings().message_queue.record_attributes


@pytest.mark.parametrize("node_id", ["", "x" * 65, "a\nb"])
def test_a_node_has_a_name_of_one_line(node_id: str) -> None:
    with pytest.raises(ValidationError, match="a name of 1 to 64"):
        Settings.model_validate({"service": {"node_id": node_id}})


def test_a_record_is_read_as_types(tmp_path: Path) -> None:
    found = record_of("rust", tmp_path)
    record = Record.from_json(json.dumps(found | {"of_a_later_version": 1}))
    assert record.trace_id == UUID(found["trace_id"])
    assert record.study_date == date(2026, 1, 2)
    assert record.received_at.tzinfo is UTC
    assert record.created_time == record.received_at.replace(tzinfo=None)
    assert record.dicom["00080060"]["Value"] == ["CT"]
    assert {one for one in found if not hasattr(record, one)} == set()


def test_a_record_of_version_1_is_read_too(tmp_path: Path) -> None:
    found = record_of("rust", tmp_path)
    for name in ("received_at", "file_url", "dicom", "dicom_omitted"):
        del found[name]
    first = found | {"schema_version": 1, "created_time": "2026-11-30T14:07:26.230303Z"}
    record = Record.from_json(json.dumps(first))
    assert record.received_at == datetime(2026, 11, 30, 14, 7, 26, 230303, tzinfo=UTC)
    assert record.created_time == datetime(2026, 11, 30, 14, 7, 26, 230303)  # noqa: DTZ001 - it has none
    assert (record.dicom, record.dicom_omitted, record.file_url) == ({}, (), None)


def test_what_is_no_record_is_refused_without_its_values(tmp_path: Path) -> None:
    found = record_of("rust", tmp_path)
    for text, reason in [
        ("[]", "a record is a JSON object"),
        ("{", "Expecting"),
        (json.dumps({"trace_id": "x"}), "worker_node_id is missing"),
        (json.dumps(found | {"study_date": "Doe^Jane"}), "study_date: ValueError"),
        (json.dumps(found | {"received_at": 5}), "received_at: TypeError"),
        (json.dumps(found | {"created_time": None}), "created_time: TypeError"),
        (json.dumps(found | {"trace_id": 5}), "trace_id: TypeError"),
        (json.dumps(found | {"patient_id": 5}), "patient_id: TypeError"),
        (json.dumps(found | {"file_size": "5"}), "file_size: TypeError"),
        (json.dumps(found | {"anomalies": "delimiter"}), "anomalies: TypeError"),
        (json.dumps(found | {"dicom": []}), "dicom: TypeError"),
        (json.dumps(found | {"transfer_status": "Doe^Jane"}), "transfer_status: one of"),
    ]:
        with pytest.raises(ValueError, match=reason) as refused:
            Record.from_json(text)
        assert "Doe" not in str(refused.value)


def statements(title: str) -> str:
    text = _DATABASES.read_text(encoding="utf-8")
    [found] = re.findall(rf'```sql title="{re.escape(title)}"\n(.*?)```', text, re.DOTALL)
    return str(found)


@pytest.mark.parametrize(
    ("title", "dialect"),
    [("clickhouse.sql", "clickhouse"), ("clickhouse-worklist.sql", "clickhouse"), ("doris.sql", "doris")],
)
def test_the_statements_for_databases_are_of_their_grammar(title: str, dialect: str) -> None:
    parsed = sqlglot.parse(statements(title), dialect=dialect, error_level=sqlglot.ErrorLevel.RAISE)
    # What is not understood becomes a command.
    assert parsed
    assert all(one is not None and one.key in ("create", "select") for one in parsed)


@pytest.mark.parametrize(("title", "dialect"), [("clickhouse.sql", "clickhouse"), ("doris.sql", "doris")])
def test_the_tables_have_the_fields_of_a_record(title: str, dialect: str) -> None:
    parsed = sqlglot.parse(statements(title), dialect=dialect)
    columns = [column.name for one in parsed if one is not None for column in one.find_all(sqlglot.exp.ColumnDef)]
    assert sorted(columns) == sorted(schema()["properties"])
