"""Records as JSON lines: `{root}/.outbox/events/TOPIC.jsonl`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from storescp.durable import sync_folder
from storescp.engine import QueuedRecord
from storescp.publish.sink import Outcome, SinkError

_TAIL_BYTES = 64 * 1024


class JsonLinesSink:
    """One write for each batch, synced before the batch counts as published.

    A batch that was interrupted leaves a torn last line; it is cut when the file is opened.
    """

    def __init__(self, folder: Path, topics: Sequence[str], *, sync: bool = True) -> None:
        self._folder = folder
        self._topics = tuple(topics)
        self._sync = sync
        self._files: dict[str, int] = {}

    async def publish(self, topic: str, rows: Sequence[QueuedRecord]) -> Outcome:
        """Appends rows."""
        if not self._files:
            self._open_all()
        file = self._files[topic]
        lines = b"\n".join([*(row.payload for row in rows), b""])
        size = os.fstat(file).st_size
        try:
            if os.write(file, lines) != len(lines):
                os.ftruncate(file, size)
                raise SinkError(f"{topic}.jsonl: short write")
            if self._sync:
                os.fdatasync(file)
        except OSError as error:
            os.ftruncate(file, size)
            raise SinkError(f"{topic}.jsonl: {error.strerror}") from None
        return Outcome(delivered=[row.id for row in rows])

    def _open_all(self) -> None:
        files: dict[str, int] = {}
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for topic in self._topics:
                files[topic] = self._open(self._folder / f"{topic}.jsonl")
            if self._sync:
                sync_folder(self._folder)
                # It may be new, too.
                sync_folder(self._folder.parent)
        except OSError as error:
            for file in files.values():
                os.close(file)
            raise SinkError(f"{error.filename}: {error.strerror}") from None
        self._files = files

    def complaint(self) -> str:
        """Nothing."""
        return ""

    async def stop(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()

    @staticmethod
    def _open(path: Path) -> int:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
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
        return file
