"""From the JSON lines of a storage root to the tables: every line once, across rotation and restarts."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import structlog

from storescp.index.database import Applied, Database, FileProgress, Message
from storescp.index.events import Origin
from storescp.index.one_by_one import Placed, apply_each
from storescp.index.patience import Patience
from storescp.index.refusals import MessageRefusedError
from storescp.index.study_events import Command, StudyEvents, deliveries_to
from storescp.index.totals import Totals
from storescp.publish.jsonl import JsonLinesSink
from storescp.root_identity import read_identity
from storescp.settings import Events, Index

log = structlog.get_logger("storescp.index")
_LOOK_SECONDS = 0.5
# Of a line; a record is shorter by far. What is longer is set aside without its end.
_LINE_BYTES = 1 << 20
_TAIL_BYTES = 4096
_BATCH_BYTES = 16 << 20
_STAMP = re.compile(r"\.(\d{8}T\d{12}Z)")


@dataclass(frozen=True)
class _Seen:
    """A file as it was when it had been read to its end."""

    inode: int
    size: int
    changed: int


class Follower:
    """Reads until it is stopped, or until it has caught up.

    A file is known by its first line, so it may be moved, and its inode used again. Files that were rotated come
    before the one that is written to, the oldest first; compressed ones are not read.
    """

    def __init__(
        self,
        root: Path,
        index: Index,
        topic: str,
        database: Database,
        events: Events,
        on_study: Command | None = None,
        *,
        max_bytes: int = 0,
    ) -> None:
        self._root = root
        self._folder = root / ".outbox" / "events"
        self._index = index
        self._topic = topic
        self._database = database
        self._patience = Patience()
        sink = JsonLinesSink(self._folder, [events.topic], max_bytes=max_bytes)
        deliveries = deliveries_to(sink, events, on_study)
        self._events = StudyEvents(database.timers, events, self._patience, deliveries, self._origin)
        self._totals = Totals()
        self._seen: dict[Path, _Seen] = {}
        self._unreadable: set[Path] = set()
        self._is_complete = False
        self._name = ""

    async def run(self, *, until_caught_up: bool = False) -> Applied:
        """Keeps the tables up to date; returns what was done.

        With `until_caught_up` it ends when every line is read.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._patience.stopping.set)
        await self._patience.insist("database", lambda: asyncio.to_thread(self._database.create))
        log.info("index.started", database=self._database.url, folder=str(self._folder))
        async with self._events.delivering():
            while not self._patience.stopping.is_set():
                due = await self._look()
                is_new = await self._read_all()
                # Whatever was written before that moment has been applied, unless a file cannot be read.
                if due is not None and due[1] and self._is_complete and not self._patience.stopping.is_set():
                    await self._events.fire(self._origin(), due[0])
                self._totals.tell_now_and_then()
                if is_new:
                    continue
                if until_caught_up:
                    await self._events.deliver_pending()
                    break
                await self._patience.pause(_LOOK_SECONDS)
        log.info("index.stopped", **self._totals.summary())
        return self._totals.applied

    def _origin(self) -> Origin:
        return Origin(self._name, frozenset([0] if self._name else []))

    async def _look(self) -> tuple[float, set[int]] | None:
        """Which timers are due, and since when; None before there is a root with records."""
        if not self._name:
            found = await self._patience.insist("files", lambda: asyncio.to_thread(self._identity))
            self._name = found or ""
        return await self._events.due(self._origin()) if self._name else None

    def _identity(self) -> str:
        """Of the root, wherever it is mounted. One without identity and with records is of an earlier version."""
        if (found := read_identity(self._root)) is not None:
            return found
        return hashlib.sha256(os.fsencode(self._root.resolve())).hexdigest() if self._listed() else ""

    async def _read_all(self) -> bool:
        """Reads every file to its end; whether there may be more."""
        found = await self._patience.insist("files", lambda: asyncio.to_thread(self._files)) if self._name else []
        is_new, unreadable, is_moved = False, set(), False
        for path, facts in found or []:
            if self._patience.stopping.is_set():
                break
            try:
                read = await self._read(path, facts.st_ino)
            except OSError as error:
                unreadable.add(path)
                if path not in self._unreadable:
                    log.warning("index.file_unreadable", path=str(path), reason=error.strerror)
                continue
            if read is None:
                # What comes behind it has to wait: the files are looked at again.
                is_moved = True
                break
            is_new |= read
        self._unreadable = unreadable
        self._is_complete = not (unreadable or is_moved)
        return is_new or is_moved

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        """Those with something new, in the order of their lines."""
        before: list[tuple[str, int]] = []
        while True:
            found = self._listed()
            names = [(path.name, facts.st_ino) for path, facts in found]
            # A file that is renamed while the folder is read may be under neither name.
            if names == before:
                break
            before = names
        self._seen = {path: seen for path, seen in self._seen.items() if path in {one for one, _ in found}}
        return [(path, facts) for path, facts in found if self._seen.get(path) != _seen(facts)]

    def _listed(self) -> list[tuple[Path, os.stat_result]]:
        current = f"{self._topic}.jsonl"
        found = []
        try:
            entries = list(os.scandir(self._folder))
        except FileNotFoundError:
            return []  # nothing was published yet
        for entry in entries:
            is_ours = entry.name == current or entry.name.startswith(f"{current}.")
            if not is_ours or entry.name.endswith((".gz", ".xz", ".zst", ".bz2")):
                continue
            with contextlib.suppress(FileNotFoundError):
                if entry.is_file(follow_symlinks=False):
                    found.append((Path(entry.path), entry.stat(follow_symlinks=False)))
        return sorted(found, key=lambda one: (one[0].name == current, _stamp(*one), one[0].name))

    async def _read(self, path: Path, inode: int) -> bool | None:
        """Reads a file to its end; whether there was anything new, or None where it is not the one that was listed.

        None, too, where another process reads it.
        """
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return None  # renamed: it is found under its new name
        with file:
            facts = os.fstat(file.fileno())
            if facts.st_ino != inode:
                return None
            first = file.readline(_LINE_BYTES)
            is_new = False
            if first.endswith(b"\n") or len(first) == _LINE_BYTES:
                name = hashlib.sha256(first).hexdigest()
                progress = await self._known(path, file, name)
                while progress is not None and not self._patience.stopping.is_set():
                    lines, after = await asyncio.to_thread(_next_lines, file, progress, self._index.max_records)
                    if not lines:
                        self._seen[path] = _seen(facts)
                        break
                    is_new = True
                    progress = await self._apply(file, name, lines, progress, after)
                if progress is None:
                    return None
        return is_new

    async def _known(self, path: Path, file: BinaryIO, name: str) -> FileProgress | None:
        """Where to go on; at the beginning where what was read is not there any more."""
        progress = await self._patience.insist(
            "database", lambda: asyncio.to_thread(self._database.file_progress, name)
        )
        if progress is not None and progress.tail != _tail(file, progress.next_offset):
            # The service takes back what it could not write durably, and writes it anew. Records have their ids.
            log.warning("index.file_changed", path=str(path), offset=progress.next_offset)
            await self._patience.insist("database", lambda: asyncio.to_thread(self._database.begin_file_again, name))
            return FileProgress()
        return progress

    async def _apply(
        self, file: BinaryIO, name: str, lines: Sequence[Message], before: FileProgress, end: int
    ) -> FileProgress | None:
        """Applies lines; returns where to go on, or None if another process does."""
        position: FileProgress | None = before
        ends = dict(zip((one.offset for one in lines), [*(one.offset for one in lines[1:]), end], strict=True))

        async def together(part: Sequence[Placed]) -> MessageRefusedError | None:
            nonlocal position
            if position is None:
                return None
            begin, offset = position, ends[part[-1][1].offset]
            after = FileProgress(offset, _tail(file, offset))
            messages = [message for _, message in part]
            try:
                applied = await self._patience.insist(
                    "database",
                    lambda: asyncio.to_thread(self._database.apply_lines, self._name, name, messages, begin, after),
                )
            except MessageRefusedError as refused:
                return refused
            position = None if applied is None else after
            if applied is not None:
                self._totals.add(applied)
            return None

        await apply_each([(0, one) for one in lines], together, self._patience)
        return position


