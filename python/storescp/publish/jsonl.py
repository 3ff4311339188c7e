"""Records as JSON lines: `{root}/.outbox/events/TOPIC.jsonl`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import structlog

from storescp.durable import leads_to, sync_folder
from storescp.engine import QueuedRecord
from storescp.publish.sink import Outcome, SinkError

log = structlog.get_logger("storescp.publish")
_TAIL_BYTES = 64 * 1024
_ATTEMPTS = 3


class JsonLinesSink:
    """One write for each batch, synced before the batch counts as published.

    The file of a topic may be renamed or removed at any time: the next batch goes to a new file of that name. From
    `max_bytes` on, a file is renamed to `TOPIC.jsonl.YYYYMMDDTHHMMSSffffffZ` and a new one begun; 0 means never. No
    file is ever removed. A batch that was interrupted leaves a torn last line; it is cut when the file is opened.
    """

    def __init__(self, folder: Path, topics: Sequence[str], *, sync: bool = True, max_bytes: int = 0) -> None:
        self._folder = folder
        self._topics = tuple(topics)
        self._sync = sync
        self._max_bytes = max_bytes
        self._files: dict[str, int] = {}
        self._failing: set[str] = set()

    async def publish(self, topic: str, rows: Sequence[QueuedRecord]) -> Outcome:
        """Appends rows."""
        lines = b"\n".join([*(row.payload for row in rows), b""])
        # Whoever renames the file while it is written to may have read it before the last lines came: then they are
        # written once more. A consumer knows them by their trace ids.
        for _ in range(_ATTEMPTS):
            self._append(topic, self._current(topic), lines)
            if self._is_named(topic):
                return Outcome(delivered=[row.id for row in rows])
        raise SinkError(f"{topic}.jsonl: renamed while it is written to, again and again")

    def reopen(self) -> None:
        """Lets go of files that were renamed, and makes new ones."""
        for topic in self._topics:
            try:
                self._open_if_elsewhere(topic)
            except SinkError as error:
                # The next batch tries again, and fails where this still does.
                log.warning("publish.not_reopened", topic=topic, reason=str(error))

    def complaint(self) -> str:
        """Nothing."""
        return ""

    async def stop(self) -> None:
        """Closes the files."""
        for topic in list(self._files):
            self._close(topic)

    def _path(self, topic: str) -> Path:
        return self._folder / f"{topic}.jsonl"

    def _current(self, topic: str) -> int:
        """The file that a batch goes to."""
        if not self._files:
            # All at once: whoever reads one topic finds the file of the other, too.
            for each in self._topics:
                self._open_if_elsewhere(each)
        file = self._open_if_elsewhere(topic)
        if 0 < self._max_bytes <= os.fstat(file).st_size and self._rename(topic):
            file = self._open_if_elsewhere(topic)
        return file

    def _append(self, topic: str, file: int, lines: bytes) -> None:
        size = os.fstat(file).st_size
        reason = None
        try:
            if os.write(file, lines) != len(lines):
                reason = "short write"
            elif self._sync:
                os.fdatasync(file)
        except OSError as error:
            reason = error.strerror
        if reason is None:
            return
        # Where this fails too, a torn line is cut when the file is opened again.
        with contextlib.suppress(OSError):
            os.ftruncate(file, size)
        self._close(topic)
        raise SinkError(f"{topic}.jsonl: {reason}")

    def _rename(self, topic: str) -> bool:
        """Gives a full file the name that it keeps; whether that could be done. If not, it goes on growing."""
        path = self._path(topic)
        try:
            # Only this process names files so, one after the other: nothing comes between the look and the rename.
            while (full := path.with_name(f"{path.name}.{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}")).exists():
                pass
            path.rename(full)
        except OSError as error:
            if topic not in self._failing:
                self._failing.add(topic)
                log.warning("publish.not_rotated", topic=topic, reason=error.strerror)
            return False
        self._failing.discard(topic)
        return True

    def _is_named(self, topic: str) -> bool:
        """Whether the file that is open is the one that its name leads to."""
        try:
            return leads_to(self._path(topic), self._files[topic])
        except OSError as error:
            raise _sink_error(topic, error) from None

    def _open_if_elsewhere(self, topic: str) -> int:
        """The file that the name of a topic leads to, its name durable."""
        if topic in self._files and self._is_named(topic):
            return self._files[topic]
        self._close(topic)
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = _open(self._path(topic))
            if self._sync:
                try:
                    sync_folder(self._folder)
                    # It may be new, too.
                    sync_folder(self._folder.parent)
                except OSError:
                    os.close(file)
                    raise
        except OSError as error:
            raise _sink_error(topic, error) from None
        self._files[topic] = file
        return file

    def _close(self, topic: str) -> None:
        file = self._files.pop(topic, None)
        if file is not None:
            os.close(file)


def _sink_error(topic: str, error: OSError) -> SinkError:
    return SinkError(f"{topic}.jsonl: {error.strerror}")


def _open(path: Path) -> int:
    """Opens for appending, without a torn last line."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    try:
        size = end = os.fstat(file).st_size
        while end > 0:
            begin = max(0, end - _TAIL_BYTES)
            newline = os.pread(file, end - begin, begin).rfind(b"\n")
            if newline >= 0:
                end = begin + newline + 1
                break
            end = begin
        if end != size:
            os.ftruncate(file, end)
    except OSError:
        os.close(file)
        raise
    return file
