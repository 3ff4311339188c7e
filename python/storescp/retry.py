"""What operators want of stored and damaged data sets: done by the service that runs, else by an engine of our own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from storescp import _core
from storescp.engine import Engine, engine_config
from storescp.errors import StorescpError
from storescp.outbox import open_outbox
from storescp.quarantine import Entry
from storescp.settings import Settings

_LOOK_SECONDS = 0.2
# The largest instance takes longer than any other, also without the time for transcoding it.
_PATIENCE_SECONDS = 600.0
# The service takes wishes in their order: whoever asks for much leaves room for others.
_AT_A_TIME = 16
Outcome = tuple[Entry, str | None]  # why it stays in quarantine; None: it is stored


@dataclass(frozen=True)
class Wish:
    """A damaged data set to be stored, or a stored instance to be transcoded in place."""

    root: Path  # the storage root
    name: str  # of the entry of the quarantine, or the path of the stored file
    tenant: str | None = None  # for an entry whose note names none
    by_rule: bool = False  # a rule names the tenant
    is_stored: bool = False


def retry(settings: Settings, entries: Sequence[Entry], *, engine: str) -> Iterator[Outcome]:
    """Tries to store each as if it came now.

    Raises:
        StorescpError: no engine can be opened, or the service that runs does not answer.
    """
    wishes = {Wish(entry.root, entry.name, *_tenancy(settings, entry)): entry for entry in entries}
    for wish, stays in grant(settings, list(wishes), engine=engine):
        yield wishes[wish], stays


def grant(settings: Settings, wishes: Sequence[Wish], *, engine: str) -> Iterator[tuple[Wish, str | None]]:
    """Has each wish granted; why it is not, or None.

    Raises:
        StorescpError: no engine can be opened, or the service that runs does not answer.
    """
    left = list(wishes)
    while left and is_served(settings.storage.root):
        batch, left = left[:_AT_A_TIME], left[_AT_A_TIME:]
        left = [*(yield from _by_service(settings, batch)), *left]
    if left:
        # Nobody serves the root, or no longer.
        with contextlib.closing(_opened(settings, engine)) as opened:
            for wish in left:
                if wish.is_stored:
                    yield wish, opened.transcode_stored(wish.root, wish.name)
                else:
                    yield wish, opened.retry(wish.root, wish.name, wish.tenant, wish.by_rule)


def is_served(root: Path) -> bool:
    """Whether a process has the storage root open.

    Raises:
        StorescpError: that cannot be told.
    """
    try:
        lock = os.open(root / ".outbox" / "lock", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StorescpError(f"{root}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _by_service(settings: Settings, wishes: Sequence[Wish]) -> Generator[tuple[Wish, str | None], None, list[Wish]]:
    """Asks the service and waits for its answers. Returns what it did not answer because it ended."""
    root, transcoding = settings.storage.root, settings.transcoding
    patience = _PATIENCE_SECONDS + transcoding.max_wait + transcoding.instance_timeout
    with contextlib.closing(open_outbox(root, write=True)) as database:
        asked = _ask(database, wishes)
        try:
            deadline = time.monotonic() + patience
            while asked:
                # In this order: what it answered before it ended is seen.
                runs = is_served(root)
                for row_id, outcome in _answers(database, asked):
                    deadline = time.monotonic() + patience
                    yield asked.pop(row_id), outcome or None
                if not runs:
                    break
                if asked and time.monotonic() > deadline:
                    raise StorescpError(f"the service has not answered for {patience:.0f} s")
                time.sleep(_LOOK_SECONDS if asked else 0)
        finally:
            _withdraw(database, asked)
        return list(asked.values())


def _ask(database: sqlite3.Connection, wishes: Sequence[Wish]) -> dict[int, Wish]:
    statement = "INSERT INTO quarantine_retry (root, name, tenant, by_rule, is_stored) VALUES (?, ?, ?, ?, ?)"
    asked = {}
    with database:
        for wish in wishes:
            row = (str(wish.root), wish.name, wish.tenant, wish.by_rule, wish.is_stored)
            asked[database.execute(statement, row).lastrowid or 0] = wish
    return asked


def _answers(database: sqlite3.Connection, ids: dict[int, Wish]) -> list[tuple[int, str]]:
    """What was answered since the last call; it is removed."""
    with database:
        query = "SELECT id, outcome FROM quarantine_retry WHERE outcome IS NOT NULL ORDER BY id"
        found = [(row_id, outcome) for row_id, outcome in database.execute(query) if row_id in ids]
        database.executemany("DELETE FROM quarantine_retry WHERE id = ?", [(row_id,) for row_id, _ in found])
    return found


def _withdraw(database: sqlite3.Connection, ids: dict[int, Wish]) -> None:
    with database:
        database.executemany("DELETE FROM quarantine_retry WHERE id = ?", [(row_id,) for row_id in ids])


def _tenancy(settings: Settings, entry: Entry) -> tuple[str | None, bool]:
    """The tenant by the rules of today, for an entry whose note names none."""
    from storescp.network.admission import Admission  # noqa: PLC0415 - rarely needed
    from storescp.network.identity import Peer  # noqa: PLC0415

    note = entry.note or {}
    if note.get("tenant_from") is not None:
        return None, False
    called, calling, address = (str(note.get(key, "")) for key in ("called_ae_title", "calling_ae_title", "address"))
    tenancy = Admission(settings, lambda: None).tenancy(called, calling, Peer(address, 0))
    return tenancy.tenant, tenancy.by_rule


def _opened(settings: Settings, engine: str) -> Engine:
    if engine == "python":
        from storescp.pure.engine import PureEngine  # noqa: PLC0415 - the other engine is the usual one

        return PureEngine(settings)
    return _core.Engine(engine_config(settings))
