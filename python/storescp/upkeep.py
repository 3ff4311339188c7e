"""What is done beside reception: files without a record, undecided records, what has become too old, the licence.

Each kind has a thread of its own, so that a disk that hangs holds up nothing else.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import structlog

from storescp import _core
from storescp.engine import Engine, StartUp
from storescp.errors import StorescpError
from storescp.licensing import LicenceWatch

log = structlog.get_logger("storescp.service")
_SHOWN = 10
_END_SECONDS = 5.0
_HOURLY_SECONDS = 3600.0
_FIRST_PAUSE_SECONDS = 60.0
_LONGEST_PAUSE_SECONDS = 3600.0
_RETRY_SECONDS = 1.0
_NEXT_RETRY_SECONDS = 0.1
_RETRY_DATA_SETS = 100
_DATE = re.compile(r"(?<=/)\d{8}(?=/)")


def without_date(path: str) -> str:
    """A path with `*` in the place of the Study Date: no patient's date is logged, and a shell finds the file."""
    return _DATE.sub("*", path)


def announce(found: StartUp | _core.StartUp) -> None:
    """Tells what start-up found."""
    if found.rows_kept or found.rows_dropped or found.temporary_files:
        log.warning(
            "start_up.recovered",
            rows_kept=found.rows_kept,
            rows_dropped=found.rows_dropped,
            temporary_files=found.temporary_files,
        )
    _tell_quarantined(found.quarantined_count, found.quarantined)
    _tell_missing(found.missing_count, found.missing)
    _tell_undecided(found.undecided_count, found.undecided)
    _tell_unreadable(found.unusable_count, found.unusable)


def _tell_quarantined(count: int, paths: Sequence[str]) -> None:
    if count:
        text = "files are not what was to be recorded: they were put aside, see 'storescpd quarantine list'"
        log.error("storage.quarantined", count=count, paths=_shown(paths), text=text)


def _tell_missing(count: int, paths: Sequence[str]) -> None:
    if count:
        text = "records have no file; below durability full a power cut may take it, see 'storescpd verify'"
        log.error("storage.missing", count=count, paths=_shown(paths), text=text)


def _tell_changed(count: int, paths: Sequence[str]) -> None:
    if count:
        text = "files are not what their records say: they stay where they are, see 'storescpd verify'"
        log.error("storage.changed", count=count, paths=_shown(paths), text=text)


def _tell_undecided(count: int, problems: Sequence[tuple[str, str]]) -> None:
    if count:
        text = "the files of records cannot be looked at: the records wait, and the files are looked at again"
        log.error("storage.undecided", count=count, paths=_shown_problems(problems), text=text)


def _tell_unreadable(count: int, problems: Sequence[tuple[str, str]]) -> None:
    if count:
        text = "files or folders cannot be used: they stay as they are, and are looked at again"
        log.error("storage.unreadable", count=count, paths=_shown_problems(problems), text=text)


def _shown(paths: Sequence[str]) -> list[str]:
    return [without_date(path) for path in paths[:_SHOWN]]


def _shown_problems(problems: Sequence[tuple[str, str]]) -> list[str]:
    return [f"{without_date(path)}: {reason}" for path, reason in problems[:_SHOWN]]


