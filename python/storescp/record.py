"""The record of a stored instance, as consumers read it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any, Literal, TypeVar
from uuid import UUID

TransferStatus = Literal["NoNeedTransfer", "Success", "Failed"]
T = TypeVar("T")
_NOT_IN_VERSION_1 = frozenset({"file_url", "dicom", "dicom_omitted"})
_STATUSES = ("NoNeedTransfer", "Success", "Failed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One stored instance. `record-2.schema.json` says more of each field.

    A record of version 1 has `received_at` from its `created_time`, and no attributes in `dicom`.
    """

    trace_id: UUID
    """Version 7; the same on every delivery."""
    worker_node_id: str
    """The node that stored it."""
    tenant_id: str
    patient_id: str
    """At most 64 characters; empty where there is none."""
    study_uid: str
    series_uid: str
    sop_uid: str
    file_path: str
    """Absolute, on the node that stored it."""
    file_size: int
    """Bytes."""
    transfer_syntax_uid: str
    """As received."""
    target_ts: str
    """As stored."""
    study_date: date | None
    transfer_status: TransferStatus
    number_of_frames: int
    created_time: datetime
    """When it was received, without a zone: UTC, or local time where that is configured."""
    series_uid_hash: str
    """SeaHash of the Series Instance UID, 20 digits."""
    study_uid_hash: str
    """SeaHash of the Study Instance UID, 20 digits."""
    accession_number: str | None
    source_ip: str
    source_ae: str
    """Calling AE title."""
    schema_version: int
    sop_class_uid: str
    called_ae: str
    anomalies: tuple[str, ...]
    """Codes of what was odd and stored as received all the same."""
    received_at: datetime
    """When it was received, UTC."""
    file_url: str | None = None
    """Where it is in object storage."""
    dicom: Mapping[str, Any] = field(default_factory=dict)
    """Attributes in the DICOM JSON model (PS3.18 Annex F); keys are tags, eight hexadecimal digits."""
    dicom_omitted: tuple[str, ...] = ()
    """Keywords of attributes that the data set has and `dicom` has not."""

    @classmethod
    def from_json(cls, text: str | bytes) -> Record:
        """Reads a record of this or an earlier version. Fields that are not known are ignored.

        Raises:
            ValueError: it is none. The text names the field and no value.
        """
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise ValueError("a record is a JSON object")  # noqa: TRY004 - of what was read, as every other reason
        # Version 1 has a zone in `created_time`.
        fields.setdefault("received_at", fields.get("created_time"))
        known = {one.name: one for one in dataclasses.fields(cls)}
        missing = [name for name in known if name not in fields and name not in _NOT_IN_VERSION_1]
        if missing:
            raise ValueError(f"{missing[0]} is missing")
        values: Any = {name: _read(name, value) for name, value in fields.items() if name in known}
        return cls(**values)

    def __post_init__(self) -> None:
        """Checks what a type cannot say."""
        if self.transfer_status not in _STATUSES:
            raise ValueError(f"transfer_status: one of {', '.join(_STATUSES)}")


def _read(name: str, value: object) -> object:
    """The value of a field as its type."""
    if value is None and name in _NULLABLE:
        return None
    try:
        return _READERS.get(name, _text)(value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: {type(error).__name__}") from None


def _of(kind: type[T], value: object) -> T:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError
    return value


def _text(value: object) -> str:
    return _of(str, value)


def _number(value: object) -> int:
    return _of(int, value)


def _texts(value: object) -> tuple[str, ...]:
    return tuple(map(_text, _of(list, value)))


def _moment(value: object) -> datetime:
    return datetime.fromisoformat(_text(value))


_NULLABLE = frozenset({"study_date", "accession_number", "file_url"})
# Every other field is a text.
_READERS: dict[str, Callable[[object], object]] = {
    "trace_id": lambda value: UUID(_text(value)),
    "file_size": _number,
    "study_date": lambda value: date.fromisoformat(_text(value)),
    "number_of_frames": _number,
    "created_time": lambda value: _moment(value).replace(tzinfo=None),
    "schema_version": _number,
    "anomalies": _texts,
    "received_at": lambda value: _moment(value).astimezone(UTC),
    "dicom": lambda value: _of(dict, value),
    "dicom_omitted": _texts,
}
