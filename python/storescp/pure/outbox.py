"""The durable queue of records with `sqlite3`, on the schema of the Rust core."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

from storescp import _core
from storescp.errors import CoreError

_ALL_PENDING = 0b11
_PAYLOAD_BYTES = "length(CAST(payload AS BLOB))"
# The terms repeat those of the partial indexes, which is how SQLite recognises them.
_WAITING = ("pending & 1 AND ready IS NOT NULL", "pending & 2 AND ready IS NOT NULL")


@dataclass(frozen=True)
class NewRow:
    """A record on its way into the queue."""

    trace_id: str
    key: str
    payload: str
    path: str
    temporary: str
    size: int
    digest: bytes
    created: int | None = None  # microseconds since 1970; None: now


@dataclass(frozen=True)
class Row:
    """A record to be published."""

    id: int
    ready: int
    trace_id: str
    key: str
    payload: bytes


@dataclass(frozen=True)
class UndecidedRow:
    """A row that was inserted and never made publishable: its file decides."""

    id: int
    trace_id: str
    path: str
    size: int
    digest: bytes
    payload: str


@dataclass(frozen=True)
class Recorded:
    """The newest committed row of a path; the payload is empty where it was taken."""

    size: int
    digest: bytes
    payload: str
    created: int  # microseconds since 1970


@dataclass(frozen=True)
class Wish:
    """What an operator wants: a damaged data set stored, or a stored instance transcoded."""

    id: int
    root: str
    name: str  # of the entry of the quarantine, or the path of the stored file
    tenant: str | None  # for an entry whose note names none
    by_rule: bool
    is_stored: bool


def path_hash(path: str) -> int:
    """XXH3-64 of a relative path as SQLite's signed integer."""
    value = xxhash.xxh3_64_intdigest(path.encode())
    return value - (1 << 64) if value >> 63 else value


def _now() -> int:
    return time.time_ns() // 1000