class Upkeep:
    """The threads; `stop` ends them."""

    def __init__(self, engine: Engine, licence: LicenceWatch) -> None:
        self._engine = engine
        self._licence = licence
        self._is_first_count = True
        self._knows_protections = False
        self._stopping = threading.Event()
        self._recovery = threading.Thread(target=self._recover, name="storescp-recovery")
        self._retries = threading.Thread(target=self._retry, name="storescp-retry", daemon=True)
        # A disk that hangs must not keep the process from ending.
        self._hourly = [
            threading.Thread(target=self._every_hour, args=(what,), name=f"storescp-{name}", daemon=True)
            for name, what in (("sweep", self._sweep), ("measure", self._measure), ("licence", self._look_at_licence))
        ]

    def start(self) -> None:
        """Begins."""
        self._recovery.start()
        self._retries.start()
        for thread in self._hourly:
            thread.start()

    def stop(self) -> None:
        """Ends what must end before the engine is closed."""
        self._stopping.set()
        if isinstance(self._engine, _core.Engine):
            self._engine.stop_recovery()
        self._recovery.join()
        for thread in (self._retries, *self._hourly):
            thread.join(_END_SECONDS)

    def _every_hour(self, what: Callable[[], None]) -> None:
        while True:
            try:
                what()
            except StorescpError as error:
                if self._stopping.is_set():
                    return
                log.warning("upkeep.failed", text="it is tried again in an hour", reason=str(error))
            if self._stopping.wait(_HOURLY_SECONDS):
                return

    def _look_at_licence(self) -> None:
        now = datetime.now(UTC)
        self._licence.check(now)
        self._licence.mark_root(now)

    def _sweep(self) -> None:
        removed, unreadable = self._engine.sweep()
        if removed:
            log.info("replaced.removed", files=removed, text="replaced files were older than replaced_retention")
        _tell_unreadable(len(unreadable), unreadable)
        state = self._engine.storage_state()
        if state.damaged and state.damaged_since is not None:
            since = datetime.fromtimestamp(state.damaged_since, UTC).isoformat(timespec="seconds")
            text = "damaged data sets wait in quarantine; their senders take them for stored"
            log.warning("quarantine.waits", data_sets=state.damaged, since=since, text=text)

    def _retry(self) -> None:
        """Stores damaged data sets and transcodes instances, as operators want; tells how workers are protected."""
        pause = _RETRY_SECONDS
        while not self._stopping.wait(pause):
            pause = _RETRY_SECONDS
            try:
                self._tell_unprotected()
                for is_stored, name, stays in self._engine.retry_wished(_RETRY_DATA_SETS):
                    self._tell_granted(is_stored, name, stays)
                    # Whoever asks for many asks for some at a time.
                    pause = _NEXT_RETRY_SECONDS
            except StorescpError as error:
                log.warning("quarantine.retry_failed", text="it is tried again", reason=str(error))

    @staticmethod
    def _tell_granted(is_stored: bool, name: str, stays: str | None) -> None:
        if is_stored:
            log.info("stored.stays" if stays else "stored.transcoded", path=without_date(name), reason=stays)
        else:
            log.info("quarantine.stays" if stays else "quarantine.stored", name=name, reason=stays)

    def _tell_unprotected(self) -> None:
        if self._knows_protections or not isinstance(self._engine, _core.Engine):
            return
        missing = self._engine.missing_protections()
        self._knows_protections = missing is not None
        if missing:
            text = "processes that decode images run without protections that this kernel or container does not offer"
            log.warning("transcoding.workers_unprotected", text=text, missing=missing)

    def _measure(self) -> None:
        """What was deleted beneath a tenant gives its quota back; the start has just counted."""
        if self._is_first_count:
            self._is_first_count = False
        elif isinstance(self._engine, _core.Engine):
            unreadable = self._engine.measure_tenants()
            _tell_unreadable(len(unreadable), unreadable)

    def _recover(self) -> None:
        """Until nothing is left that could not be read, with growing pauses."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            # Each by itself: what one of them cannot do must not keep the other from its work.
            done = [self._try(what) for what in (self._walk, self._reconsider)]
            if all(done) or self._stopping.wait(pause):
                return
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def _try(self, what: Callable[[], bool]) -> bool:
        try:
            return what()
        except StorescpError as error:
            again = "the next start begins it again" if self._stopping.is_set() else "it is tried again"
            log.warning("recovery.not_finished", text=again, reason=str(error))
            return False

    def _walk(self) -> bool:
        """Records files that an interrupted predecessor may have left without a record; whether all could be read."""
        if not isinstance(self._engine, _core.Engine):
            return True
        began = time.monotonic()
        found = self._engine.recover()
        if found is None:
            return True
        tell = log.warning if found.recorded or found.left else log.info
        tell(
            "recovery.finished",
            files=found.files,
            recorded=found.recorded,
            left_without_record=found.left,
            records_without_file=found.missing_count,
            seconds=round(time.monotonic() - began, 3),
            text="storescpd verify shows each" if found.left else None,
        )
        _tell_missing(found.missing_count, found.missing)
        _tell_changed(found.changed_count, found.changed)
        _tell_unreadable(found.unreadable_count, found.unreadable)
        return found.unreadable_count == 0

    def _reconsider(self) -> bool:
        """Decides again about undecided records; whether all are decided."""
        kept, dropped, quarantined, undecided = self._engine.reconsider()
        if kept or dropped or quarantined:
            log.warning("storage.decided", rows_kept=kept, rows_dropped=dropped)
        _tell_quarantined(len(quarantined), quarantined)
        return undecided == 0
