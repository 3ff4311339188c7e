"""Having damaged data sets stored that are in quarantine: by the service that runs, else by an engine of our own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from storescp import _core
from storescp.engine import Engine, engine_config
from storescp.errors import StorescpError
from storescp.outbox import open_outbox
from storescp.quarantine import Entry
from storescp.settings import Settings

_LOOK_SECONDS = 0.2
# The largest instance takes longer than any other.
_PATIENCE_SECONDS = 600.0
Outcome = tuple[Entry, str | None]  # why it stays in quarantine; None: it is stored
_Wish = tuple[str | None, bool]  # tenant, and whether a rule names it


def retry(settings: Settings, entries: Sequence[Entry], *, engine: str) -> Iterator[Outcome]:
    """Tries to store each as if it came now.

    Raises:
        StorescpError: no engine can be opened, or the service that runs does not answer.
    """
    if not entries:
        return
    wishes = {(str(entry.root), entry.name): _tenancy(settings, entry) for entry in entries}
    left = {(str(entry.root), entry.name): entry for entry in entries}
    if is_served(settings.storage.root):
        yield from _by_service(settings.storage.root, wishes, left)
    if left:
        # Nobody serves the root, or no longer.
        with contextlib.closing(_opened(settings, engine)) as opened:
            for (root, name), entry in left.items():
                tenant, by_rule = wishes[root, name]
                yield entry, opened.retry(Path(root), name, tenant, by_rule)


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


def _by_service(
    root: Path, wishes: dict[tuple[str, str], _Wish], left: dict[tuple[str, str], Entry]
) -> Iterator[Outcome]:
    """Asks the service and waits for its answers. What it did not answer because it ended stays in `left`."""
    with contextlib.closing(open_outbox(root, write=True)) as database:
        ids = _ask(database, wishes)
        try:
            deadline = time.monotonic() + _PATIENCE_SECONDS
            while ids:
                # In this order: what it answered before it ended is seen.
                runs = is_served(root)
                for row_id, outcome in _answers(database, ids):
                    deadline = time.monotonic() + _PATIENCE_SECONDS
                    yield left.pop(ids.pop(row_id)), outcome or None
                if not runs:
                    return
                if ids and time.monotonic() > deadline:
                    raise StorescpError(f"the service has not answered for {_PATIENCE_SECONDS:.0f} s")
                time.sleep(_LOOK_SECONDS if ids else 0)
        finally:
            _withdraw(database, ids)


def _ask(database: sqlite3.Connection, wishes: dict[tuple[str, str], _Wish]) -> dict[int, tuple[str, str]]:
    ids = {}
    with database:
        for (root, name), (tenant, by_rule) in wishes.items():
            row = (root, name, tenant, by_rule)
            statement = "INSERT INTO quarantine_retry (root, name, tenant, by_rule) VALUES (?, ?, ?, ?)"
            ids[database.execute(statement, row).lastrowid or 0] = (root, name)
    return ids


def _answers(database: sqlite3.Connection, ids: dict[int, tuple[str, str]]) -> list[tuple[int, str]]:
    """What was answered since the last call; it is removed."""
    with database:
        query = "SELECT id, outcome FROM quarantine_retry WHERE outcome IS NOT NULL ORDER BY id"
        found = [(row_id, outcome) for row_id, outcome in database.execute(query) if row_id in ids]
        database.executemany("DELETE FROM quarantine_retry WHERE id = ?", [(row_id,) for row_id, _ in found])
    return found


def _withdraw(database: sqlite3.Connection, ids: dict[int, tuple[str, str]]) -> None:
    with database:
        database.executemany("DELETE FROM quarantine_retry WHERE id = ?", [(row_id,) for row_id in ids])


def _tenancy(settings: Settings, entry: Entry) -> _Wish:
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
