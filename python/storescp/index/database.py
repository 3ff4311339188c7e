"""Batches of messages into the tables: one transaction for the data and the offsets that stand for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, StatementError

from storescp import masking
from storescp.errors import ConfigError, ConfigProblem, StorescpError, start_failure
from storescp.files import check_writable
from storescp.index import bulk, tables
from storescp.index.events import Timers
from storescp.index.incoming import IncomingRecord, read
from storescp.index.migrations import LaterVersionError, migrate_one_step
from storescp.index.refusals import refusal_by
from storescp.index.writing import remove, renew_patients, write

_BUSY_SECONDS = 30.0
_SQLITE_MAGIC = b"SQLite format 3\0"
# A number of ours: workers that start at the same time make the tables one after the other.
_SCHEMA_LOCK = 0x5C07E5C9
_VALUE_BYTES = 1 << 20
# Rows of one transaction.
_TOGETHER = 1000
# Of a transaction that only reads, which does not wait for one that writes.
_READS = {"storescp_reads": True}


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


@dataclass(frozen=True)
class FileProgress:
    """Where to go on in a file of JSON lines; `tail`, of the bytes before, tells whether they are still the same."""

    next_offset: int = 0
    tail: str = ""


@dataclass(frozen=True)
class _Part:
    """Messages in their order: of a topic (or root) and partition, and what that is called in `unreadable_message`."""

    topic: str
    partition: int
    place: str
    messages: Sequence[Message]


@dataclass
class Applied:
    """What a batch did.

    `gone`: offsets by partition that were never read and that the topic holds no more. `ahead`: partitions of which
    nothing was applied, because what comes before was not.
    """

    records: int = 0
    duplicates: int = 0
    unreadable: int = 0
    next_offsets: dict[int, int] = field(default_factory=dict)
    gone: dict[int, int] = field(default_factory=dict)
    ahead: list[int] = field(default_factory=list)


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
            self.timers = Timers(self._engine, _READS)
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
        """Makes the tables, or changes those of an earlier version.

        Each step is a transaction of its own, under a lock: what is killed goes on behind the last step that was done.

        Raises:
            ConfigError: the tables are of a later version.
        """
        while True:
            with self._engine.begin() as connection:
                if self._engine.dialect.name == "postgresql":
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SCHEMA_LOCK)))
                try:
                    if not migrate_one_step(connection):
                        return
                except LaterVersionError as found:
                    expected = f"tables of this version or an earlier one (they are of revision {found})"
                    raise ConfigError(ConfigProblem("index.database", self.url, expected, "configuration")) from None

    def close(self) -> None:
        """Closes the connections."""
        self._engine.dispose()

    def _reading(self) -> sa.Connection:
        return self._engine.connect().execution_options(**_READS)

    def read(self, query: sa.Select[Any]) -> list[dict[str, Any]]:
        """The rows of a query.

        Raises:
            StorescpError: there are no tables of this version, or the database is away.
        """
        try:
            with self._reading() as connection:
                return [dict(row) for row in connection.execute(query).mappings()]
        except StatementError as error:
            reason = str(error.orig).strip().partition("\n")[0]
            raise StorescpError(f"{self.url}: {reason} (does `storescpd index` run?)") from None

    def progress(self, topic: str, partitions: Iterable[int]) -> dict[int, Progress]:
        """Where to go on, at the beginning where nothing was read yet."""
        wanted = dict.fromkeys(partitions, Progress())
        table = tables.progress
        query = sa.select(table.c.partition, table.c.next_offset, table.c.topic_id).where(
            table.c.topic == topic, table.c.partition.in_(wanted)
        )
        with self._reading() as connection:
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

    def apply(
        self,
        topic: str,
        batches: Mapping[int, Sequence[Message]],
        topic_id: str | None = None,
        begins: Mapping[int, int] | None = None,
    ) -> Applied:
        """Takes messages by partition, in the order of their offsets, in one transaction.

        What a worker read that has lost its partition meanwhile is behind the progress, or of a topic that was made
        anew meanwhile, and nothing happens with it. `begins`: by partition, the offset from which these messages were
        read. Where the progress is before it (a recovered database, which is older), nothing happens with the
        partition, and it is in `Applied.ahead`. Without it what is between them counts as gone.

        Raises:
            MessageRefusedError: the database refuses a message of these for its values; nothing was done.
            sqlalchemy.exc.StatementError: the database is away, or not as it must be; nothing was done.
        """
        try:
            with self._engine.begin() as connection:
                return self._apply(connection, topic, batches, topic_id, begins or {})
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
        begins: Mapping[int, int],
    ) -> Applied:
        applied = Applied()
        parts: list[_Part] = []
        for partition in sorted(batches):
            known = self._lock_progress(connection, topic, partition)
            expected = known.next_offset
            if begins.get(partition, expected) > expected:
                applied.ahead.append(partition)
                continue
            is_another_topic = None not in (topic_id, known.topic_id) and topic_id != known.topic_id
            fresh = [one for one in batches[partition] if one.offset >= expected and not is_another_topic]
            applied.next_offsets[partition] = fresh[-1].offset + 1 if fresh else expected
            if not fresh:
                continue
            gone = applied.next_offsets[partition] - expected - len(fresh)
            if gone:
                applied.gone[partition] = gone
            parts.append(_Part(topic, partition, topic, fresh))
            self._set_progress(connection, topic, partition, applied.next_offsets[partition], topic_id)
        self._take(connection, parts, applied)
        return applied

    def file_progress(self, file: str) -> FileProgress:
        """Where to go on in a file of JSON lines, which is known by the SHA-256 of its first line."""
        table = tables.file_progress
        query = sa.select(table.c.next_offset, table.c.tail).where(table.c.file == file)
        with self._reading() as connection:
            row = connection.execute(query).one_or_none()
        return FileProgress() if row is None else FileProgress(*row)

    def begin_file_again(self, file: str) -> None:
        """Goes back to the beginning of a file whose lines are not those that were read."""
        with self._engine.begin() as connection:
            connection.execute(sa.delete(tables.file_progress).where(tables.file_progress.c.file == file))

    def apply_lines(
        self, root: str, file: str, lines: Sequence[Message], before: FileProgress, after: FileProgress
    ) -> Applied | None:
        """Takes lines of a file from one place to another, in one transaction.

        None, and nothing is done, where another process has gone on from `before` already.

        Raises:
            As `apply`.
        """
        try:
            with self._engine.begin() as connection:
                if not self._move(connection, file, before, after):
                    return None
                applied = Applied()
                self._take(connection, [_Part(root, 0, file, lines)], applied)
                return applied
        except (StatementError, ValueError, OverflowError) as error:
            refusal = refusal_by(error)
            if refusal is None:
                raise
            raise refusal from None

    def rebuild(self, records: Sequence[IncomingRecord], seen: str) -> None:
        """Takes records that were made from files, at a time (ISO 8601, UTC)."""
        with self._engine.begin() as connection:
            if records:
                write(connection, records, seen=seen)

    def remove_missing(self, node_id: str, roots: Sequence[Path], before: str) -> int:
        """Removes what a rebuild that began at a time has not seen; returns how many instances went.

        That is: places on this node, or on one that is not known, beneath these roots, where there is no file.
        """
        table, count = tables.location, 0
        columns = list(table.primary_key.columns)
        here = [sa.func.substr(table.c.file_path, 1, len(f"{root}/")) == f"{root}/" for root in roots]
        query = sa.select(*columns, table.c.file_path).order_by(*columns).limit(_TOGETHER)
        query = query.where(table.c.node_id.in_([node_id, ""]), table.c.updated < before, sa.or_(*here))
        after: tuple[str, ...] = ()
        while True:
            more = query.where(sa.tuple_(*columns) > sa.tuple_(*after)) if after else query
            with self._reading() as connection:
                rows = [tuple(row) for row in connection.execute(more)]
            if not rows:
                return count
            after = rows[-1][:-1]
            # A record that is applied meanwhile may be of a time before.
            missing = [row[:-1] for row in rows if not Path(row[-1]).exists()]
            if missing:
                with self._engine.begin() as connection:
                    count += remove(connection, missing)

    def renew_patients(self) -> None:
        """Makes the attributes of all patients anew: files are not read in the order in which they were received."""
        columns = (tables.patient.c.tenant_id, tables.patient.c.patient_id)
        after: tuple[str, ...] = ()
        while True:
            query = sa.select(*columns).order_by(*columns).limit(_TOGETHER)
            query = query.where(sa.tuple_(*columns) > sa.tuple_(*after)) if after else query
            with self._engine.begin() as connection:
                found = [tuple(row) for row in connection.execute(query)]
                renew_patients(connection, found)
            if not found:
                return
            after = found[-1]

    def _move(self, connection: sa.Connection, file: str, before: FileProgress, after: FileProgress) -> bool:
        """Locks the progress of a file and sets it; not where it is another one than was thought."""
        table = tables.file_progress
        values = {"next_offset": after.next_offset, "tail": after.tail}
        if before == FileProgress():
            made = self._insert(table).values(file=file, **values).on_conflict_do_nothing()
            return bool(connection.execute(made, execution_options={"preserve_rowcount": True}).rowcount)
        this = sa.and_(table.c.file == file, table.c.next_offset == before.next_offset)
        return bool(connection.execute(sa.update(table).where(this).values(**values)).rowcount)

    def _take(self, connection: sa.Connection, parts: Sequence[_Part], applied: Applied) -> None:
        """Applies what is new of messages, and notes that their studies have changed."""
        found: dict[str, IncomingRecord] = {}
        origins: dict[tuple[str, ...], tuple[str, int]] = {}
        unreadable: list[dict[str, object]] = []
        for part in parts:
            for message in part.messages:
                record = read(message.value) if message.refusal is None else message.refusal
                if isinstance(record, str):
                    place = {"topic": part.place, "partition": part.partition, "offset": message.offset}
                    unreadable.append(place | {"reason": record, "value": message.value[:_VALUE_BYTES]})
                elif (trace_id := record.trace_id) in found:
                    applied.duplicates += 1
                else:
                    found[trace_id] = record
                    origins[record.study] = (part.topic, part.partition)
        if unreadable:
            applied.unreadable += len(unreadable)
            connection.execute(self._insert(tables.unreadable).on_conflict_do_nothing(), unreadable)
        new = self._without_known(connection, found)
        applied.duplicates += len(found) - len(new)
        applied.records = len(new)
        if new:
            bulk.insert(connection, tables.record, ["trace_id"], [(record.trace_id,) for record in new])
            opened = write(connection, new)
            self.timers.touch(connection, {study: origins[study] for study in opened})

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

    @staticmethod
    def _without_known(connection: sa.Connection, found: Mapping[str, IncomingRecord]) -> list[IncomingRecord]:
        """In the order of arrival. A record has its partition, which is locked: nobody else can add it now."""
        known = bulk.select(connection, tables.record, (), [(trace_id,) for trace_id in found])
        return [record for trace_id, record in found.items() if (trace_id,) not in known]


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
        connection.exec_driver_sql(
            "BEGIN" if _READS.items() <= connection.get_execution_options().items() else "BEGIN IMMEDIATE"
        )
