"""Batches of messages into the tables: one transaction for the data and the offsets that stand for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import sqlalchemy as sa
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, StatementError

from storescp import masking
from storescp.errors import ConfigError, ConfigProblem, start_failure
from storescp.files import check_writable
from storescp.index import tables
from storescp.index.refusals import refusal_by

_BUSY_SECONDS = 30.0
_SQLITE_MAGIC = b"SQLite format 3\0"
# A number of ours: workers that start at the same time make the tables one after the other.
_SCHEMA_LOCK = 0x5C07E5C9
_VALUE_BYTES = 1 << 20
# Primary key to the other columns.
_Rows = dict[tuple[str, ...], dict[str, object]]


_WITHOUT_CONTROLS = dict.fromkeys(range(0x20), "\ufffd")


def _readable(text: str) -> str:
    """Each C0 control character becomes U+FFFD, as in the records that are published now."""
    return text.translate(_WITHOUT_CONTROLS)


def _exact(text: str) -> str:
    """PostgreSQL stores no NUL, and an identifier or a path with another character in its place is another one."""
    if "\0" in text:
        raise PydanticCustomError("nul_character", "a NUL character")
    return text


_Readable = Annotated[str, AfterValidator(_readable)]
_Exact = Annotated[str, AfterValidator(_exact)]


class IncomingRecord(BaseModel):
    """What the tables need of a record: of any version, or as wado-storescp writes it, which has no SOP Class UID.

    Fields that are not known are ignored.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    trace_id: _Exact = Field(min_length=36, max_length=36)
    tenant_id: _Exact = Field(min_length=1, max_length=64)
    patient_id: _Readable = Field(max_length=64)
    study_uid: _Exact = Field(min_length=1, max_length=64)
    series_uid: _Exact = Field(min_length=1, max_length=64)
    sop_uid: _Exact = Field(min_length=1, max_length=64)
    sop_class_uid: _Exact = Field("", max_length=64)
    file_path: _Exact = Field(min_length=1, max_length=512)
    file_size: int = Field(ge=0, lt=1 << 63)
    transfer_syntax_uid: _Exact = Field(min_length=1, max_length=64)
    target_ts: _Exact = Field(min_length=1, max_length=64)
    study_date: date | None
    transfer_status: Literal["NoNeedTransfer", "Success", "Failed", "NeedTransfer"]
    number_of_frames: int = Field(ge=1, lt=1 << 31)
    accession_number: _Readable | None = Field(max_length=16)
    created_time: _Exact = Field(max_length=32)
    received_at: _Exact | None = Field(None, max_length=32)
    source_ip: _Exact = Field(max_length=64)
    source_ae: _Readable = Field(max_length=16)

    @property
    def moment(self) -> str:
        """When it was received: UTC where the record says so."""
        return self.received_at or self.created_time


@dataclass(frozen=True)
class Message:
    """One message of the topic. `refusal`: why the database cannot take it, after that is known."""

    offset: int
    value: bytes
    refusal: str | None = None


