"""Signals, heard at once whatever the main thread is doing."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator

_MANY = 64


@contextlib.contextmanager
def listening(numbers: tuple[signal.Signals, ...], heard: Callable[[int], None]) -> Iterator[Callable[[], bool]]:
    """Calls `heard` with the number of each signal, in a thread of its own. Only for the main thread.

    Gives what says whether that thread is alive.

    A handler of Python runs in the main thread alone, some time after the signal; it may interrupt that thread while it
    holds the lock of an event, which the handler cannot set then. The byte that the interpreter writes to a socket is
    written at once, by whichever thread the kernel chose.
    """
    inbox, outbox = socket.socketpair()
    outbox.setblocking(False)

    def listen() -> None:
        while received := inbox.recv(_MANY):
            for number in received:
                if number in numbers:
                    heard(number)

    before = {number: signal.signal(number, lambda _number, _frame: None) for number in numbers}
    signal.set_wakeup_fd(outbox.fileno(), warn_on_full_buffer=False)
    listener = threading.Thread(target=listen, name="storescp-signals", daemon=True)
    listener.start()
    try:
        yield listener.is_alive
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
        outbox.close()
        listener.join()
        inbox.close()
