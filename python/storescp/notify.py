"""Telling systemd how the service is (sd_notify(3)), where it wants to know."""

from __future__ import annotations

import os
import socket
import time

import structlog

log = structlog.get_logger("storescp.notify")


def notify(state: str) -> None:
    """Sends a state, such as `READY=1`, to the socket that NOTIFY_SOCKET names, if it does."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # abstract
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as peer:
            peer.sendto(state.encode(), address)
    except OSError as error:
        log.warning("notify.failed", reason=str(error))


def notify_reloading() -> None:
    """The beginning of a reload; its end is `READY=1`."""
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


class Watchdog:
    """The watchdog of systemd (sd_watchdog_enabled(3)), where it is configured for this process.

    `interval` is the time between two pings in seconds, half of what systemd allows; none where there is no watchdog.
    """

    def __init__(self) -> None:
        microseconds = os.environ.get("WATCHDOG_USEC", "")
        is_ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        is_asked = is_ours and microseconds.isdecimal() and int(microseconds) > 0
        self.interval = int(microseconds) / 2e6 if is_asked else None
        self._pinged_at = float("-inf")

    def ping(self) -> None:
        """Says that the service works, where it is time to."""
        if self.interval is not None and time.monotonic() - self._pinged_at >= self.interval:
            self._pinged_at = time.monotonic()
            notify("WATCHDOG=1")
