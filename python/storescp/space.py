"""Free space of the storage roots against `storage.min_free_bytes`: one line of the log for each turn."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import structlog

from storescp.settings import Settings

log = structlog.get_logger("storescp.service")
_LOOK_SECONDS = 5.0
_END_SECONDS = 5.0
LOW_SPACE = "storage: less free space than configured"


def roots_of(settings: Settings) -> list[Path]:
    """The storage root, and those of tenants that have one of their own."""
    own = (entry.storage_root for entry in settings.tenants.settings)
    return list(dict.fromkeys([settings.storage.root, *(root for root in own if root is not None)]))


def low_space_reason(root: Path, free_bytes: int, min_free_bytes: int) -> str:
    """The refusal of the engine, with the storage root and the numbers that it is about."""
    return f"{LOW_SPACE}: {root} has {free_bytes} bytes free, and storage.min_free_bytes is {min_free_bytes}"


class SpaceWatch:
    """Looks at each root every five seconds, in a thread of its own: a disk that hangs holds up nothing else."""

    def __init__(self, roots: Sequence[Path], min_free_bytes: int, look_seconds: float = _LOOK_SECONDS) -> None:
        self._roots = roots
        self._least = min_free_bytes
        self._look_seconds = look_seconds
        self._low: set[Path] = set()
        self._unknown: set[Path] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="storescp-space", daemon=True)

    def start(self) -> None:
        """Begins to look again and again."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, unless its disk hangs."""
        self._stopping.set()
        self._thread.join(_END_SECONDS)

    def look(self) -> None:
        """Logs each root that has too little room since the last look, or has enough again."""
        for root in self._roots:
            try:
                free = shutil.disk_usage(root).free
            except OSError as error:
                if root not in self._unknown:
                    log.warning("storage.space_unknown", storage=str(root), reason=error.strerror)
                self._unknown.add(root)
                continue
            self._unknown.discard(root)
            self._note(root, free)

    def _note(self, root: Path, free: int) -> None:
        is_low = free < self._least
        if is_low == (root in self._low):
            return
        facts = {"storage": str(root), "free_bytes": free, "min_free_bytes": self._least}
        if is_low:
            self._low.add(root)
            text = "no instance is accepted until more space is free on the disk of the storage root"
            log.warning("storage.low_space", text=text, **facts)
        else:
            self._low.remove(root)
            log.info("storage.enough_space", text="instances are accepted on this storage root again", **facts)

    def _watch(self) -> None:
        while not self._stopping.wait(self._look_seconds):
            self.look()
