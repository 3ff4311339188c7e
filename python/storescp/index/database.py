"""Batches of messages into the tables: one transaction for the data and the offsets that stand for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from storescp.errors import ConfigError, ConfigProblem, start_failure
from storescp.files import check_writable
from storescp.index import tables

_BUSY_SECONDS = 30.0
_SQLITE_MAGIC = b"SQLite format 3\0"
# A number of ours: workers that start at the same time make the tables one after the other.
_SCHEMA_LOCK = 0x5C07E5C9
_VALUE_BYTES = 1 << 20
# Primary key to the other columns.
_Rows = dict[tuple[str, ...], dict[str, object]]


class Record(BaseModel):
    """What the tables need of a record; see `record.schema.json`. Fields that are new in later versions are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    trace_id: str = Field(min_length=36, max_length=36)
    tenant_id: str = Field(min_length=1, max_length=64)
    patient_id: str = Field(max_length=64)
    study_uid: str = Field(min_length=1, max_length=64)
    series_uid: str = Field(min_length=1, max_length=64)
    sop_uid: str = Field(min_length=1, max_length=64)
    sop_class_uid: str = Field(min_length=1, max_length=64)
    file_path: str = Field(min_length=1, max_length=512)
    file_size: int = Field(ge=0)
    transfer_syntax_uid: str = Field(min_length=1, max_length=64)
    target_ts: str = Field(min_length=1, max_length=64)
    study_date: date | None
    transfer_status: Literal["NoNeedTransfer", "Success", "Failed"]
    number_of_frames: int = Field(ge=1)
    accession_number: str | None = Field(max_length=16)
    created_time: str = Field(max_length=32)
    source_ip: str = Field(max_length=64)
    source_ae: str = Field(max_length=16)


@dataclass(frozen=True)
class Message:
    """One message of the topic."""

    offset: int
    value: bytes


@dataclass
class Applied:
    """What a batch did. `gone`: offsets by partition that were never read and that the topic holds no more."""

    records: int = 0
    duplicates: int = 0
    unreadable: int = 0
    next_offsets: dict[int, int] = field(default_factory=dict)
    gone: dict[int, int] = field(default_factory=dict)


