"""New records into the tables, within a transaction.

An instance is written as it is. What it says of its patient, study and series goes to `description`, which counts the
instances that say the same; from these rows, all of them of a study, the rows of the study and its series are made.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from storescp.index import bulk, tables
from storescp.index.bulk import Key
from storescp.index.incoming import INSTANCE, IncomingRecord, folded

# What a file does not tell.
_OF_RECORDS = ("trace_id", "transfer_syntax_uid", "transfer_status", "source_ae", "source_ip", "created_time")
_OLD = ("digest", "file_size", "file_path", "node_id", *_OF_RECORDS)
_OF_DESCRIPTION = ("instance_count", "bytes", "last_received", *tables.SAID)
_BEFORE = ("patient_id", "first_received", "last_received")
_OF_PATIENT = (*tables.OF_PATIENT, "patient_name_search", "updated")
# A file system's clock may be behind by some milliseconds; a record is of the moment at which its file was written.
_CLOCK_OF_FILES_SECONDS, _ONE_STORE_SECONDS = 0.1, 60.0
_ONE_MILLISECOND = 0.001
# A record that comes so long after its instance belongs to a study whose event is long past.
_OLD_SECONDS = 86400.0
_MOST = (1 << 63) - 1
_AT = {name: number for number, name in enumerate(tables.SAID)}


@dataclass
class _Description:
    """A row of `description`."""

    instance_count: int
    bytes: int
    last_received: str
    said: tuple[Any, ...]

    @classmethod
    def of(cls, values: Sequence[Any]) -> _Description:
        """Of columns `_OF_DESCRIPTION`."""
        count, size, moment, *said = values
        return cls(count, size, moment, tuple(said))

    @property
    def patient_id(self) -> str:
        return str(self.said[0])

    def values(self) -> tuple[Any, ...]:
        return self.instance_count, _sum([self.bytes]), self.last_received, *self.said


@dataclass
class _Descriptions:
    """The rows of some studies, by primary key: as they are, and as they become."""

    rows: dict[Key, _Description]
    changed: set[Key] = field(default_factory=set)

    @classmethod
    def of(cls, connection: sa.Connection, studies: Iterable[Key]) -> _Descriptions:
        found = bulk.select(connection, tables.description, _OF_DESCRIPTION, studies)
        return cls({key: _Description.of(values) for key, values in found.items()})

    def add(self, record: IncomingRecord) -> None:
        key = (*record.key[:3], record.digest)
        row = self.rows.setdefault(key, _Description(0, 0, record.moment, record.said))
        row.instance_count += 1
        row.bytes += record.size
        row.last_received = max(row.last_received, record.moment)
        self.changed.add(key)

    def take_away(self, key: Key, size: int) -> None:
        row = self.rows.get(key)
        if row is None:
            return  # written by a worker of the version before, which describes nothing
        row.instance_count -= 1
        row.bytes -= size
        self.changed.add(key)

    def gone(self) -> set[Key]:
        return {key for key in self.changed if self.rows[key].instance_count <= 0}

    def of_studies(self) -> dict[Key, list[tuple[Key, _Description]]]:
        """Those with instances, by study, the newest one first."""
        found = defaultdict(list)
        for key, row in self.rows.items():
            if row.instance_count > 0:
                found[key[:2]].append((key, row))
        for one in found.values():
            one.sort(key=lambda item: (item[1].last_received, item[0]), reverse=True)
        return found


def write(connection: sa.Connection, records: Sequence[IncomingRecord], *, seen: str | None = None) -> set[Key]:
    """Takes records in the order in which they count, none of which is in the tables yet; returns their studies.

    With `seen` they are made from files, at that time: of an instance whose file is known, what only a record tells
    stays. A record of a file that is known from such a one brings nothing new, so its study is not returned.
    """
    newest = {record.key: record for record in records}
    _upsert_patients(connection, newest.values())
    before = _lock_studies(connection, newest.values())
    old = {
        key: dict(zip(_OLD, values, strict=True))
        for key, values in bulk.select(connection, tables.instance, _OLD, newest).items()
    }
    if seen is not None:
        # What was replaced since it was read has its own record.
        late = {key: record for key, record in newest.items() if not _is_current(record)}
        newest = {key: _with_what_is_known(record, old.get(key)) for key, record in newest.items() if key not in late}
        records = list(newest.values())
        _take_back(connection, before.keys() - {record.study for record in records}, before, late.values())
    locations = {
        (*record.key, record.node_id): (record.path, record.file_url, seen or record.moment) for record in records
    }
    newest = {key: record for key, record in newest.items() if not _is_of_before(old.get(key), record)}
    descriptions = _Descriptions.of(connection, {record.study for record in records})
    for key, record in newest.items():
        if (replaced := old.get(key)) is not None:
            descriptions.take_away((*key[:3], replaced["digest"]), replaced["file_size"])
        descriptions.add(record)
    _write_summaries(connection, descriptions, before, _times(records))
    instances = {key: (*record.row, record.node_id, record.digest) for key, record in newest.items()}
    bulk.upsert(connection, tables.instance, (*INSTANCE, "node_id", "digest"), instances)
    # Places of before version 2 of the tables have no node.
    bulk.delete(connection, tables.location, [(*key, "") for key in old])
    bulk.upsert(connection, tables.location, ("file_path", "file_url", "updated"), locations)
    return {record.study for record in records if not _is_rebuilt(old.get(record.key), record)}


def _take_back(
    connection: sa.Connection,
    studies: Iterable[Key],
    before: Mapping[Key, Sequence[Any]],
    records: Iterable[IncomingRecord],
) -> None:
    """Removes the rows of studies and patients that have been made for records which are not taken after all."""
    bulk.delete(connection, tables.study, [study for study in studies if before[study][1] is None])
    renew_patients(connection, sorted({record.patient for record in records}))


def _is_of_before(row: Mapping[str, Any] | None, record: IncomingRecord) -> bool:
    """Whether another node has received an instance later than a record says, which is then late.

    Of one node the records are in their order, whatever its clock does.
    """
    if row is None or row["node_id"] in ("", record.node_id):
        return False
    return bool(record.moment.removesuffix("Z") < row["created_time"].removesuffix("Z"))


def _is_rebuilt(row: Mapping[str, Any] | None, record: IncomingRecord) -> bool:
    """Whether a row was made from the file that a record is about, or from one that came later.

    Of a record that is not old it is not said: its study may not have had its event.
    """
    if row is None or row["trace_id"] or _seconds(record.moment) > time.time() - _OLD_SECONDS:
        return False
    is_same = (row["file_path"], row["file_size"]) == (record.path, record.size)
    margin = _ONE_STORE_SECONDS if is_same else _CLOCK_OF_FILES_SECONDS
    return _seconds(record.moment) <= _seconds(row["created_time"]) + margin


def _seconds(moment: str) -> float:
    """Since 1970; 0 where it is no time."""
    try:
        return datetime.fromisoformat(moment.removesuffix("Z")[:26]).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0


def _is_current(record: IncomingRecord) -> bool:
    """Whether a file is still the one that a record was made from."""
    try:
        facts = Path(record.path).stat()
    except OSError:
        return False
    return facts.st_size == record.size and abs(facts.st_mtime - _seconds(record.moment)) < _ONE_MILLISECOND


def _with_what_is_known(record: IncomingRecord, row: Mapping[str, Any] | None) -> IncomingRecord:
    if row is None or (row["file_path"], row["file_size"]) != (record.path, record.size):
        return record.with_columns(trace_id="")
    return record.with_columns(**{name: row[name] for name in _OF_RECORDS})


def _times(records: Iterable[IncomingRecord]) -> dict[Key, tuple[str, str]]:
    """When the first and the last record of each study were received."""
    found: dict[Key, tuple[str, str]] = {}
    for record in records:
        moment = record.moment
        first, last = found.get(record.study, (moment, moment))
        found[record.study] = min(first, moment), max(last, moment)
    return found


def remove(connection: sa.Connection, locations: Collection[Key]) -> int:
    """Removes places of files, and instances that have none left; returns how many those are."""
    before = bulk.select(connection, tables.study, _BEFORE, {key[:2] for key in locations}, lock=True)
    bulk.delete(connection, tables.location, locations)
    instances = {key[:-1] for key in locations}
    left = {key[:-1] for key in bulk.select(connection, tables.location, (), instances)}
    gone = bulk.select(connection, tables.instance, ("digest", "file_size"), instances - left)
    descriptions = _Descriptions.of(connection, before)
    for key, (mark, size) in gone.items():
        descriptions.take_away((*key[:3], mark), size)
    bulk.delete(connection, tables.instance, gone)
    times = {study: (first or "", last or "") for study, (_, first, last) in before.items()}
    _write_summaries(connection, descriptions, before, times)
    rest = {key[:3] for key, row in descriptions.rows.items() if row.instance_count > 0}
    bulk.delete(connection, tables.series, {key[:3] for key in gone} - rest)
    bulk.delete(connection, tables.study, {key[:2] for key in gone} - {key[:2] for key in rest})
    renew_patients(connection, sorted({(study[0], patient) for study, (patient, *_) in before.items()}))
    return len(gone)


def _upsert_patients(connection: sa.Connection, records: Iterable[IncomingRecord]) -> None:
    """Of each attribute the newest value counts. Instances without a Patient ID are not one patient: it says nothing.

    A row is locked from here on, so that it does not go while a study of this transaction needs it.
    """
    found: dict[Key, dict[str, Any]] = {}
    for record in sorted(records, key=lambda record: record.moment):
        row = found.setdefault(record.patient, dict.fromkeys(tables.OF_PATIENT))
        row["updated"] = record.moment
        if record.patient[1]:
            row |= {name: value for name in tables.OF_PATIENT if (value := record.said[_AT[name]]) is not None}
    rows = {
        key: (*(row[name] for name in tables.OF_PATIENT), folded(row["patient_name"]), row["updated"])
        for key, row in found.items()
    }
    is_newer = "excluded.updated >= patient.updated"
    changing = {
        name: f"CASE WHEN {is_newer} THEN coalesce(excluded.{name}, patient.{name}) "
        f"ELSE coalesce(patient.{name}, excluded.{name}) END"
        for name in _OF_PATIENT[:-1]
    }
    changing["updated"] = f"CASE WHEN {is_newer} THEN excluded.updated ELSE patient.updated END"
    bulk.upsert(connection, tables.patient, _OF_PATIENT, rows, changing=changing)


def _lock_studies(connection: sa.Connection, records: Iterable[IncomingRecord]) -> dict[Key, tuple[Any, ...]]:
    """The rows of the studies, made where they are not there, and locked: their descriptions are counted from here."""
    rows = {record.study: (record.patient[1], record.moment) for record in records}
    # Not "do nothing": the row has to be locked.
    same = {"study_uid": "excluded.study_uid"}
    bulk.upsert(connection, tables.study, ("patient_id", "updated"), rows, changing=same)
    return bulk.select(connection, tables.study, _BEFORE, rows)


def _write_summaries(
    connection: sa.Connection,
    descriptions: _Descriptions,
    before: Mapping[Key, Sequence[Any]],
    times: Mapping[Key, tuple[str, str]],
) -> None:
    """The rows of studies, series and descriptions, and patients that lose something."""
    studies: dict[Key, tuple[Any, ...]] = {}
    serieses: dict[Key, tuple[Any, ...]] = {}
    for study, rows in descriptions.of_studies().items():
        by_series: dict[Key, list[_Description]] = defaultdict(list)
        for key, row in rows:
            by_series[key[:3]].append(row)
        serieses |= {key: _series(of_series) for key, of_series in by_series.items()}
        studies[study] = _study([row for _, row in rows], len(by_series), before[study], times[study])
    # A study may go back to a patient whose row is gone.
    winners: dict[Key, tuple[str]] = {(study[0], row[0]): ("",) for study, row in studies.items()}
    bulk.upsert(connection, tables.patient, ("updated",), winners, changing={"patient_id": "excluded.patient_id"})
    bulk.upsert(connection, tables.study, _STUDY, studies)
    bulk.upsert(connection, tables.series, _SERIES, serieses)
    gone = descriptions.gone()
    kept = {key: descriptions.rows[key].values() for key in descriptions.changed - gone}
    bulk.upsert(connection, tables.description, _OF_DESCRIPTION, kept)
    bulk.delete(connection, tables.description, gone)
    lost = {(key[0], descriptions.rows[key].patient_id) for key in gone}
    had = {study: before[study][0] for study in studies}
    lost |= {(study[0], had[study]) for study, row in studies.items() if row[0] != had[study]}
    renew_patients(connection, sorted(lost))


_STUDY = (
    "patient_id",
    "updated",
    "modalities",
    "series_count",
    "instance_count",
    "bytes",
    "first_received",
    "last_received",
    *tables.OF_STUDY,
)
_SERIES = ("updated", "instance_count", "bytes", *tables.OF_SERIES)


def _sum(sizes: Iterable[int]) -> int:
    """At most what a column holds: one absurd size must not refuse the records that come after it."""
    return max(0, min(sum(sizes), _MOST))


def _study(
    rows: Sequence[_Description], series_count: int, before: Sequence[Any], times: tuple[str, str]
) -> tuple[Any, ...]:
    """Columns `_STUDY`, of the descriptions of a study, the newest first."""
    (_, first_before, last_before), (first, last) = before, times
    first, last = min(first_before or first, first), max(last_before or last, last)
    modalities = sorted({row.said[_AT["modality"]] for row in rows} - {None})
    counts = sum(row.instance_count for row in rows), _sum(row.bytes for row in rows)
    newest = _newest(rows, tables.OF_STUDY)
    return rows[0].patient_id, last, "\\".join(modalities), series_count, *counts, first, last, *newest


def _series(rows: Sequence[_Description]) -> tuple[Any, ...]:
    counts = sum(row.instance_count for row in rows), _sum(row.bytes for row in rows)
    return rows[0].last_received, *counts, *_newest(rows, tables.OF_SERIES)


def _newest(rows: Sequence[_Description], names: Iterable[str]) -> list[Any]:
    """The first value of each attribute that there is: the rows begin with the newest."""
    places = [_AT[name] for name in names]
    return [next((row.said[place] for row in rows if row.said[place] is not None), None) for place in places]


def renew_patients(connection: sa.Connection, patients: Sequence[tuple[str, str]]) -> None:
    """Makes the attributes of patients anew from the descriptions; those that no instance has any more go."""
    table, said = tables.patient, tables.description
    # Whoever describes a patient has locked its row: what is read behind this is complete.
    bulk.select(connection, table, (), patients, lock=True)
    for tenant_id, patient_id in patients:
        this = sa.and_(table.c.tenant_id == tenant_id, table.c.patient_id == patient_id)
        uses = [
            sa.exists().where(other.c.tenant_id == tenant_id, other.c.patient_id == patient_id)
            for other in (tables.study, said)
        ]
        connection.execute(sa.delete(table).where(this, ~uses[0], ~uses[1]))
        if not patient_id:
            continue
        values = {}
        for name in tables.OF_PATIENT:
            query = sa.select(said.c[name]).where(said.c.tenant_id == tenant_id, said.c.patient_id == patient_id)
            newest = query.where(said.c[name].is_not(None)).order_by(said.c.last_received.desc()).limit(1)
            values[name] = connection.execute(newest).scalar_one_or_none()
        values["patient_name_search"] = folded(values["patient_name"])
        connection.execute(sa.update(table).where(this).values(values))
