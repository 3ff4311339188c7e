"""Waiting for what is away: a database, a broker."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from aiokafka import errors
from sqlalchemy.exc import StatementError

log = structlog.get_logger("storescp.index")
T = TypeVar("T")
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0
CLIENT_ERRORS = (errors.KafkaError, OSError, TimeoutError)


class Patience:
    """Tries until something works, or until it is told to stop."""

    def __init__(self) -> None:
        self.stopping = asyncio.Event()

    async def insist(self, what: str, attempt: Callable[[], Awaitable[T]]) -> T | None:
        """Tries until it works; nothing if told to stop meanwhile."""
        pause = FIRST_PAUSE_SECONDS
        while not self.stopping.is_set():
            try:
                return await attempt()
            except (StatementError, *CLIENT_ERRORS) as error:
                log.warning("index.waiting", on=what, reason=describe(error), retry_seconds=pause)
            await self.pause(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
        return None

    async def pause(self, seconds: float) -> None:
        """Waits, but not when told to stop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.stopping.wait()


def describe(error: Exception) -> str:
    """The text of a database's or client's error: its first line, because others may show values."""
    text = str(error.orig) if isinstance(error, StatementError) else str(error)
    return text.strip().partition("\n")[0] or type(error).__name__
