"""An outbox whose end is torn or whose pages are damaged: the service starts, and every stored instance has its record."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from support.faults import Row, kill_under_load, rounds
from support.load import Ledger
from support.service import ServiceProcess

StartService = Callable[..., ServiceProcess]
PAGE = 4096
LOG_HEADER = 32


def tear_behind_the_log(folder: Path) -> None:
    with (folder / "outbox.sqlite-wal").open("ab") as log:
        log.write(random.randbytes(random.randint(1, 3 * PAGE)))


def cut_the_log(folder: Path) -> None:
    log = folder / "outbox.sqlite-wal"
    os.truncate(log, random.randint(0, log.stat().st_size))


def write_over(file: Path, count: int) -> None:
    pages = file.stat().st_size // PAGE
    with file.open("r+b") as content:
        for _ in range(count):
            content.seek(random.randrange(max(1, pages)) * PAGE)
            content.write(random.randbytes(PAGE))


def write_over_the_log(folder: Path) -> None:
    write_over(folder / "outbox.sqlite-wal", 1)


def write_over_pages(folder: Path) -> None:
    (folder / "outbox.sqlite-wal").unlink()
    write_over(folder / "outbox.sqlite", random.randint(1, 5))


def cut_the_file(folder: Path) -> None:
    (folder / "outbox.sqlite-wal").unlink()
    file = folder / "outbox.sqlite"
    os.truncate(file, random.randint(0, file.stat().st_size))


def lose_the_file(folder: Path) -> None:
    for file in folder.glob("outbox.sqlite*"):
        if ".damaged-" not in file.name:
            file.unlink()


def write_over_the_journal(folder: Path) -> None:
    for file in folder.glob("journal-*"):
        write_over(file, 100)


def lose_the_journal(folder: Path) -> None:
    for file in folder.glob("journal-*"):
        file.unlink()


def lose_everything(folder: Path) -> None:
    lose_the_file(folder)
    lose_the_journal(folder)


FAULTS = (
    tear_behind_the_log,
    cut_the_log,
    write_over_the_log,
    write_over_pages,
    cut_the_file,
    lose_the_file,
    write_over_the_journal,
    lose_the_journal,
    lose_everything,
)


@pytest.mark.timeout(0)
def test_a_damaged_outbox_loses_no_record(start_service: StartService) -> None:
    row = Row("R16 torn log, damaged or lost pages of outbox and journal", rounds(108, 9))
    ledger = Ledger()
    root = None
    recorded: Counter[str] = Counter()
    put_aside = 0
    for number in range(row.rounds):
        fault = FAULTS[number % len(FAULTS)]
        service = start_service(root=root)
        root = service.root
        kill_under_load(service, ledger, f"1.2.826.0.{number}", senders=4, after=(20, 80))
        fault(root / ".outbox")
        row.interrupted(root)
        service = start_service(root=root)
        row.started(service)
        found = service.wait_for_event("recovery.finished", 60)
        recorded[fault.__name__] += found["recorded"]
        if damaged := service.events("outbox.damaged"):
            assert Path(damaged[0]["kept_as"]).exists()
            put_aside += 1
        if fault is tear_behind_the_log:
            assert (found["recorded"], damaged) == (0, []), "what is torn was never acknowledged"
        assert found["records_without_file"] == 0
        assert service.stop() == 0
    assert len(list((root or Path()).glob(".outbox/outbox.sqlite.damaged-*Z"))) == put_aside > 0
    assert sum(recorded.values()) > 0
    row.remark = f"put aside {put_aside} times, {sum(recorded.values())} records made anew"
    row.reconcile(service, ledger, recreated=ledger.digests)
    row.check()
