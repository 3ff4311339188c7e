"""Waiting for something that comes of itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_LOOK_SECONDS = 0.01


def wait_until(condition: Callable[[], bool], seconds: float = 20, what: str = "it did not come") -> float:
    """Looks again and again; how long it took."""
    began = time.monotonic()
    pause = threading.Event()
    while not condition():
        assert time.monotonic() - began < seconds, what
        pause.wait(_LOOK_SECONDS)
    return time.monotonic() - began
