"""Files that a disk has damaged, or cannot read, at a start: the service starts, nothing is deleted, each is reported."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.faults import Row, inodes, kill_under_load, rounds
from support.instances import CT, Instance, ct_slice
from support.load import CONTEXTS, Ledger
from support.mounts import require_mounts
from support.scu import RawAssociation
from support.service import ServiceProcess
from support.waiting import wait_until

StartService = Callable[..., ServiceProcess]
SERIES = "1.2.826.0.5.1"
# The end comes when an instance was answered, before its row leaves the journal.
JUST_ANSWERED = {"STORESCP_FAIL_POINT": "answered:{}"}


def store(service: ServiceProcess, numbers: range, *, rows: int = 16) -> list[Instance]:
    """Instances that were answered with success, before the process ended."""
    stored = []
    with RawAssociation(service.port, CONTEXTS) as association:
        for number in numbers:
            one = ct_slice(number, study="1.2.826.0.5", series=SERIES, rows=rows)
            if association.store(1, CT, one.sop_instance, one.dataset).status == 0:
                stored.append(one)
    return stored


def file_of(service: ServiceProcess, one: Instance) -> Path:
    [file] = [file for file in service.files() if file.stem == one.sop_instance]
    return file


def flip_a_byte(file: Path) -> None:
    at = random.randrange(400, file.stat().st_size)
    with file.open("r+b") as content:
        content.seek(at)
        [byte] = content.read(1)
        content.seek(at)
        content.write(bytes([byte ^ 1 << random.randrange(8)]))


def verified(root: Path) -> set[tuple[str, str]]:
    """Kind and name of each finding of `storescpd verify`."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("STORESCP_")}
    command = [sys.executable, "-m", "storescp", "-o", str(root), "verify"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert done.returncode == bool(lines), done.stderr
    return {(line[0], Path(line[1]).stem) for line in lines}


def answered_and_killed(
    start_service: StartService, fail_points: dict[str, str], count: int, root: Path | None = None
) -> tuple[ServiceProcess, list[Instance]]:
    """A service that ended behind the answer to the last of `count` instances: their rows are only in the journal."""
    point = {key: value.format(count) for key, value in JUST_ANSWERED.items()}
    service = start_service(root=root, env=fail_points | point)
    with RawAssociation(service.port, CONTEXTS) as association:
        stored = [ct_slice(number, study="1.2.826.0.5", series=SERIES, rows=16) for number in range(count + 1)]
        for one in stored[:count]:
            assert association.store(1, CT, one.sop_instance, one.dataset).status == 0
        last = stored[count]
        association.store(1, CT, last.sop_instance, last.dataset)
    assert service.process.wait(20) < 0
    return service, stored


@pytest.mark.timeout(0)
def test_a_byte_that_flips_costs_no_file_and_no_start(start_service: StartService) -> None:
    """R19: in files acknowledged a moment before kill -9, and in those of long before."""
    row = Row("R19 a byte flipped in files of the last moment and of long before", rounds(100, 6))
    ledger = Ledger()
    root: Path | None = None
    flipped: set[str] = set()
    for number in range(row.rounds):
        service = start_service(root=root)
        root = service.root
        kill_under_load(service, ledger, f"1.2.826.0.{number}", senders=4, after=(10, 60))
        whole = [file for file in service.files() if file.stem not in flipped]
        for file in random.sample(whole, 3) + whole[-2:]:
            flip_a_byte(file)
            flipped.add(file.stem)
        row.interrupted(root)
        service = start_service(root=root)
        row.started(service)
        service.wait_for_event("recovery.finished", 30)
        assert service.stop() == 0
    quarantined = {json.loads(note.read_bytes())["record"]["sop_uid"] for note in root.glob(".quarantine/*.json")}  # type: ignore[union-attr]
    reported = {name for kind, name in verified(service.root) if kind in {"changed", "unreadable", "quarantined"}}
    assert quarantined <= flipped
    assert flipped <= quarantined | reported
    stored = {file.stem for file in service.files()}
    for topic in ("storage_queue", "log_queue"):
        recorded = {record["sop_uid"] for record in service.records(topic)}
        assert (ledger.uids & stored) <= recorded, "what is where it belongs has its record"
    assert ledger.uids <= stored | quarantined
    row.acknowledged = len(ledger.uids)
    row.remark = f"{len(flipped)} flipped, {row.quarantined} in quarantine"
    print(f"\n{row}")
    assert row.deleted == 0
    assert row.slowest_start < 2


def test_a_file_that_changed_before_its_row_left_the_journal_goes_to_quarantine(
    start_service: StartService, fail_points: dict[str, str]
) -> None:
    service, stored = answered_and_killed(start_service, fail_points, 6)
    # Its row has had no time to leave the journal; those of the others may have been published before the kill.
    lost = stored[6]
    victim = file_of(service, lost)
    flip_a_byte(victim)
    before = inodes(service.root, beneath_tenants=True)
    damaged = victim.read_bytes()
    service = start_service(root=service.root)
    told = service.wait_for_event("storage.quarantined")
    assert told["count"] == 1
    assert victim.name in told["paths"][0]
    assert before == inodes(service.root), "nothing is deleted"
    assert not victim.exists()
    [file] = service.root.glob(".quarantine/*.dcm")
    note = json.loads(file.with_suffix(".json").read_bytes())
    assert file.read_bytes() == damaged
    assert note["record"]["sop_uid"] == lost.sop_instance
    assert note["path"] == str(victim.relative_to(service.root))
    assert service.root.joinpath(".quarantine").stat().st_mode & 0o777 == 0o700
    others = {one.sop_instance for one in stored[:6]}
    wait_until(lambda: {one["sop_uid"] for one in service.records()} >= others, seconds=20)
    assert {one["sop_uid"] for one in service.records()} == others, "without a record"
    assert store(service, range(6, 7)), "its sender may send it again"
    wait_until(lambda: {one["sop_uid"] for one in service.records()} == others | {lost.sop_instance}, seconds=20)
    assert service.stop() == 0


def test_a_committed_file_that_changed_stays_and_is_reported(start_service: StartService) -> None:
    service = start_service()
    stored = store(service, range(4))
    service.records(count=4)
    service.records("log_queue", count=4)
    service.kill()
    victim = file_of(service, stored[0])
    # Where its row has left the journal it is committed; the log has it.
    service = start_service(root=service.root)
    service.kill()
    flip_a_byte(victim)
    service = start_service(root=service.root)
    told = service.wait_for_event("storage.changed")
    assert (told["count"], victim.name in told["paths"][0]) == (1, True)
    assert victim.exists()
    assert service.stop() == 0
    assert ("changed", victim.stem) in verified(service.root) | {
        ("changed", name) for kind, name in verified(service.root) if kind == "unreadable"
    }


def tracer(file: Path) -> tuple[str, ...]:
    """Becomes the service, for which each read of a file fails as that of a bad sector does."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    fault = "inject=read,pread64:error=EIO"
    return ("strace", "-D", "-f", "-q", "-P", str(file), "-e", "trace=read,pread64", "-e", fault, "-o", "/dev/null")


def test_an_unreadable_file_waits_and_is_recorded_once_it_can_be_read(
    start_service: StartService, fail_points: dict[str, str]
) -> None:
    service, stored = answered_and_killed(start_service, fail_points, 5)
    victim = file_of(service, stored[2])
    service = start_service(root=service.root, wrapper=tracer(victim))
    told = service.wait_for_event("storage.undecided")
    assert (told["count"], victim.name in told["paths"][0]) == (1, True)
    assert "Input/output error" in told["paths"][0]
    assert len(service.records(count=5)) == 5
    assert store(service, range(20, 22)), "and takes others"
    assert service.stop() == 0
    assert victim.exists()
    service = start_service(root=service.root)
    assert service.events("storage.undecided") == []
    assert stored[2].sop_instance in {record["sop_uid"] for record in service.records(count=8)}
    assert service.stop() == 0


def test_an_unreadable_folder_stops_neither_start_nor_recovery(start_service: StartService) -> None:
    require_mounts()
    service = start_service()
    stored = store(service, range(3))
    with RawAssociation(service.port, CONTEXTS) as association:
        other = ct_slice(1, study="1.2.826.0.6", series="1.2.826.0.6.1", rows=16)
        assert association.store(1, CT, other.sop_instance, other.dataset).status == 0
        association.release()
    service.records(count=4)
    assert service.stop() == 0
    # Every file has to be looked at.
    shutil.rmtree(service.root / ".outbox")
    closed = file_of(service, stored[0]).parent.parent
    closed.chmod(0)
    may_less = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
    try:
        service = start_service(root=service.root, wrapper=may_less)
        told = service.wait_for_event("storage.unreadable")
        assert (told["count"], closed.name in told["paths"][0]) == (1, True)
        assert service.wait_for_event("recovery.finished")["recorded"] == 1
        assert [record["sop_uid"] for record in service.records(count=1)] == [other.sop_instance]
        assert service.stop() == 0
    finally:
        closed.chmod(0o755)
    service = start_service(root=service.root)
    assert service.wait_for_event("recovery.finished")["recorded"] == 3
    assert service.stop() == 0


def test_an_unreadable_folder_of_a_tenant_with_a_quota_does_not_stop_the_start(start_service: StartService) -> None:
    require_mounts()
    quota: dict[str, Any] = {
        "STORESCP_TENANTS__SETTINGS": json.dumps([{"tenant_id": "1234567890", "quota_bytes": 1 << 30}])
    }
    service = start_service(env=quota)
    stored = store(service, range(2))
    assert service.stop() == 0
    closed = file_of(service, stored[0]).parent
    closed.chmod(0)
    may_less = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
    try:
        service = start_service(root=service.root, env=quota, wrapper=may_less)
        assert closed.name in service.wait_for_event("storage.unreadable")["paths"][0]
        assert service.stop() == 0
    finally:
        closed.chmod(0o755)


def unlink_failing(folder: Path) -> tuple[str, ...]:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    fault = "inject=unlinkat:error=EIO"
    return ("strace", "-D", "-f", "-q", "-P", str(folder), "-e", "trace=unlinkat", "-e", fault, "-o", "/dev/null")


def test_a_temporary_file_that_cannot_be_removed_does_not_stop_the_start(start_service: StartService) -> None:
    service = start_service()
    assert service.stop() == 0
    left = service.root / ".incoming" / "left.part"
    left.write_bytes(b"x")
    service = start_service(root=service.root, wrapper=unlink_failing(left.parent))
    assert "left.part" in service.wait_for_event("storage.unreadable")["paths"][0]
    assert store(service, range(1))
    assert service.stop() == 0
