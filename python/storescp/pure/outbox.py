"""The durable queue of records with `sqlite3`, on the schema of the Rust core."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import xxhash

SCHEMA = """
CREATE TABLE IF NOT EXISTS instance (
    id INTEGER PRIMARY KEY AUTOINCREMENT, ready INTEGER, trace_id TEXT NOT NULL, key TEXT NOT NULL,
    payload TEXT NOT NULL, path TEXT NOT NULL, path_hash INTEGER NOT NULL, temporary TEXT NOT NULL,
    size INTEGER NOT NULL, digest BLOB NOT NULL, pending INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
    last_error TEXT, created INTEGER NOT NULL, delivered INTEGER
) STRICT;
CREATE INDEX IF NOT EXISTS instance_path ON instance (path_hash);
CREATE INDEX IF NOT EXISTS instance_pending ON instance (ready) WHERE pending <> 0;
CREATE INDEX IF NOT EXISTS instance_unsettled ON instance (id) WHERE ready IS NULL;
PRAGMA user_version = 1;
"""
_ALL_PENDING = 0b11


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


@dataclass(frozen=True)
class Row:
    """A record to be published."""

    id: int
    trace_id: str
    key: str
    payload: str
    pending: int


def path_hash(path: str) -> int:
    """XXH3-64 of a relative path as SQLite's signed integer."""
    value = xxhash.xxh3_64_intdigest(path.encode())
    return value - (1 << 64) if value >> 63 else value


def _now() -> int:
    return time.time_ns() // 1000


class Outbox:
    """One connection behind one lock; every change is its own transaction."""

    def __init__(self, path: Path, *, synchronous: bool, on_disk: Callable[[str, int, bytes], bool]) -> None:
        self._lock = threading.Condition()
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=5)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute(f"PRAGMA synchronous = {'FULL' if synchronous else 'OFF'}")
        self._connection.executescript(SCHEMA)
        self.kept, self.dropped = self._settle(on_disk)
        self._rows, self._bytes = self._connection.execute(
            "SELECT count(*), coalesce(sum(length(payload)), 0) FROM instance WHERE pending <> 0"
        ).fetchone()
        self._claimable = self._rows

    def insert(self, row: NewRow) -> int:
        """A durable row that is not publishable yet."""
        with self._lock:
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
                    _now(),
                ),
            )
            self._rows += 1
            self._bytes += len(row.payload)
            return int(cursor.lastrowid or 0)

    def publishable(self, row_id: int) -> None:
        """Lets the publisher see a row."""
        with self._lock:
            self._connection.execute("UPDATE instance SET ready = ? WHERE id = ?", (self._next_ready(), row_id))
            self._claimable += 1
            self._lock.notify_all()

    def remove(self, row_id: int) -> None:
        """Takes back a row whose file never got its name."""
        with self._lock:
            removed = self._connection.execute(
                "DELETE FROM instance WHERE id = ? AND ready IS NULL RETURNING length(payload)", (row_id,)
            ).fetchone()
            if removed:
                self._rows -= 1
                self._bytes -= removed[0]

    def describes(self, path: str, size: int, digest: bytes) -> bool:
        """Whether a row describes the file with this path, size and digest."""
        with self._lock:
            found = self._connection.execute(
                "SELECT EXISTS (SELECT 1 FROM instance WHERE path_hash = ? AND path = ? AND size = ? AND digest = ?)",
                (path_hash(path), path, size, digest),
            ).fetchone()
            return bool(found[0])

    def wait(self, timeout: float) -> bool:
        """Waits for something to publish."""
        with self._lock:
            return bool(self._lock.wait_for(lambda: self._claimable > 0, timeout))

    def claim(self, most: int) -> list[Row]:
        """The oldest publishable rows."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT id, trace_id, key, payload, pending FROM instance "
                "WHERE pending <> 0 AND ready IS NOT NULL ORDER BY ready LIMIT ?",
                (most,),
            ).fetchall()
        return [Row(*row) for row in rows]

    def done(self, topic: int, ids: list[int]) -> None:
        """Records that a topic acknowledged rows."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            for row_id in ids:
                left = self._connection.execute(
                    "UPDATE instance SET pending = pending & ~(1 << ?1), "
                    "delivered = CASE WHEN pending & ~(1 << ?1) = 0 THEN ?3 END "
                    "WHERE id = ?2 AND pending & (1 << ?1) RETURNING pending, length(payload)",
                    (topic, row_id, _now()),
                ).fetchone()
                if left and left[0] == 0:
                    self._rows -= 1
                    self._bytes -= left[1]
                    self._claimable -= 1
            self._connection.execute("COMMIT")

    def fail(self, ids: list[int], code: str) -> None:
        """Records that rows could not be published, and why."""
        with self._lock:
            self._connection.executemany(
                "UPDATE instance SET attempts = attempts + 1, last_error = ? WHERE id = ?",
                [(code, row_id) for row_id in ids],
            )

    def backlog(self) -> tuple[int, int]:
        """Rows and payload bytes that a topic has not acknowledged."""
        with self._lock:
            return self._rows, self._bytes

    def close(self) -> None:
        """Closes the database."""
        with self._lock:
            self._connection.close()

    def _next_ready(self) -> int:
        (last,) = self._connection.execute("SELECT max(ready) FROM instance WHERE pending <> 0").fetchone()
        return max(_now(), (last or 0) + 1)

    def _settle(self, on_disk: Callable[[str, int, bytes], bool]) -> tuple[int, int]:
        kept = dropped = 0
        query = "SELECT id, path, size, digest FROM instance WHERE ready IS NULL ORDER BY id"
        for row_id, path, size, digest in self._connection.execute(query).fetchall():
            if on_disk(path, size, digest):
                self._connection.execute("UPDATE instance SET ready = ? WHERE id = ?", (self._next_ready(), row_id))
                kept += 1
            else:
                self._connection.execute("DELETE FROM instance WHERE id = ?", (row_id,))
                dropped += 1
        return kept, dropped
