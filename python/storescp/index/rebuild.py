"""The tables from the files of a storage root, without records."""

from __future__ import annotations

import functools
import itertools
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import structlog
from sqlalchemy.exc import StatementError

from storescp import _core
from storescp.errors import CoreError, StorescpError
from storescp.index.database import Database
from storescp.index.incoming import IncomingRecord, read
from storescp.index.patience import describe
from storescp.root_identity import read_identity
from storescp.settings import Settings, is_utf8
from storescp.stored import roots_of

log = structlog.get_logger("storescp.index")
T = TypeVar("T")
_TOGETHER = 1000
_THREADS = 4
# tenant/date/study/series/instance.dcm
_LEVELS = 5


@dataclass
class Rebuilt:
    """Numbers of instances that were found, that went, and of files that are no instances of ours."""

    instances: int = 0
    removed: int = 0
    skipped: int = 0


def rebuild(
    settings: Settings, database: Database, advance: Callable[[int], None], skip: Callable[[str, str], None]
) -> Rebuilt:
    """Makes the rows of every stored instance anew, and removes those of this node whose files are not there any more.

    What no file tells stays as it is, or is empty: trace id, address of the sender, transfer syntax as received. The
    time of reception is that of the file. `advance` is called with the number of files that are done, `skip` with each
    that is no instance of ours, and why.

    It may be interrupted and run again, and workers may apply records meanwhile. Study events are not made.

    Raises:
        StorescpError: the database is away, or a folder cannot be read, so that nobody can say what is not there.
    """
    try:
        database.create()
        return _rebuild(settings, database, advance, skip)
    except StatementError as error:
        raise StorescpError(f"{database.url}: {describe(error)}") from None


def _rebuild(
    settings: Settings, database: Database, advance: Callable[[int], None], skip: Callable[[str, str], None]
) -> Rebuilt:
    found = Rebuilt()
    began = _now()
    node, roots = settings.service.node_name, roots_of(settings)
    reader = _core.StoredRecords(list(settings.message_queue.record_attributes), node)
    for root in sorted(roots.all()):
        # An empty folder where a disk should be is no reason to remove everything.
        if read_identity(root) is None:
            raise StorescpError(f"{root}: not mounted, or without identity (see storescpd storage create)")
    unreadable: list[OSError] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for batch in _batches(roots.stored(unreadable.append)):
            records = []
            for (path, *_), record in zip(
                batch, pool.map(lambda one: _read(reader, settings, *one), batch), strict=True
            ):
                if isinstance(record, IncomingRecord):
                    records.append(record)
                elif record:
                    found.skipped += 1
                    skip(path, record)
            _patiently(functools.partial(database.rebuild, records, began))
            found.instances += len(records)
            advance(len(batch))
    if unreadable:
        error = unreadable[0]
        raise StorescpError(f"{error.filename}: {error.strerror}; what is not found may be there")
    found.removed = _patiently(lambda: database.remove_missing(node, sorted(roots.all()), began))
    _patiently(database.renew_patients)
    return found


def _patiently(work: Callable[[], T]) -> T:
    """Again where a worker was in the way: each transaction may be done twice."""
    for pause in (0.1, 0.3, 1.0, 3.0, 10.0):
        try:
            return work()
        except StatementError as error:
            log.warning("index.waiting", on="database", reason=describe(error), retry_seconds=pause)
            time.sleep(pause)
    return work()


def _read(
    reader: _core.StoredRecords, settings: Settings, path: str, file: Path, belongs: bool
) -> IncomingRecord | str:
    """The record that the service would make of a file, why it is none of ours, or nothing where it is gone."""
    if not belongs or not is_utf8(path) or path.count("/") != _LEVELS - 1:
        return "not at a place of an instance"
    try:
        made = json.loads(reader.record(file, path))
    except CoreError as error:
        return "" if not file.exists() else str(error)
    missing = settings.message_queue.missing_study_date
    if made["study_date"] is None and missing is not None:
        made["study_date"] = missing.isoformat()
    return read(json.dumps(made).encode())


def _batches(files: Iterator[tuple[str, Path, bool]]) -> Iterator[list[tuple[str, Path, bool]]]:
    while batch := list(itertools.islice(files, _TOGETHER)):
        yield batch


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
