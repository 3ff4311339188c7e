"""Signals, heard at once whatever the main thread is doing."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator

_MANY = 64


@contextlib.contextmanager
def remembered(number: signal.Signals) -> Iterator[list[int]]:
    """From now on a signal does not end the process; the list has one entry for each that came. Main thread only.

    It is ignored afterwards: the interpreter gives other handlers up before the process ends.
    """
    came: list[int] = []
    signal.signal(number, lambda received, _frame: came.append(received))
    try:
        yield came
    finally:
        signal.signal(number, signal.SIG_IGN)


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

    # In this order no signal is lost: one that comes between the two is told twice.
    signal.set_wakeup_fd(outbox.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, lambda _number, _frame: None) for number in numbers}
    listener = threading.Thread(target=listen, name="storescp-signals", daemon=True)
    listener.start()
    try:
        yield listener.is_alive
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        outbox.close()
        listener.join()
        inbox.close()
