"""What only the disk knows, for endpoints that answer also while it hangs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import structlog

from storescp.engine import Engine
from storescp.errors import CoreError
from storescp.http.health import Probe
from storescp.settings import Storage as StorageSettings
from storescp.space import LOW_SPACE, low_space_reason

log = structlog.get_logger("storescp.http")
NO_ANSWER = "storage does not answer"
_ANSWER_SECONDS = 0.5
T = TypeVar("T")


@dataclass(frozen=True)
class Disk:
    """The file system of the storage root."""

    free_bytes: int
    total_bytes: int
    unavailable: str | None  # why no instance can be taken, as far as the engine knows
    set_aside: int  # records that a topic refused


@dataclass(frozen=True)
class Lag:
    """How far a topic is behind: records that are pending, and that are set aside."""

    pending: int
    oldest: float | None  # when the oldest pending one was received; seconds since 1970
    set_aside: int


class Slow(Generic[T]):
    """A question that a hanging disk holds up: asked in a thread of its own, and not again before it is answered.

    `last` is the last answer, none before the first; `failure` is why it is older than the last question.
    """

    def __init__(self, part: str, question: Callable[[], T]) -> None:
        self.last: T | None = None
        self.failure: str | None = None
        self._part = part
        self._question = question
        self._asked: asyncio.Future[T] | None = None

    async def ask(self) -> None:
        """Asks, and waits half a second at most: `last` and `failure` say what came of it."""
        if self._asked is None or self._asked.done():
            self._asked = asyncio.get_running_loop().create_future()
            # An error that comes when nobody waits any more is no news.
            self._asked.add_done_callback(lambda done: done.exception())
            name = f"storescp-http-{self._part}"
            threading.Thread(target=self._answer, args=(self._asked,), name=name, daemon=True).start()
        asked = self._asked
        await asyncio.wait({asked}, timeout=_ANSWER_SECONDS)
        if not asked.done():
            self._fail(NO_ANSWER)
            return
        try:
            self.last = asked.result()
        except OSError as error:
            self._fail(f"storage: {error.strerror}")
        except (CoreError, sqlite3.Error) as error:
            self._fail(str(error))
        else:
            self.failure = None

    def _fail(self, reason: str) -> None:
        if self.failure is None:
            log.warning("http.stale", part=self._part, reason=reason)
        self.failure = reason

    def _answer(self, asked: asyncio.Future[T]) -> None:
        try:
            tell = partial(asked.set_result, self._question())
        except BaseException as error:  # noqa: BLE001 - it is raised where it was asked
            tell = partial(asked.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            asked.get_loop().call_soon_threadsafe(tell)


class Storage:
    """Disk and outbox of a running service."""

    def __init__(self, probe: Probe) -> None:
        storage, engine = probe.settings.storage, probe.engine
        self.disk = Slow("disk", lambda: _disk(storage, engine))
        self.outbox = Slow("outbox", lambda: [_lag(engine, number) for number in range(len(probe.topics))])
        self.parts: dict[str, Slow[Any]] = {"disk": self.disk, "outbox": self.outbox}

    async def refresh(self) -> None:
        """Asks for everything; what does not come in half a second stays as it was."""
        await asyncio.gather(self.disk.ask(), self.outbox.ask())

    def reasons(self) -> list[str]:
        """Why no instance can be taken."""
        if self.disk.failure is not None:
            return [self.disk.failure]
        unavailable = self.disk.last.unavailable if self.disk.last else None
        return [unavailable] if unavailable else []


def notes(probe: Probe, storage: Storage) -> list[str]:
    """What should be known of records although instances are taken: without patient data, and without the reasons."""
    set_aside = storage.disk.last.set_aside if storage.disk.last else 0
    told = [f"{set_aside} record{'' if set_aside == 1 else 's'} set aside"] if set_aside else []
    since = {topic: at.isoformat(timespec="seconds") for topic, at in list(probe.publisher.silent_since.items())}
    return [*told, *(f"topic {topic} gets nothing since {since[topic]}" for topic in sorted(since))]


def _disk(storage: StorageSettings, engine: Engine) -> Disk:
    unavailable = engine.unavailable()
    found = os.statvfs(storage.root)
    free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    if unavailable == LOW_SPACE:
        unavailable = low_space_reason(storage.root, free, storage.min_free_bytes)
    return Disk(free, total, unavailable, engine.outbox_backlog()[1])


def _lag(engine: Engine, number: int) -> Lag:
    pending, oldest, set_aside = engine.outbox_lag(number)
    return Lag(pending, None if oldest is None else oldest / 1e6, set_aside)
