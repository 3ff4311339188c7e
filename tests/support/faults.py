"""The fault bench: how often a row runs, three ledgers compared, and one line about each row."""

from __future__ import annotations

import os
import random
import re
import struct
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from support.instances import Instance, ct_slice, dataset_of
from support.load import Ledger, digest, start_senders, study_of
from support.service import ServiceProcess

_ROUNDS = os.environ.get("STORESCP_CRASH_ROUNDS")
TOPICS = ("storage_queue", "log_queue")
# What survives the end of the process does so at each of them; a file has a name from the start at the first alone.
DURABILITIES = [{"STORESCP_LOCAL_STORAGE__DURABILITY": durability} for durability in ("full", "none")]
ONLY_WHERE_SYNCED = {"data_written", "journal_written", "journal_synced"}
ELSEWHERE = {"put_aside", "damaged_written", "damaged_noted", "damaged_named"}  # test_replaced.py, test_damaged.py


def rounds(full: int, few: int) -> int:
    """How often a row runs: a few times in the test suite, else as often as asked for, `full` at most."""
    return few if _ROUNDS is None else min(int(_ROUNDS), full)


def names_of_fail_points(environment: dict[str, str]) -> list[str]:
    command = [sys.executable, "-m", "storescp", "--version"]
    said = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True, timeout=30)
    found = re.search(r"with fail points ([a-z_ ]+)", said.stdout)
    assert found, said.stdout
    return found[1].split()


def slice_of_any_size(series: str, number: int) -> Instance:
    """Some are written at their end only, and some are spilled before."""
    return ct_slice(number, study=study_of(series), series=series, rows=random.choice((8, 64, 256)))


def kill_under_load(
    service: ServiceProcess, ledger: Ledger, prefix: str, *, senders: int, after: tuple[int, int]
) -> None:
    """Ends the process when so many instances, a random number in between, were acknowledged while senders go on."""
    threads = start_senders(service.port, ledger, senders=senders, count=100_000, prefix=prefix, make=slice_of_any_size)
    ledger.wait_for(random.randint(*after))
    service.kill()
    for thread in threads:
        thread.join(30)


def inodes(root: Path, *, beneath_tenants: bool = False) -> frozenset[int]:
    """Of all instances beneath a root: those of the tenants, and what was put aside."""
    if not root.is_dir():
        return frozenset()
    folders = [folder for folder in root.iterdir() if not folder.name.startswith(".")]
    if not beneath_tenants:
        folders += [root / ".quarantine", root / ".replaced"]
    return frozenset(file.stat().st_ino for folder in folders for file in folder.rglob("*.dcm"))


def is_whole(file: Path, digests: Collection[bytes]) -> bool:
    try:
        return digest(dataset_of(file)) in digests
    except (AssertionError, struct.error):  # not even a header
        return False


@dataclass
class Row:
    """What a row of the table says."""

    name: str
    rounds: int = 0
    acknowledged: int = 0
    lost: int = 0
    partial: int = 0
    missing: int = 0
    duplicated: int = 0
    deleted: int = 0
    quarantined: int = 0
    slowest_start: float = 0.0
    remark: str = ""
    found: frozenset[int] = frozenset()

    def interrupted(self, root: Path) -> None:
        """Notes the files that lie beneath the tenants before the next start."""
        self.found = inodes(root, beneath_tenants=True)

    def started(self, service: ServiceProcess) -> None:
        """Counts files that lay there before the start and are nowhere now."""
        self.slowest_start = max(self.slowest_start, service.ready_seconds)
        self.deleted += len(self.found - inodes(service.root))
        self.found = frozenset()
        self.quarantined = len(list(service.root.glob(".quarantine/*.dcm")))

    def reconcile(self, service: ServiceProcess, ledger: Ledger, *, recreated: Collection[str] = ()) -> None:
        """Compares what senders saw with disk and topics, of a service that has stopped.

        `recreated`: instances whose record may have been made anew, with another trace id.
        """
        self.compare(service, ledger)
        stored = {file.stem: file for file in service.files()}
        for topic in TOPICS:
            traces: dict[str, set[str]] = {}
            for record in service.records(topic):
                uid = record["sop_uid"]
                traces.setdefault(uid, set()).add(record["trace_id"])
                assert record["file_size"] == stored[uid].stat().st_size, "a record of another file"
            once = [uid for uid in traces if uid not in recreated]
            assert all(len(traces[uid]) == 1 for uid in once), "a duplicate carries another trace_id"

    def compare(self, service: ServiceProcess, ledger: Ledger) -> None:
        """Counts, also where it ends badly."""
        self.acknowledged = len(ledger.uids)
        stored = {file.stem: file for file in service.files()}
        self.lost = len(ledger.uids - set(stored))
        self.partial = sum(not is_whole(file, ledger.digests[uid]) for uid, file in stored.items())
        self.missing = self.duplicated = 0
        for topic in TOPICS:
            recorded = [record["sop_uid"] for record in service.records(topic)]
            self.missing += len(ledger.uids - set(recorded))
            self.duplicated += len(recorded) - len(set(recorded))

    def check(self) -> None:
        """Prints the line; nothing acknowledged may be lost, partial or missing, and no file deleted."""
        print(f"\n{self}")
        assert (self.lost, self.partial, self.missing, self.deleted) == (0, 0, 0, 0), str(self)

    def __str__(self) -> str:
        line = (
            f"{self.name}: {self.rounds} rounds, {self.acknowledged} acknowledged, {self.lost} lost, "
            f"{self.partial} partial, {self.missing} missing, {self.duplicated} duplicated, {self.deleted} deleted, "
            f"{self.quarantined} in quarantine"
        )
        line += f", ready in {self.slowest_start:.2f} s at most" if self.slowest_start else ""
        return line + (f"; {self.remark}" if self.remark else "")
