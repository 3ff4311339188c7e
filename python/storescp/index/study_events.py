"""The events of studies: made when they are due, then published and handed to a command, each at least once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog
from sqlalchemy.exc import StatementError

from storescp.index.events import Kind, Origin, StudyEvent, Timers
from storescp.index.patience import Patience, describe
from storescp.publish.sink import Outcome, Sink, SinkError
from storescp.settings import Events

log = structlog.get_logger("storescp.index")
_LOOK_SECONDS = 1.0
# Between attempts of what failed.
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0
_END_SECONDS = 5.0


@dataclass(frozen=True)
class Row:
    """An event as the sinks of records take it."""

    id: int
    event: StudyEvent

    @property
    def ready(self) -> int:
        """Not used by sinks."""
        return self.id

    @property
    def trace_id(self) -> str:
        """What tells two deliveries of one event: its id."""
        return self.event.id

    @property
    def key(self) -> str:
        """`tenant_id/study_uid`."""
        return self.event.study

    @property
    def payload(self) -> bytes:
        """The message, JSON (UTF-8)."""
        return self.event.message.encode()


class Delivery(Protocol):
    """Takes events, the oldest first, at most `most` at once."""

    most: int

    def paused(self) -> list[tuple[str, str]]:
        """Studies whose events are not to be tried now."""

    async def deliver(self, rows: Sequence[Row]) -> Outcome:
        """What became of them.

        Raises:
            SinkError: nothing can be delivered now.
        """

    async def stop(self) -> None:
        """Lets go."""


class Topic:
    """To a topic, or the JSON lines of that name."""

    most = 500

    def __init__(self, sink: Sink, topic: str) -> None:
        self._sink = sink
        self._topic = topic

    def paused(self) -> list[tuple[str, str]]:
        """None."""
        return []

    async def deliver(self, rows: Sequence[Row]) -> Outcome:
        """Publishes."""
        return await self._sink.publish(self._topic, rows)

    async def stop(self) -> None:
        """Closes the sink."""
        await self._sink.stop()


class Command:
    """A program that is run for each event, one at a time, with the message on its standard input.

    Exit status 0 means delivered. Everything else, and a run that takes longer than `timeout` seconds, is a failure:
    the events of that study are tried again after a pause that grows from 1 s to 60 s, and is at least as long as the
    run was. Meanwhile the others go on.
    """

    most = 1

    def __init__(self, arguments: Sequence[str], timeout: float) -> None:
        self._arguments = list(arguments)
        self._timeout = timeout
        # By study: failures in a row, and when it may be tried again.
        self._failed: dict[tuple[str, str], tuple[int, float]] = {}

    def paused(self) -> list[tuple[str, str]]:
        """Studies of which an event failed lately."""
        return [study for study, (_, until) in self._failed.items() if time.monotonic() < until]

    async def deliver(self, rows: Sequence[Row]) -> Outcome:
        """Runs the program for each."""
        outcome = Outcome()
        for row in rows:
            study, began = row.event.key[:2], time.monotonic()
            reason = await self._run(row.payload)
            now = time.monotonic()
            if reason is None:
                self._failed.pop(study, None)
                outcome.delivered.append(row.id)
                continue
            failures = self._failed.get(study, (0, 0.0))[0]
            pause = max(now - began, min(_FIRST_PAUSE_SECONDS * 2**failures, _LONGEST_PAUSE_SECONDS))
            self._failed[study] = (failures + 1, now + pause)
            log.warning("index.command_failed", event_id=row.event.id, reason=reason, retry_seconds=round(pause, 1))
        return outcome

    async def stop(self) -> None:
        """Nothing: a run ends when its task is cancelled."""

    async def _run(self, message: bytes) -> str | None:
        """Why it failed, or nothing."""
        try:
            process = await asyncio.create_subprocess_exec(
                *self._arguments, stdin=asyncio.subprocess.PIPE, start_new_session=True
            )
        except OSError as error:
            return f"{self._arguments[0]}: {error.strerror}"
        try:
            async with asyncio.timeout(self._timeout):
                await process.communicate(message)
        except TimeoutError:
            return f"it did not end within {self._timeout:g} s"
        finally:
            if process.returncode is None:
                # With what it has started.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        return None if process.returncode == 0 else f"exit status {process.returncode}"


def deliveries_to(sink: Sink, events: Events, command: Command | None) -> dict[Kind, Delivery]:
    """Where events go: to the topic, where it has a name, and to the command, where there is one."""
    found: dict[Kind, Delivery] = {"to_publish": Topic(sink, events.topic)} if events.topic else {}
    return found | ({"to_run": command} if command else {})


class StudyEvents:
    """Makes and delivers the events of what a worker reads."""

    def __init__(
        self,
        timers: Timers,
        settings: Events,
        patience: Patience,
        deliveries: dict[Kind, Delivery],
        origin: Callable[[], Origin],
    ) -> None:
        self._timers = timers
        self._settings = settings
        self._patience = patience
        self._deliveries = deliveries
        self._origin = origin
        self._made = {kind: asyncio.Event() for kind in deliveries}
        self._busy = {kind: asyncio.Lock() for kind in deliveries}
        self._ids = itertools.count()
        self._known: dict[str, int] = {}

    async def due(self, origin: Origin) -> tuple[float, set[int]] | None:
        """Now by the clock of the database, and the partitions that have timers which are due; None if told to stop."""
        quiet, force = self._settings.quiet, self._settings.force
        return await self._patience.insist(
            "database", lambda: asyncio.to_thread(self._timers.due, origin, quiet=quiet, force=force)
        )

    async def fire(self, origin: Origin, at: float) -> None:
        """Makes the events that are due at a moment up to which everything is applied."""
        quiet, force, wanted = self._settings.quiet, self._settings.force, list(self._deliveries)
        count = await self._patience.insist(
            "database",
            lambda: asyncio.to_thread(self._timers.fire, origin, at, quiet=quiet, force=force, wanted=wanted),
        )
        if count:
            log.info("index.study_events", count=count)
            for one in self._made.values():
                one.set()

    @contextlib.asynccontextmanager
    async def delivering(self) -> AsyncIterator[None]:
        """Delivers beside what is done within."""
        tasks = [asyncio.create_task(self._deliver(kind, to)) for kind, to in self._deliveries.items()]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for to in self._deliveries.values():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_END_SECONDS):
                        await to.stop()

    async def deliver_pending(self) -> None:
        """What there is, as far as it can be delivered now."""
        for kind, to in self._deliveries.items():
            failure, more = None, True
            while failure is None and more:
                async with self._busy[kind]:
                    failure, more = await self._deliver_some(kind, to)
            if failure is not None:
                log.warning("index.study_events_pending", reason=failure)

    async def _deliver(self, kind: Kind, to: Delivery) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            self._made[kind].clear()
            async with self._busy[kind]:
                failure, more = await self._deliver_some(kind, to)
            if failure is None:
                pause = _FIRST_PAUSE_SECONDS
                if not more:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_SECONDS):
                            await self._made[kind].wait()
                continue
            log.warning("index.waiting", on="study events", reason=failure, retry_seconds=pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    async def _deliver_some(self, kind: Kind, to: Delivery) -> tuple[str | None, bool]:
        """Why nothing more can be delivered now, if so; and whether there may be more."""
        events = await self._patience.insist(
            "database", lambda: asyncio.to_thread(self._timers.pending, self._origin(), kind, to.most, to.paused())
        )
        if not events:
            return None, False
        rows = [Row(self._known.setdefault(f"{kind} {one.id}", next(self._ids)), one) for one in events]
        try:
            outcome = await to.deliver(rows)
        except SinkError as error:
            return str(error), False
        for number, reason in outcome.rejected:
            refused = next(row for row in rows if row.id == number)
            log.error("index.study_event_refused", event_id=refused.event.id, reason=reason)
        over = {*outcome.delivered, *(number for number, _ in outcome.rejected)}
        done = [row.event for row in rows if row.id in over]
        try:
            await asyncio.to_thread(self._timers.done, done, kind)
        except StatementError as error:
            return describe(error), False  # they are delivered once more
        for one in done:
            del self._known[f"{kind} {one.id}"]
        return outcome.failure, len(rows) == to.most
