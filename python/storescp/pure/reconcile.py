"""Reconciling: what becomes of rows that an interrupted predecessor inserted and never made publishable.

The file of a row decides. Nothing beneath a tenant is removed: what may not stay in its place goes to quarantine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from storescp.engine import MOST_NAMED, StartUp
from storescp.pure import record
from storescp.pure.outbox import Outbox, UndecidedRow
from storescp.pure.store import Store, digest, reason_of
from storescp.quarantine import Note


@dataclass(frozen=True)
class _Decision:
    """What becomes of the rows of one path."""

    path: str
    kind: str  # "kept", "dropped", "missing", "quarantined" or "undecided"
    kept: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()
    reason: str = ""


class Reconciler:
    """Decides the undecided rows of one storage root; but for `start`, whoever calls holds `Store.one_writer`."""

    def __init__(self, store: Store, outbox: Outbox, *, durability: str) -> None:
        self._store = store
        self._outbox = outbox
        self._durability = durability
        self._undecided: set[str] = set()
        self._decided: tuple[int, int, list[str]] = (0, 0, [])
        self.missing = 0
        self.quarantined = store.count_quarantined()

    @property
    def undecided(self) -> int:
        """Paths whose rows wait for a look at their file."""
        return len(self._undecided)

    def start(self) -> StartUp:
        """Decides all rows; temporary files are not its concern."""
        decisions = [self._look(path, rows) for path, rows in self._outbox.undecided().items()]
        self._apply(decisions)
        quarantined = [one.path for one in decisions if one.kind == "quarantined"]
        missing = [one.path for one in decisions if one.kind == "missing"]
        undecided = [(one.path, one.reason) for one in decisions if one.kind == "undecided"]
        return StartUp(
            rows_kept=sum(len(one.kept) for one in decisions),
            rows_dropped=sum(len(one.dropped) for one in decisions),
            quarantined=quarantined[:MOST_NAMED],
            missing=missing[:MOST_NAMED],
            undecided=undecided[:MOST_NAMED],
            quarantined_count=len(quarantined),
            missing_count=len(missing),
            undecided_count=len(undecided),
        )

    def count_quarantined(self) -> None:
        """Counts the quarantine anew: operators remove entries."""
        self.quarantined = self._store.count_quarantined()

    def undecided_paths(self) -> list[str]:
        """The paths whose rows wait for a look at their file."""
        return sorted(self._undecided)

    def reconsider(self, path: str) -> bool:
        """Tries the rows of a path again; whether they are decided."""
        if path not in self._undecided:
            return True
        decisions = [self._look(path, rows) for rows in self._outbox.undecided(path).values()]
        self._apply(decisions)
        if any(one.kind == "undecided" for one in decisions):
            return False
        self._undecided.discard(path)
        kept, dropped, quarantined = self._decided
        self._decided = (
            kept + sum(len(one.kept) for one in decisions),
            dropped + sum(len(one.dropped) for one in decisions),
            [*quarantined, *(one.path for one in decisions if one.kind == "quarantined")],
        )
        return True

    def take_decided(self) -> tuple[int, int, list[str]]:
        """What was decided since the last call: rows kept, rows dropped, paths of files that were quarantined."""
        decided, self._decided = self._decided, (0, 0, [])
        return decided

    def _apply(self, decisions: list[_Decision]) -> None:
        self._outbox.decide(
            [row_id for one in decisions for row_id in one.kept],
            [row_id for one in decisions for row_id in one.dropped],
        )
        for one in decisions:
            if one.kind == "undecided":
                self._undecided.add(one.path)
        self.missing += sum(one.kind == "missing" for one in decisions)

    def _look(self, path: str, rows: list[UndecidedRow]) -> _Decision:
        try:
            return self._decide(path, rows)
        except OSError as error:
            return _Decision(path, "undecided", reason=reason_of(error))

    def _decide(self, path: str, rows: list[UndecidedRow]) -> _Decision:
        everything = tuple(row.id for row in rows)
        content = self._store.read(path)
        if content is None:
            if self._store.is_quarantined(rows[-1].trace_id):
                return _Decision(path, "quarantined", dropped=everything)
            kind = "dropped" if self._durability == "full" else "missing"
            return _Decision(path, kind, dropped=everything)
        found = (len(content), digest(content))
        described = [row.id for row in rows if (row.size, row.digest) == found]
        committed = self._outbox.committed(path)
        # One instance never gets two trace ids.
        if committed[:1] == [found] or (not described and found in committed):
            return _Decision(path, "dropped", dropped=everything)
        if described:
            self._store.make_durable(path, data=True, directories=True)
            kept = described[-1]
            return _Decision(path, "kept", (kept,), tuple(row_id for row_id in everything if row_id != kept))
        self._quarantine(rows[-1], *found)
        return _Decision(path, "quarantined", dropped=everything)

    def _quarantine(self, row: UndecidedRow, size: int, found: bytes) -> None:
        note = Note(
            path=row.path,
            reason="the file differs from its record, which was never marked committed",
            quarantined_at=record.timestamp(),
            recorded_size=row.size,
            recorded_digest=row.digest.hex(),
            found_size=size,
            found_digest=found.hex(),
            record=_parsed(row.payload),
        )
        self._store.quarantine(row.path, row.trace_id, note.encode())
        self.quarantined += 1


def _parsed(payload: str) -> object:
    try:
        return json.loads(payload)
    except ValueError:  # of a damaged database, as it is
        return payload