class Outbox:
    """One connection behind one lock; every change is its own transaction."""

    def __init__(self, path: Path, *, synchronous: bool) -> None:
        self._lock = threading.Condition()
        self._is_over = False
        self._is_open = True
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=5)
        self._connection.execute("PRAGMA journal_mode = WAL")
        # What a journal holds may have been promised at a higher durability than is configured now.
        self._connection.execute("PRAGMA synchronous = FULL")
        self._migrate()
        self._adopt_journal(path.parent)
        # Nobody waits for these answers any more.
        self._connection.execute("DELETE FROM quarantine_retry WHERE outcome IS NOT NULL")
        self._pending, self._dead, self._bytes = self._connection.execute(
            "SELECT coalesce(sum(pending <> 0), 0), coalesce(sum(pending = 0), 0), "
            f"coalesce(sum({_PAYLOAD_BYTES}), 0) FROM instance WHERE pending <> 0 OR dead <> 0"
        ).fetchone()
        self._last_ready = self._next_ready() - 1
        if not synchronous:
            self._connection.execute("PRAGMA synchronous = OFF")

    @property
    def is_open(self) -> bool:
        """Whether it can take rows."""
        return self._is_open

    def insert(self, row: NewRow) -> int:
        """A durable row that is not publishable yet."""
        with self._lock:
            row_id = self._insert(row)
            self._pending += 1
            self._bytes += len(row.payload.encode())
            return row_id

    def publishable(self, row_id: int) -> None:
        """Lets the publisher see a row."""
        with self._lock:
            self._last_ready = self._next_ready()
            self._connection.execute("UPDATE instance SET ready = ? WHERE id = ?", (self._last_ready, row_id))
            self._lock.notify_all()

    def remove(self, row_id: int) -> None:
        """Takes back a row whose file never got its name."""
        with self._lock:
            self._remove(row_id)

    def committed(self, path: str) -> list[tuple[int, bytes]]:
        """Size and digest of the file as the committed rows of a path describe it, the newest row first."""
        with self._lock:
            return self._connection.execute(
                "SELECT size, digest FROM instance WHERE path_hash = ? AND path = ? AND ready IS NOT NULL "
                "ORDER BY id DESC",
                (path_hash(path), path),
            ).fetchall()

    def newest(self, path: str) -> Recorded | None:
        """The newest committed row of a path."""
        with self._lock:
            row = self._connection.execute(
                "SELECT size, digest, payload, created FROM instance "
                "WHERE path_hash = ? AND path = ? AND ready IS NOT NULL ORDER BY id DESC LIMIT 1",
                (path_hash(path), path),
            ).fetchone()
        return None if row is None else Recorded(*row)

    def undecided(self, path: str | None = None) -> dict[str, list[UndecidedRow]]:
        """Rows of an interrupted predecessor by path, the newest of a path last: of one path, or all."""
        query = "SELECT id, trace_id, path, size, digest, payload FROM instance WHERE ready IS NULL"
        with self._lock:
            if path is None:
                rows = self._connection.execute(f"{query} ORDER BY id").fetchall()
            else:
                of_path = f"{query} AND path_hash = ? AND path = ? ORDER BY id"
                rows = self._connection.execute(of_path, (path_hash(path), path)).fetchall()
        found: dict[str, list[UndecidedRow]] = {}
        for row in itertools.starmap(UndecidedRow, rows):
            found.setdefault(row.path, []).append(row)
        return found

    def decide(self, kept: Iterable[int], dropped: Iterable[int]) -> None:
        """Makes undecided rows publishable, in the order of their ids, and removes others."""
        with self._transaction() as connection:
            for row_id in sorted(kept):
                self._last_ready = self._next_ready()
                connection.execute("UPDATE instance SET ready = ? WHERE id = ?", (self._last_ready, row_id))
            for row_id in dropped:
                self._remove(row_id)
            self._lock.notify_all()

    def wait(self, after: int, timeout: float) -> int:
        """Waits for a publishable row later than `after`; the order of the last one there was."""
        with self._lock:
            self._lock.wait_for(lambda: self._last_ready > after or self._is_over, timeout)
            return self._last_ready

    def stop_waiting(self) -> None:
        """Ends every `wait`, now and from now on."""
        with self._lock:
            self._is_over = True
            self._lock.notify_all()

    def claim(self, topic: int, after: int, most: int) -> list[Row]:
        """The first publishable rows later than `after`."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT id, ready, trace_id, key, CAST(payload AS BLOB) FROM instance "
                f"WHERE {_WAITING[topic]} AND ready > ? ORDER BY ready LIMIT ?",
                (after, most),
            ).fetchall()
        return [Row(*row) for row in rows]

    def done(self, topic: int, ids: list[int]) -> None:
        """Records that a topic acknowledged rows."""
        with self._transaction() as connection:
            now = _now()
            for row_id in ids:
                left = connection.execute(
                    "UPDATE instance SET pending = pending & ~:bit, "
                    "delivered = CASE WHEN pending & ~:bit = 0 AND dead = 0 THEN :now END "
                    f"WHERE id = :id AND pending & :bit RETURNING pending, dead, {_PAYLOAD_BYTES}",
                    {"bit": 1 << topic, "id": row_id, "now": now},
                ).fetchone()
                if left and left[0] == 0:
                    self._pending -= 1
                    self._dead += left[1] != 0
                    self._bytes -= left[2] if left[1] == 0 else 0
            connection.execute("UPDATE topic SET failures = 0, succeeded = ? WHERE number = ?", (now, topic))

    def fail(self, topic: int, reason: str) -> None:
        """Records that publication to a topic failed, and why."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE topic SET failures = failures + 1, last_error = ?, failed = ? WHERE number = ?",
                (reason, _now(), topic),
            )

    def reject(self, topic: int, rows: list[tuple[int, str]]) -> None:
        """Sets aside rows that a topic refused."""
        with self._transaction() as connection:
            for row_id, reason in rows:
                left = connection.execute(
                    "UPDATE instance SET pending = pending & ~:bit, dead = dead | :bit, attempts = attempts + 1, "
                    "last_error = :reason WHERE id = :id AND pending & :bit RETURNING pending",
                    {"bit": 1 << topic, "id": row_id, "reason": reason},
                ).fetchone()
                if left and left[0] == 0:
                    self._pending -= 1
                    self._dead += 1

    def adopt_retries(self) -> int:
        """Makes rows pending again that operators want to be tried again."""
        with self._transaction() as connection:
            wanted = connection.execute(
                "SELECT id, pending FROM instance WHERE dead <> 0 "
                "AND (EXISTS (SELECT 1 FROM retry WHERE trace_id IS NULL) "
                "OR trace_id IN (SELECT trace_id FROM retry)) ORDER BY id"
            ).fetchall()
            for row_id, pending in wanted:
                self._last_ready = self._next_ready()
                connection.execute(
                    "UPDATE instance SET pending = pending | dead, dead = 0, ready = ? WHERE id = ?",
                    (self._last_ready, row_id),
                )
                if pending == 0:
                    self._pending += 1
                    self._dead -= 1
            connection.execute("DELETE FROM retry")
            self._lock.notify_all()
            return len(wanted)

    def retry_wishes(self, most: int) -> list[Wish]:
        """What operators want, and what was not tried yet."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT id, root, name, tenant, by_rule, is_stored FROM quarantine_retry WHERE outcome IS NULL "
                "ORDER BY id LIMIT ?",
                (most,),
            ).fetchall()
        return [
            Wish(row_id, root, name, tenant, bool(by_rule), bool(is_stored))
            for row_id, root, name, tenant, by_rule, is_stored in rows
        ]

    def answer_retry(self, row_id: int, outcome: str) -> None:
        """Tells whoever asked what became of an entry: an empty text where it is stored, else why not."""
        with self._lock:
            self._connection.execute("UPDATE quarantine_retry SET outcome = ? WHERE id = ?", (outcome, row_id))

    def prune(self, before: int, most: int) -> int:
        """Takes the payload of rows that were delivered long ago."""
        with self._transaction() as connection:
            return connection.execute(
                "UPDATE instance SET payload = '', key = '', temporary = '' WHERE id IN (SELECT id FROM instance "
                "WHERE delivered IS NOT NULL AND payload <> '' AND delivered < ? ORDER BY delivered LIMIT ?)",
                (before, most),
            ).rowcount

    def backlog(self) -> tuple[int, int, int]:
        """Rows that a topic has not acknowledged, rows set aside, payload bytes of both."""
        with self._lock:
            return self._pending, self._dead, self._bytes

    def lag(self, topic: int) -> tuple[int, int | None, int]:
        """Rows pending, when the first in line was received, rows set aside."""
        with self._lock:
            (pending,) = self._connection.execute(f"SELECT count(*) FROM instance WHERE {_WAITING[topic]}").fetchone()
            first = self._connection.execute(
                f"SELECT created FROM instance WHERE {_WAITING[topic]} ORDER BY ready LIMIT 1"
            ).fetchone()
            (dead,) = self._connection.execute(
                "SELECT count(*) FROM instance WHERE dead <> 0 AND dead & ?", (1 << topic,)
            ).fetchone()
        return pending, first[0] if first else None, dead

    def close(self) -> None:
        """Closes the database."""
        with self._lock:
            self._is_open = False
            self._connection.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _migrate(self) -> None:
        scripts = _core.outbox_migrations()
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version > len(scripts):
            raise CoreError(f"outbox: made by a newer program (schema {version}, this one knows {len(scripts)})")
        for script in scripts[version:]:
            self._connection.executescript(f"BEGIN IMMEDIATE; {script}; COMMIT;")

    def _next_ready(self) -> int:
        last = max(
            self._connection.execute(f"SELECT coalesce(max(ready), 0) FROM instance WHERE {waiting}").fetchone()[0]
            for waiting in _WAITING
        )
        return int(max(_now(), last + 1))

    def _insert(self, row: NewRow) -> int:
        cursor = self._connection.execute(
            "INSERT INTO instance "
            "(trace_id, key, payload, path, path_hash, temporary, size, digest, pending, created) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                row.trace_id,
                row.key,
                row.payload,
                row.path,
                path_hash(row.path),
                row.temporary,
                row.size,
                row.digest,
                _ALL_PENDING,
                row.created or _now(),
            ),
        )
        return int(cursor.lastrowid or 0)

    def _remove(self, row_id: int) -> None:
        removed = self._connection.execute(
            f"DELETE FROM instance WHERE id = ? AND ready IS NULL RETURNING {_PAYLOAD_BYTES}", (row_id,)
        ).fetchone()
        if removed:
            self._pending -= 1
            self._bytes -= removed[0]

    def _adopt_journal(self, folder: Path) -> None:
        """Takes up what an interrupted Rust engine left in its journal: undecided rows."""
        with self._transaction():
            for trace_id, key, payload, path, size, digest, created, *_ in _core.read_journal(folder):
                if not self._has(path, trace_id):
                    self._insert(NewRow(trace_id, key, payload, path, "", size, digest, created))
        _core.remove_journal(folder)

    def _has(self, path: str, trace_id: str) -> bool:
        found = self._connection.execute(
            "SELECT EXISTS (SELECT 1 FROM instance WHERE path_hash = ? AND path = ? AND trace_id = ?)",
            (path_hash(path), path, trace_id),
        ).fetchone()
        return bool(found[0])
