"""Half a million small instances: nothing grows, and the last ones are received as fast as the first."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from support.faults import TOPICS, Row, rounds
from support.load import Ledger, send
from support.service import ServiceProcess
from support.waiting import wait_until

StartService = Callable[..., ServiceProcess]
IS_FULL = "STORESCP_CRASH_ROUNDS" in os.environ
SENDERS = 8
SERIES = 250
TENTHS = 10
# In seconds a leak cannot be told from the rows that are in memory by turns: some 4,096 that are not in the database yet, and
# the batches of two topics, of about 2 KiB each.
MOST_GROWTH_KIB = 8192 if IS_FULL else 16384


@dataclass(frozen=True)
class Sample:
    """The service at one moment."""

    instances: int
    seconds: float
    rss_kib: int
    descriptors: int
    threads: int


@pytest.mark.timeout(0)
def test_nothing_grows_with_the_number_of_instances(start_service: StartService) -> None:
    count = rounds(500_000, 20_000)
    row = Row("R17 soak", count)
    service = start_service()
    ledger = Ledger()
    # What stays open once it was used, the files of the topics among it.
    send(service.port, "1.2.826.0.99.1.1", ledger, count=1)
    for topic in TOPICS:
        service.records(topic, count=1)
    at_rest = service.descriptors()

    def send_series(sender: int) -> None:
        series = 0
        while not ledger.stop.is_set():
            send(service.port, f"1.2.826.0.{sender}.{series}.1", ledger, count=SERIES)
            series += 1

    senders = [threading.Thread(target=send_series, args=(sender,)) for sender in range(SENDERS)]
    samples: list[Sample] = []
    gc.disable()  # the ledger grows, and looking through it again and again would slow down the senders
    try:
        for sender in senders:
            sender.start()
        for tenth in range(1, 2 * TENTHS + 1):
            goal = count * tenth / (2 * TENTHS)
            wait_until(lambda goal=goal: ledger.statuses[0] >= goal, 600)  # type: ignore[misc]
            samples.append(
                Sample(
                    ledger.statuses[0],
                    time.monotonic(),
                    service.rss_kib(),
                    service.descriptors(),
                    service.threads(),
                )
            )
    finally:
        ledger.stop.set()
        for sender in senders:
            sender.join(60)
        gc.enable()
    wait_until(lambda: service.descriptors() <= at_rest, 10, f"more than the {at_rest} descriptors of before")
    assert service.stop(120) == 0
    row.reconcile(service, ledger)
    settled = samples[TENTHS // 2 :]
    slope = (
        float(np.polyfit([one.instances for one in settled], [one.rss_kib for one in settled], 1)[0]) * 100_000 / 1024
    )
    rates = [
        (later.instances - sooner.instances) / (later.seconds - sooner.seconds)
        for sooner, later in zip(samples[:-2:2], samples[2::2], strict=True)
    ]
    row.remark = (
        f"RSS {settled[0].rss_kib >> 10} to {settled[-1].rss_kib >> 10} MiB ({slope:+.2f} MB per 100,000), "
        f"{min(one.descriptors for one in settled)} to {max(one.descriptors for one in settled)} descriptors, "
        f"{min(one.threads for one in settled)} to {max(one.threads for one in settled)} threads, "
        f"{rates[0]:.0f}/s at first and {rates[-1]:.0f}/s at last"
    )
    row.check()
    # An association more or less may be beginning or ending at the moment of a sample.
    assert settled[-1].threads <= settled[0].threads + SENDERS
    assert settled[-1].rss_kib - settled[0].rss_kib < MOST_GROWTH_KIB
    if IS_FULL:
        assert slope < 1
        assert rates[-1] >= 0.9 * rates[0]
