"""The connections of the endpoints: how many, and how long one may be idle or take nothing.

uvicorn bounds them by answering 503 to everybody, probes included, while too many are open. Here the one that asks
nothing gives way to the one that comes.
"""

from __future__ import annotations

import asyncio
import socket

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

# Each has a descriptor, of which associations need more.
MOST_CONNECTIONS = 256
# From the connection, or the end of the last answer, to the last byte of a request's headers.
REQUEST_SECONDS = 5.0
# In which the system must take what is written, or the reader is gone.
TAKE_SECONDS = 10.0
_LOOK_SECONDS = 1.0
# asyncio accepts so many before it reads from any, and a connection that asked must not give way before it was read:
# of 2,000 probes in a flood of 2,700 idle connections a second, a dozen were lost without this.
_ACCEPTED_AT_ONCE = MOST_CONNECTIONS // 8


class Connection(H11Protocol):
    """A connection with deadlines; at the bound, the one that has been idle longest is closed."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn does
        """Makes room for it."""
        super().connection_made(transport)
        self.idle_since = self._taken_at = self.loop.time()
        self.is_over = False
        self._looking = self.loop.call_later(_LOOK_SECONDS, self._look)
        others = [one for one in self.connections if isinstance(one, Connection) and not one.is_over]
        others.remove(self)
        if len(others) >= MOST_CONNECTIONS:
            # Where all are being answered, the one that has been for longest.
            min(others, key=lambda one: (one.is_answering(), one.idle_since)).abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets it."""
        self.is_over = True
        self._looking.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """It may ask again, for a while."""
        self.idle_since = self.loop.time()
        super().on_response_complete()

    def is_answering(self) -> bool:
        """Whether a request is complete, and its answer is not."""
        return self.cycle is not None and not self.cycle.response_complete

    def _look(self) -> None:
        """Once a second: whether it still may stay."""
        now = self.loop.time()
        is_taking = self.transport.get_write_buffer_size() == 0
        if is_taking:
            self._taken_at = now
        is_idle = is_taking and not self.is_answering() and now - self.idle_since > REQUEST_SECONDS
        if is_idle or now - self._taken_at > TAKE_SECONDS:
            self.abort()
        else:
            self._looking = self.loop.call_later(_LOOK_SECONDS, self._look)

    def abort(self) -> None:
        """Closes it at once; what it was not given yet is lost."""
        self.is_over = True
        self._looking.cancel()
        self.transport.abort()


class Server(uvicorn.Server):
    """Accepts a few connections at a time, from a long listen queue."""

    def __init__(self, config: uvicorn.Config, backlog: int) -> None:
        """`backlog` is the length of the listen queue."""
        config.backlog = _ACCEPTED_AT_ONCE
        super().__init__(config)
        self._backlog = backlog

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens."""
        await super().startup(sockets)
        for listening in sockets or []:
            listening.listen(self._backlog)
