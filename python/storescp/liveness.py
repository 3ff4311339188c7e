"""Whether the threads that must live do.

Every answer comes from memory: neither a disk nor a broker can hold it up.
"""

from __future__ import annotations

import time
from collections.abc import Callable

# The main loop comes round once a second. So late, it hangs.
HEARTBEAT_SECONDS = 30.0


class Liveness:
    """What must live, by name, and the heartbeat of the main thread.

    A heartbeat is expected from the first one on until `rest`: to start and to drain takes as long as it takes.
    """

    def __init__(self) -> None:
        self._checks: dict[str, Callable[[], bool]] = {}
        self._beat_at: float | None = None

    def watch(self, name: str, is_alive: Callable[[], bool]) -> None:
        """Something that must live from now on. `is_alive` answers at once."""
        self._checks[name] = is_alive

    def beat(self) -> None:
        """The main thread has come round."""
        self._beat_at = time.monotonic()

    def rest(self) -> None:
        """No heartbeat is expected any more."""
        self._beat_at = None

    def dead(self) -> list[str]:
        """What must live and does not."""
        dead = [name for name, is_alive in self._checks.copy().items() if not is_alive()]
        beat_at = self._beat_at
        if beat_at is not None and time.monotonic() - beat_at > HEARTBEAT_SECONDS:
            dead.append("main thread")
        return dead
