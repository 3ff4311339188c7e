"""Half a million small instances: nothing grows, and the last ones are received as fast as the first."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from support.faults import TOPICS, Row, rounds
from support.load import Ledger, send
from support.memory import fill_page_cache
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
    cpu_seconds: float
    senders_cpu_seconds: float
    rss_kib: int
    descriptors: int
    threads: int


@dataclass(frozen=True)
class Tenth:
    """Between two samples: instances a second, and microseconds of processor time for each."""

    rate: float
    service_us: float
    senders_us: float

    @classmethod
    def between(cls, sooner: Sample, later: Sample) -> Tenth:
        count = later.instances - sooner.instances
        return cls(
            count / (later.seconds - sooner.seconds),
            (later.cpu_seconds - sooner.cpu_seconds) * 1e6 / count,
            (later.senders_cpu_seconds - sooner.senders_cpu_seconds) * 1e6 / count,
        )

    def __str__(self) -> str:
        return f"{self.rate:6.0f}/s, {self.service_us:.0f} us of the service, {self.senders_us:.0f} us of the senders"


@pytest.mark.timeout(0)
def test_nothing_grows_with_the_number_of_instances(start_service: StartService, tmp_path: Path) -> None:
    count = rounds(500_000, 20_000)
    row = Row("R17 soak", count)
    if IS_FULL:
        # Else the first are stored in memory that the machine has at hand, and the last in what its host has to find.
        fill_page_cache(tmp_path / "page-cache")
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
                    service.cpu_seconds(),
                    time.process_time(),
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
    tenths = [Tenth.between(*pair) for pair in zip(samples[:-2:2], samples[2::2], strict=True)]
    first, last = tenths[0], tenths[-1]
    # The senders do the same for each instance: what more it takes them is the machine's.
    slower_machine = last.senders_us / first.senders_us
    print("\n".join(str(tenth) for tenth in tenths))
    row.remark = (
        f"RSS {settled[0].rss_kib >> 10} to {settled[-1].rss_kib >> 10} MiB ({slope:+.2f} MB per 100,000), "
        f"{min(one.descriptors for one in settled)} to {max(one.descriptors for one in settled)} descriptors, "
        f"{min(one.threads for one in settled)} to {max(one.threads for one in settled)} threads, "
        f"{first.rate:.0f}/s at first and {last.rate:.0f}/s at last, "
        f"when the machine took {slower_machine:.2f} times as long for what the senders do"
    )
    row.check()
    # An association more or less may be beginning or ending at the moment of a sample.
    assert settled[-1].threads <= settled[0].threads + SENDERS
    assert settled[-1].rss_kib - settled[0].rss_kib < MOST_GROWTH_KIB
    if IS_FULL:
        assert slope < 1
        assert last.rate >= 0.9 * first.rate