class Database:
    """The tables at a URL; safe with several workers, each with partitions of its own.

    Raises (when made):
        ConfigError: the URL is of no use, its driver is not installed, or its file is no database.
        TemporaryFailure: its file cannot be used now.
    """

    def __init__(self, url: str) -> None:
        dialects: Mapping[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
        expected = "a SQLAlchemy URL: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"
        try:
            parsed = sa.make_url(url)
            if parsed.drivername == "postgresql":
                parsed = parsed.set(drivername="postgresql+psycopg")
            self.url = parsed.render_as_string(hide_password=True)
            self._insert = dialects[parsed.get_backend_name()]
            self._engine = sa.create_engine(parsed, pool_pre_ping=True)
        # A port that is no number, or an address without its bracket, is a ValueError.
        except (ArgumentError, NoSuchModuleError, KeyError, ValueError, ModuleNotFoundError) as error:
            if isinstance(error, ModuleNotFoundError):
                expected = f"a driver that is installed ({error}): pip install 'storescp[postgresql]'"
            raise ConfigError(ConfigProblem("index.database", "********", expected, "configuration")) from None
        if self._engine.dialect.name == "sqlite":
            _check_sqlite(parsed.database)
            _prepare_sqlite(self._engine)

    def create(self) -> None:
        """Makes the tables that are not there yet."""
        with self._engine.begin() as connection:
            if self._engine.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SCHEMA_LOCK)))
            tables.metadata.create_all(connection)

    def close(self) -> None:
        """Closes the connections."""
        self._engine.dispose()

    def next_offsets(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        """Where to go on, 0 where nothing was read yet."""
        wanted = dict.fromkeys(partitions, 0)
        query = sa.select(tables.progress.c.partition, tables.progress.c.next_offset).where(
            tables.progress.c.topic == topic, tables.progress.c.partition.in_(wanted)
        )
        with self._engine.connect() as connection:
            wanted |= {int(row.partition): int(row.next_offset) for row in connection.execute(query)}
        return wanted

    def begin_again(self, topic: str, partition: int) -> None:
        """Forgets the progress in a partition: the topic was made anew."""
        with self._engine.begin() as connection:
            connection.execute(
                sa.delete(tables.progress).where(
                    tables.progress.c.topic == topic, tables.progress.c.partition == partition
                )
            )

    def apply(self, topic: str, batches: Mapping[int, Sequence[Message]]) -> Applied:
        """Takes messages by partition, in the order of their offsets, in one transaction.

        What a worker read that has lost its partition meanwhile is behind the progress, and nothing happens with it.
        """
        applied = Applied()
        found: dict[str, Record] = {}
        with self._engine.begin() as connection:
            for partition in sorted(batches):
                expected = self._lock_progress(connection, topic, partition)
                fresh = [message for message in batches[partition] if message.offset >= expected]
                applied.next_offsets[partition] = fresh[-1].offset + 1 if fresh else expected
                gone = applied.next_offsets[partition] - expected - len(fresh)
                if gone:
                    applied.gone[partition] = gone
                for message in fresh:
                    self._read(connection, topic, partition, message, found, applied)
                self._set_progress(connection, topic, partition, applied.next_offsets[partition])
            new = self._without_known(connection, found)
            applied.duplicates += len(found) - len(new)
            applied.records = len(new)
            if new:
                self._write(connection, new)
        return applied

    def _lock_progress(self, connection: sa.Connection, topic: str, partition: int) -> int:
        row = {"topic": topic, "partition": partition}
        connection.execute(self._insert(tables.progress).values(**row, next_offset=0).on_conflict_do_nothing())
        query = sa.select(tables.progress.c.next_offset).where(
            tables.progress.c.topic == topic, tables.progress.c.partition == partition
        )
        return int(connection.execute(query.with_for_update()).scalar_one())

    @staticmethod
    def _set_progress(connection: sa.Connection, topic: str, partition: int, offset: int) -> None:
        connection.execute(
            sa.update(tables.progress)
            .where(tables.progress.c.topic == topic, tables.progress.c.partition == partition)
            .values(next_offset=offset)
        )

    def _read(
        self,
        connection: sa.Connection,
        topic: str,
        partition: int,
        message: Message,
        found: dict[str, Record],
        applied: Applied,
    ) -> None:
        try:
            record = Record.model_validate_json(message.value)
        except ValidationError as error:
            applied.unreadable += 1
            # Names of fields and kinds of errors; the values stay in the column beside it.
            reason = "; ".join(
                f"{'.'.join(map(str, one['loc'])) or 'message'}: {one['type']}" for one in error.errors()
            )
            row = {"topic": topic, "partition": partition, "offset": message.offset}
            values = row | {"reason": reason, "value": message.value[:_VALUE_BYTES]}
            connection.execute(self._insert(tables.unreadable).values(**values).on_conflict_do_nothing())
            return
        if record.trace_id in found:
            applied.duplicates += 1
        else:
            found[record.trace_id] = record

    @staticmethod
    def _without_known(connection: sa.Connection, found: Mapping[str, Record]) -> list[Record]:
        """In the order of arrival. A record has its partition, which is locked: nobody else can add it now."""
        query = sa.select(tables.record.c.trace_id).where(tables.record.c.trace_id.in_(list(found)))
        known = set(connection.execute(query).scalars())
        return [record for trace_id, record in found.items() if trace_id not in known]

    def _write(self, connection: sa.Connection, records: Sequence[Record]) -> None:
        connection.execute(sa.insert(tables.record), [{"trace_id": record.trace_id} for record in records])
        previous = self._patients_of(connection, records)
        patients: _Rows = {(record.tenant_id, record.patient_id): {} for record in records}
        studies: _Rows = {(record.tenant_id, record.study_uid): _study(record) for record in records}
        serieses: _Rows = {
            (record.tenant_id, record.study_uid, record.series_uid): {"updated": record.created_time}
            for record in records
        }
        instances: _Rows = {_instance_key(record): _instance(record) for record in records}
        for table, rows in (
            (tables.patient, patients),
            (tables.study, studies),
            (tables.series, serieses),
            (tables.instance, instances),
        ):
            self._upsert(connection, table, rows)
        left = previous - set(patients)
        for tenant_id, patient_id in sorted(left):
            self._remove_patient_without_studies(connection, tenant_id, patient_id)

    @staticmethod
    def _patients_of(connection: sa.Connection, records: Sequence[Record]) -> set[tuple[str, ...]]:
        """The patients that the studies have now."""
        table = tables.study
        found: set[tuple[str, ...]] = set()
        for tenant_id in {record.tenant_id for record in records}:
            uids = {record.study_uid for record in records if record.tenant_id == tenant_id}
            query = sa.select(table.c.patient_id).where(table.c.tenant_id == tenant_id, table.c.study_uid.in_(uids))
            found |= {(tenant_id, patient_id) for patient_id in connection.execute(query).scalars()}
        return found

    def _upsert(self, connection: sa.Connection, table: sa.Table, rows: _Rows) -> None:
        """In the order of the keys, so that two workers do not wait for each other."""
        names = [column.name for column in table.primary_key.columns]
        values = [dict(zip(names, key, strict=True)) | dict(row) for key, row in sorted(rows.items())]
        statement = self._insert(table)
        changing = [column.name for column in table.columns if column.name not in names]
        if changing:
            statement = statement.on_conflict_do_update(
                index_elements=names, set_={name: statement.excluded[name] for name in changing}
            )
        else:
            # Not "do nothing": the row must not go before this transaction has said that it needs it.
            statement = statement.on_conflict_do_update(
                index_elements=names, set_={names[0]: statement.excluded[names[0]]}
            )
        connection.execute(statement, values)

    @staticmethod
    def _remove_patient_without_studies(connection: sa.Connection, tenant_id: str, patient_id: str) -> None:
        study, patient = tables.study, tables.patient
        studies = sa.select(study.c.study_uid).where(study.c.tenant_id == tenant_id, study.c.patient_id == patient_id)
        connection.execute(
            sa.delete(patient).where(
                patient.c.tenant_id == tenant_id, patient.c.patient_id == patient_id, ~sa.exists(studies)
            )
        )


def _study(record: Record) -> dict[str, object]:
    return {
        "patient_id": record.patient_id,
        "study_date": record.study_date.isoformat() if record.study_date else None,
        "accession_number": record.accession_number,
        "updated": record.created_time,
    }


def _instance_key(record: Record) -> tuple[str, ...]:
    day = record.study_date.isoformat() if record.study_date else ""
    return record.tenant_id, record.study_uid, record.series_uid, record.sop_uid, day


def _instance(record: Record) -> dict[str, object]:
    names = {column.name for column in tables.instance.columns} - {
        column.name for column in tables.instance.primary_key.columns
    }
    return record.model_dump(include=names)


def _check_sqlite(name: str | None) -> None:
    """To try again does not help where a file is no database, or its folder is not there."""
    if not name or name == ":memory:" or name.startswith("file:"):
        return
    path, expected = Path(name), "a file that can be written, of a SQLite database where it is there"
    try:
        check_writable(path)
        if path.exists():
            with path.open("rb") as file:
                # sqlite.org/fileformat.html 1.3; an empty file becomes a database.
                if file.read(len(_SQLITE_MAGIC)) not in {b"", _SQLITE_MAGIC}:
                    raise ConfigError(ConfigProblem("index.database", name, expected, "configuration"))
    except OSError as error:
        raise start_failure("index.database", path, expected, error) from None


def _prepare_sqlite(engine: sa.Engine) -> None:
    @sa.event.listens_for(engine, "connect")
    def connect(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the library would begin by itself, and too late
        for pragma in ("journal_mode = WAL", "foreign_keys = ON", f"busy_timeout = {_BUSY_SECONDS * 1000:.0f}"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
