"""Comparing the storage with its records: what differs, and what is in quarantine."""

from __future__ import annotations

import itertools
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import xxhash

from storescp import _core, machine
from storescp.errors import CoreError, StorescpError
from storescp.quarantine import QUARANTINE, entries
from storescp.settings import is_utf8

_MOST_THREADS = 4
_AT_A_TIME = 256
_SIGN_BIT = 1 << 63
# A service that runs puts a record into the database within a second of its file.
_YOUNG_SECONDS = 2.0


@dataclass(frozen=True)
class Recorded:
    """What the newest record of a path says of its file."""

    path: str  # relative to the storage root
    size: int
    digest: bytes


@dataclass(frozen=True)
class Looked:
    """One file or record that was looked at: `kind` is "whole" where all is well."""

    kind: str  # "whole", "missing", "changed", "unreadable", "misplaced", "foreign" or "quarantined"
    path: str
    bytes: int = 0
    reason: str = ""
    is_unrecorded: bool = False  # lies where it belongs, and has no record


class Roots:
    """Which storage root holds which tenant."""

    def __init__(self, root: Path, tenant_roots: Mapping[str, Path]) -> None:
        self._root = root
        self._tenant_roots = dict(tenant_roots)

    def of(self, path: str) -> Path:
        """The absolute path of a file; its first folder is the tenant."""
        return self._tenant_roots.get(path.partition("/")[0], self._root) / path

    def all(self) -> set[Path]:
        """Every storage root."""
        return {self._root, *self._tenant_roots.values()}

    def stored(self, unreadable: Callable[[OSError], object]) -> Iterator[tuple[str, Path, bool]]:
        """Every file beneath a tenant: relative path, absolute path, and whether the tenant belongs to that root.

        `unreadable` is told of each folder that cannot be read, a root too.
        """
        for root in sorted(self.all()):
            try:
                tenants = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
            except OSError as error:
                unreadable(error)
                continue
            for tenant in tenants:
                if tenant.startswith("."):
                    continue
                belongs = self._tenant_roots.get(tenant, self._root) == root
                for folder, _, names in os.walk(root / tenant, onerror=unreadable):
                    for name in sorted(names):
                        file = Path(folder) / name
                        yield str(file.relative_to(root)), file, belongs


def count_paths(database: sqlite3.Connection) -> int:
    """How many files are recorded."""
    (count,) = database.execute("SELECT count(DISTINCT path) FROM instance").fetchone()
    return int(count)


def verify(roots: Roots, database: sqlite3.Connection) -> Iterator[Looked]:
    """Looks at the file of every record, at every file without one ("foreign"), and into the quarantine."""
    yield from _recorded_files(roots, database)
    yield from _foreign_files(roots, database)
    for root in sorted(roots.all()):
        try:
            for entry in entries([root]):
                yield Looked("quarantined", entry.path or f"{QUARANTINE}/{entry.name}", reason=entry.reason)
        except StorescpError as error:
            yield Looked("unreadable", str(root / QUARANTINE), reason=str(error))


def _recorded_files(roots: Roots, database: sqlite3.Connection) -> Iterator[Looked]:
    """Reads each file, several at a time: size, digest, and that it is the instance its path says.

    A path that was replaced has several rows; the last one describes the file.
    """
    query = "SELECT path, size, digest FROM instance WHERE id IN (SELECT max(id) FROM instance GROUP BY path)"
    rows = (Recorded(*row) for row in database.execute(query))
    with ThreadPoolExecutor(min(_MOST_THREADS, machine.processors()), thread_name_prefix="storescp-verify") as pool:
        while batch := list(itertools.islice(rows, _AT_A_TIME)):
            yield from pool.map(lambda recorded: _look_at(roots, recorded), batch)


def _look_at(roots: Roots, recorded: Recorded) -> Looked:
    file, path = roots.of(recorded.path), recorded.path
    try:
        size = file.stat().st_size
        if size != recorded.size:
            return Looked("changed", path, size, f"{size} bytes, recorded {recorded.size}")
        size, digest, place = _core.examine_file(file, path.partition("/")[0])
    except FileNotFoundError:
        return Looked("missing", path)
    except OSError as error:
        return Looked("unreadable", path, reason=error.strerror or str(error))
    except CoreError as error:
        return Looked("unreadable", path, reason=str(error))
    kind, reason = "whole", ""
    if digest != recorded.digest:
        kind, reason = "changed", "other bytes than recorded"
    elif place != path:
        kind, reason = "misplaced", f"it is {place}"
    return Looked(kind, path, size, reason)


def _foreign_files(roots: Roots, database: sqlite3.Connection) -> Iterator[Looked]:
    """Every file without a record, or beneath another root than its tenant's."""
    young: list[tuple[str, float]] = []
    failures: list[OSError] = []
    for path, file, belongs in roots.stored(failures.append):
        if not is_utf8(path):
            yield Looked("foreign", path, reason="its name is not UTF-8: it is no file of this service")
        elif not belongs:
            yield Looked("foreign", str(file), reason="the tenant has another storage root")
        elif not _is_recorded(database, path):
            settles = _changed(file) + _YOUNG_SECONDS
            if settles > time.time():
                young.append((path, settles))
            else:
                yield _unrecorded(path)
    for failure in failures:
        yield Looked("unreadable", str(failure.filename), reason=failure.strerror or str(failure))
    for path, settles in young:
        time.sleep(max(0.0, min(settles - time.time(), _YOUNG_SECONDS)))
        if not _is_recorded(database, path):
            yield _unrecorded(path)


def _changed(file: Path) -> float:
    """When a file got its name, or was changed in another way; seconds since 1970."""
    try:
        return file.lstat().st_ctime
    except OSError:
        return 0.0


def _unrecorded(path: str) -> Looked:
    return Looked("foreign", path, reason="it has no record", is_unrecorded=True)


def _is_recorded(database: sqlite3.Connection, path: str) -> bool:
    number = xxhash.xxh3_64_intdigest(path.encode())
    signed = number - 2 * _SIGN_BIT if number >= _SIGN_BIT else number
    query = "SELECT EXISTS (SELECT 1 FROM instance WHERE path_hash = ? AND path = ?)"
    return bool(database.execute(query, (signed, path)).fetchone()[0])


def request_republication(database: sqlite3.Connection, paths: Iterable[str]) -> int:
    """Asks the service to publish the records of stored files, again or for the first time; of how many."""
    with database:
        before = database.total_changes
        database.executemany("INSERT INTO republish (path) VALUES (?)", ((path,) for path in paths))
        return database.total_changes - before
