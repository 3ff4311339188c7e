"""Turns at transcoding in the pure engine: bounded, in order, and never for long."""

from __future__ import annotations

import threading
import time

from storescp.pure.pixels import Turns
from support.waiting import wait_until


def test_turns_come_in_the_order_of_asking_and_are_no_more_than_so_many() -> None:
    turns, served, at_once = Turns(2), list[int](), list[int]()
    running = 0
    lock, go_on = threading.Lock(), threading.Event()

    def ask(number: int) -> None:
        nonlocal running
        with turns.turn(20) as has_turn:
            assert has_turn
            with lock:
                running += 1
                at_once.append(running)
                served.append(number)
            assert go_on.wait(20)
            with lock:
                running -= 1

    threads = []
    for number in range(6):
        threads.append(threading.Thread(target=ask, args=(number,)))
        threads[-1].start()
        wait_until(lambda number=number: len(served) + len(turns._waiting) == number + 1)
    assert served == [0, 1]
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert sorted(served) == list(range(6))
    assert max(at_once) == 2


def test_who_waited_long_enough_leaves_and_the_next_one_is_served() -> None:
    turns = Turns(1)
    with turns.turn(20) as first:
        assert first
        began = time.monotonic()
        with turns.turn(0.2) as second:
            assert not second
        assert 0.2 <= time.monotonic() - began < 5
        assert not turns._waiting
    with turns.turn(0.01) as third:
        assert third
