"""The outbox as operators see it, from another process while the service runs."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from storescp import _core
from storescp.errors import StorescpError

_BUSY_SECONDS = 5.0
# The terms repeat those of the partial indexes, which is how SQLite recognises them.
_WAITING = ("pending & 1 AND ready IS NOT NULL", "pending & 2 AND ready IS NOT NULL")


@dataclass(frozen=True)
class TopicStatus:
    """How publication to one topic goes."""

    topic: str
    pending: int
    oldest: datetime | None
    dead: int
    failures: int
    last_error: str | None
    failed: datetime | None
    succeeded: datetime | None


@dataclass(frozen=True)
class Entry:
    """A row that a topic has not got: `state` is "pending" or "dead"."""

    state: str
    topics: tuple[str, ...]
    trace_id: str
    path: str
    created: datetime
    attempts: int
    error: str | None


def open_outbox(root: Path, *, write: bool = False) -> sqlite3.Connection:
    """The database of a storage root.

    Raises:
        StorescpError: there is none, or it is of another version.
    """
    database = root / ".outbox" / "outbox.sqlite"
    if not database.exists():
        raise StorescpError(f"{database} does not exist: nothing was stored there yet")
    try:
        connection = sqlite3.connect(f"{database.absolute().as_uri()}?mode={'rw' if write else 'ro'}", uri=True)
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_SECONDS * 1000:.0f}")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.Error as error:
        raise StorescpError(f"{database}: {error}") from None
    known = len(_core.outbox_migrations())
    if version != known:
        connection.close()
        advice = "start the service once to bring it up to date" if version < known else "update storescp"
        raise StorescpError(f"{database} has schema {version}, this program knows {known}: {advice}")
    return connection


def count_instances(connection: sqlite3.Connection) -> int:
    """Rows, delivered or not."""
    (rows,) = connection.execute("SELECT count(*) FROM instance").fetchone()
    return int(rows)


def topic_status(connection: sqlite3.Connection, number: int, topic: str) -> TopicStatus:
    """How publication to topic `number` (0: `topic_main`, 1: `topic_dicom_receive`) goes."""
    (pending,) = connection.execute(f"SELECT count(*) FROM instance WHERE {_WAITING[number]}").fetchone()
    first = connection.execute(
        f"SELECT created FROM instance WHERE {_WAITING[number]} ORDER BY ready LIMIT 1"
    ).fetchone()
    (dead,) = connection.execute(
        "SELECT count(*) FROM instance WHERE dead <> 0 AND dead & ?", (1 << number,)
    ).fetchone()
    failures, last_error, failed, succeeded = connection.execute(
        "SELECT failures, last_error, failed, succeeded FROM topic WHERE number = ?", (number,)
    ).fetchone()
    return TopicStatus(
        topic, pending, _time(first[0] if first else None), dead, failures, last_error, _time(failed), _time(succeeded)
    )


def entries(connection: sqlite3.Connection, topics: Sequence[str], *, dead: bool, limit: int) -> Iterator[Entry]:
    """Rows set aside, or rows pending, oldest first."""
    column, order = ("dead", "id") if dead else ("pending", "coalesce(ready, id)")
    query = (
        f"SELECT {column}, trace_id, path, created, attempts, last_error FROM instance "
        f"WHERE {column} <> 0 ORDER BY {order} LIMIT ?"
    )
    for bits, trace_id, path, created, attempts, error in connection.execute(query, (limit,)):
        missing = tuple(topic for number, topic in enumerate(topics) if bits & 1 << number)
        yield Entry("dead" if dead else "pending", missing, trace_id, path, _epoch(created), attempts, error)


def request_retry(connection: sqlite3.Connection, trace_ids: Sequence[str] | None) -> int:
    """Asks the service to try rows again that were set aside: these, or all (None). How many there are.

    Raises:
        StorescpError: a trace id is not set aside.
    """
    with connection:
        if trace_ids is None:
            (rows,) = connection.execute("SELECT count(*) FROM instance WHERE dead <> 0").fetchone()
            if rows:
                connection.execute("INSERT INTO retry (trace_id) VALUES (NULL)")
            return int(rows)
        for trace_id in trace_ids:
            found = connection.execute(
                "SELECT EXISTS (SELECT 1 FROM instance WHERE dead <> 0 AND trace_id = ?)", (trace_id,)
            ).fetchone()
            if not found[0]:
                raise StorescpError(f"{trace_id} is not set aside (storescpd outbox list --dead)")
            connection.execute("INSERT INTO retry (trace_id) VALUES (?)", (trace_id,))
        return len(trace_ids)


def _epoch(microseconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)


def _time(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else _epoch(microseconds)
