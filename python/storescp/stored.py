"""Stored instances that viewers cannot read, and that can be transcoded later."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from storescp import _core
from storescp.file_faults import HEAD_BYTES
from storescp.pure.outbox import path_hash
from storescp.pure.store import locate_dataset
from storescp.settings import Settings, is_utf8
from storescp.verify import Roots

_BUSY = "transcoding_busy"
# tenant/date/study/series/instance.dcm
_LEVELS = 5


@dataclass(frozen=True)
class Candidate:
    """A stored instance to be transcoded; where `fault` is not empty, one that cannot be looked at."""

    root: Path
    path: str  # relative to the storage root
    transfer_syntax: str = ""
    fault: str = ""


def roots_of(settings: Settings) -> Roots:
    """All storage roots."""
    own = {entry.tenant_id: entry.storage_root for entry in settings.tenants.settings if entry.storage_root}
    return Roots(settings.storage.root, own)


def candidates(
    settings: Settings, database: sqlite3.Connection, advance: Callable[[int], None], *, everything: bool
) -> Iterator[Candidate]:
    """Looks at the header of every stored file, and for those that viewers cannot read at its record.

    An instance is one whose record says that transcoding was busy. So is one whose record is forgotten
    (`outbox.keep_delivered`): nothing tells any more why it was stored as received. With `everything`, records are not
    asked. `advance` is called with 1 for each file.
    """
    failures: list[OSError] = []
    for path, file, belongs in roots_of(settings).stored(failures.append):
        advance(1)
        if not belongs or not is_utf8(path) or path.count("/") != _LEVELS - 1 or not path.endswith(".dcm"):
            continue
        root = file.parents[_LEVELS - 1]
        try:
            syntax = _decodable(settings, file)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                yield Candidate(root, path, fault=error.strerror or str(error))
            continue
        if syntax is not None and (everything or _may_have_been_busy(database, path)):
            yield Candidate(root, path, syntax)
    for failure in failures:
        yield Candidate(settings.storage.root, str(failure.filename), fault=failure.strerror or str(failure))


def _decodable(settings: Settings, file: Path) -> str | None:
    """The transfer syntax of a file of ours that should be transcoded and can be."""
    with file.open("rb") as opened:
        found = locate_dataset(opened.read(HEAD_BYTES))
    if found is None or found.implementation_class_uid != _core.IMPLEMENTATION_CLASS_UID:
        return None
    viewers, target = set(settings.transcoding.viewer_transfer_syntaxes), settings.transcoding.target
    outcome, _ = _core.transcode_plan(found.transfer_syntax, True, viewers, target)
    return found.transfer_syntax if outcome == "transcode" else None


def _may_have_been_busy(database: sqlite3.Connection, path: str) -> bool:
    query = "SELECT payload FROM instance WHERE path_hash = ? AND path = ? ORDER BY id DESC LIMIT 1"
    row = database.execute(query, (path_hash(path), path)).fetchone()
    return row is None or not row[0] or _BUSY in json.loads(row[0]).get("anomalies", [])