def _next_lines(file: BinaryIO, after: FileProgress, most: int) -> tuple[list[Message], int]:
    """The next whole lines, and where they end."""
    file.seek(after.next_offset)
    found: list[Message] = []
    end, size = after.next_offset, 0
    for value, offset, next_offset in _lines(file, after.next_offset):
        found.append(Message(offset, value))
        end, size = next_offset, size + len(value)
        if len(found) == most or size >= _BATCH_BYTES:
            break
    return found, end


def _lines(file: BinaryIO, offset: int) -> Iterator[tuple[bytes, int, int]]:
    """Whole lines without their ends, cut at the maximum; with their places."""
    while line := file.readline(_LINE_BYTES):
        end = offset + len(line)
        last = line
        while not last.endswith(b"\n"):
            last = file.readline(_LINE_BYTES)
            if not last:
                return  # not written to its end yet
            end += len(last)
        yield line.rstrip(b"\n"), offset, end
        offset = end


def _tail(file: BinaryIO, offset: int) -> str:
    length = min(offset, _TAIL_BYTES)
    return hashlib.sha256(os.pread(file.fileno(), length, offset - length)).hexdigest() if offset else ""


def _stamp(path: Path, facts: os.stat_result) -> str:
    """When the last line of a rotated file was written: in the names that we give, else by the file system."""
    found = _STAMP.search(path.name)
    if found:
        return found[1]
    return datetime.fromtimestamp(facts.st_mtime_ns / 1e9, UTC).strftime("%Y%m%dT%H%M%S%fZ")


def _seen(facts: os.stat_result) -> _Seen:
    return _Seen(facts.st_ino, facts.st_size, facts.st_mtime_ns)