@dataclass(frozen=True)
class Progress:
    """Where to go on in a partition, and the id of the topic that the offset belongs to, where it is known."""

    next_offset: int = 0
    topic_id: str | None = None


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
            problem = ConfigProblem("index.database", masking.database_url(url), expected, "configuration")
            raise ConfigError(problem) from None
        if self._engine.dialect.name == "sqlite":
            _check_sqlite(parsed.database)
            _prepare_sqlite(self._engine)

    def create(self) -> None:
        """Makes the tables and the column that are not there yet."""
        with self._engine.begin() as connection:
            if self._engine.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SCHEMA_LOCK)))
            tables.metadata.create_all(connection)
            column, table = tables.progress.c.topic_id, tables.progress.name
            if column.name not in {one["name"] for one in sa.inspect(connection).get_columns(table)}:
                kind = column.type.compile(self._engine.dialect)
                connection.execute(sa.text(f"ALTER TABLE {table} ADD COLUMN {column.name} {kind}"))

    def close(self) -> None:
        """Closes the connections."""
        self._engine.dispose()

    def progress(self, topic: str, partitions: Iterable[int]) -> dict[int, Progress]:
        """Where to go on, at the beginning where nothing was read yet."""
        wanted = dict.fromkeys(partitions, Progress())
        table = tables.progress
        query = sa.select(table.c.partition, table.c.next_offset, table.c.topic_id).where(
            table.c.topic == topic, table.c.partition.in_(wanted)
        )
        with self._engine.connect() as connection:
            for row in connection.execute(query):
                wanted[int(row.partition)] = Progress(int(row.next_offset), row.topic_id)
        return wanted

    def begin_again(self, topic: str, partition: int, topic_id: str | None) -> None:
        """Goes back to the beginning of a partition: the topic was made anew, with this id."""
        row = {"topic": topic, "partition": partition}
        values = {"next_offset": 0, "topic_id": topic_id}
        names = [column.name for column in tables.progress.primary_key.columns]
        statement = self._insert(tables.progress).values(**row, **values)
        with self._engine.begin() as connection:
            connection.execute(statement.on_conflict_do_update(index_elements=names, set_=values))

    def apply(self, topic: str, batches: Mapping[int, Sequence[Message]], topic_id: str | None = None) -> Applied:
        """Takes messages by partition, in the order of their offsets, in one transaction.

        What a worker read that has lost its partition meanwhile is behind the progress, or of a topic that was made
        anew meanwhile, and nothing happens with it.

        Raises:
            MessageRefusedError: the database refuses a message of these for its values; nothing was done.
            sqlalchemy.exc.StatementError: the database is away, or not as it must be; nothing was done.
        """
        try:
            with self._engine.begin() as connection:
                return self._apply(connection, topic, batches, topic_id)
        except (StatementError, ValueError, OverflowError) as error:
            refusal = refusal_by(error)
            if refusal is None:
                raise
            # Its text would show values.
            raise refusal from None

    def _apply(
        self,
        connection: sa.Connection,
        topic: str,
        batches: Mapping[int, Sequence[Message]],
        topic_id: str | None,
    ) -> Applied:
        applied = Applied()
        found: dict[str, IncomingRecord] = {}
        for partition in sorted(batches):
            known = self._lock_progress(connection, topic, partition)
            expected = known.next_offset
            is_another_topic = None not in (topic_id, known.topic_id) and topic_id != known.topic_id
            fresh = [one for one in batches[partition] if one.offset >= expected and not is_another_topic]
            applied.next_offsets[partition] = fresh[-1].offset + 1 if fresh else expected
            if not fresh:
                continue
            gone = applied.next_offsets[partition] - expected - len(fresh)
            if gone:
                applied.gone[partition] = gone
            for message in fresh:
                self._read(connection, topic, partition, message, found, applied)
            self._set_progress(connection, topic, partition, applied.next_offsets[partition], topic_id)
        new = self._without_known(connection, found)
        applied.duplicates += len(found) - len(new)
        applied.records = len(new)
        if new:
            self._write(connection, new)
        return applied

    def _lock_progress(self, connection: sa.Connection, topic: str, partition: int) -> Progress:
        row = {"topic": topic, "partition": partition}
        connection.execute(self._insert(tables.progress).values(**row, next_offset=0).on_conflict_do_nothing())
        query = sa.select(tables.progress.c.next_offset, tables.progress.c.topic_id).where(
            tables.progress.c.topic == topic, tables.progress.c.partition == partition
        )
        found = connection.execute(query.with_for_update()).one()
        return Progress(int(found.next_offset), found.topic_id)

    @staticmethod
    def _set_progress(connection: sa.Connection, topic: str, partition: int, offset: int, topic_id: str | None) -> None:
        values = {"next_offset": offset} | ({"topic_id": topic_id} if topic_id is not None else {})
        connection.execute(
            sa.update(tables.progress)
            .where(tables.progress.c.topic == topic, tables.progress.c.partition == partition)
            .values(**values)
        )

    def _read(
        self,
        connection: sa.Connection,
        topic: str,
        partition: int,
        message: Message,
        found: dict[str, IncomingRecord],
        applied: Applied,
    ) -> None:
        reason = message.refusal
        if reason is None:
            try:
                record = IncomingRecord.model_validate_json(message.value)
            except ValidationError as error:
                # Names of fields and kinds of errors; the values stay in the column beside it.
                reason = "; ".join(
                    f"{'.'.join(map(str, one['loc'])) or 'message'}: {one['type']}" for one in error.errors()
                )
        if reason is not None:
            applied.unreadable += 1
            row = {"topic": topic, "partition": partition, "offset": message.offset}
            values = row | {"reason": reason, "value": message.value[:_VALUE_BYTES]}
            connection.execute(self._insert(tables.unreadable).values(**values).on_conflict_do_nothing())
            return
        if record.trace_id in found:
            applied.duplicates += 1
        else:
            found[record.trace_id] = record

    @staticmethod
    def _without_known(connection: sa.Connection, found: Mapping[str, IncomingRecord]) -> list[IncomingRecord]:
        """In the order of arrival. A record has its partition, which is locked: nobody else can add it now."""
        query = sa.select(tables.record.c.trace_id).where(tables.record.c.trace_id.in_(list(found)))
        known = set(connection.execute(query).scalars())
        return [record for trace_id, record in found.items() if trace_id not in known]

    def _write(self, connection: sa.Connection, records: Sequence[IncomingRecord]) -> None:
        connection.execute(sa.insert(tables.record), [{"trace_id": record.trace_id} for record in records])
        previous = self._patients_of(connection, records)
        patients: _Rows = {(record.tenant_id, record.patient_id): {} for record in records}
        studies: _Rows = {(record.tenant_id, record.study_uid): _study(record) for record in records}
        serieses: _Rows = {
            (record.tenant_id, record.study_uid, record.series_uid): {"updated": record.moment} for record in records
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
    def _patients_of(connection: sa.Connection, records: Sequence[IncomingRecord]) -> set[tuple[str, ...]]:
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


def _study(record: IncomingRecord) -> dict[str, object]:
    return {
        "patient_id": record.patient_id,
        "study_date": record.study_date.isoformat() if record.study_date else None,
        "accession_number": record.accession_number,
        "updated": record.moment,
    }


def _instance_key(record: IncomingRecord) -> tuple[str, ...]:
    day = record.study_date.isoformat() if record.study_date else ""
    return record.tenant_id, record.study_uid, record.series_uid, record.sop_uid, day


def _instance(record: IncomingRecord) -> dict[str, object]:
    names = {column.name for column in tables.instance.columns} - {
        column.name for column in tables.instance.primary_key.columns
    }
    return record.model_dump(include=names) | {"created_time": record.moment}


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
