"""Signals are heard whatever the main thread does, and whichever thread the kernel hands them to."""

from __future__ import annotations

import os
import signal
import threading

from storescp.signals import listening


def test_a_signal_is_heard_while_the_main_thread_cannot_handle_it() -> None:
    heard: list[int] = []
    came, over = threading.Event(), threading.Event()

    def hear(number: int) -> None:
        heard.append(number)
        came.set()

    # A thread that may be interrupted, while this one may not.
    other = threading.Thread(target=over.wait)
    other.start()
    before = signal.getsignal(signal.SIGHUP)
    with listening((signal.SIGHUP,), hear):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        try:
            os.kill(os.getpid(), signal.SIGHUP)
            assert came.wait(10)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
            over.set()
            other.join()
    assert heard == [signal.SIGHUP]
    assert signal.getsignal(signal.SIGHUP) is before
    assert signal.set_wakeup_fd(-1) == -1
