"""Disks that are full, forbidden or broken: a status that asks to try again, nothing partial, and it goes on by itself."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.faults import Row, rounds
from support.instances import CT, ct_slice
from support.load import CONTEXTS, Ledger, study_of
from support.mounts import require_mounts, run, tmpfs
from support.scu import IMPLICIT, VERIFICATION, RawAssociation
from support.service import ServiceProcess

StartService = Callable[..., ServiceProcess]
OUT_OF_RESOURCES = 0xA700
NO_WATERMARK = {"STORESCP_LOCAL_STORAGE__MIN_FREE_BYTES": "0"}
ECHO = [*CONTEXTS, (5, VERIFICATION, [IMPLICIT])]


class Sender:
    """One association that goes on through the fault; every instance is another."""

    def __init__(self, service: ServiceProcess, ledger: Ledger, series: str, rows: int = 256) -> None:
        self.association = RawAssociation(service.port, ECHO)
        self._ledger = ledger
        self._series = series
        self._number = 0
        self._rows = rows

    def store(self) -> int:
        one = ct_slice(self._number, study=study_of(self._series), series=self._series, rows=self._rows)
        self._number += 1
        self._ledger.will_send(one)
        answer = self.association.store(1, CT, one.sop_instance, one.dataset)
        self._ledger.note(self._series, one.sop_instance, answer.status)
        return answer.status

    def store_until(self, wanted: int, seconds: float) -> float:
        """Stores until the answer is `wanted`; how long that took."""
        began = time.monotonic()
        while (status := self.store()) != wanted:
            assert status in {0, OUT_OF_RESOURCES}, f"{status:04X}"
            assert time.monotonic() - began < seconds, f"no {wanted:04X} in {seconds} s"
        return time.monotonic() - began


def empty_folders(service: ServiceProcess) -> list[Path]:
    """Beneath the tenants."""
    roots = (service.root, *service.tenant_roots)
    tenants = [tenant for root in roots for tenant in root.iterdir() if not tenant.name.startswith(".")]
    return [folder for tenant in tenants for folder in (tenant, *tenant.rglob("*")) if is_empty(folder)]


def is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def check_through(
    row: Row, service: ServiceProcess, ledger: Ledger, fault: Callable[[], object], rows: int = 256
) -> None:
    """Before the fault 0000; during it A700 and C-ECHO is answered; after it 0000 again within 5 s."""
    slowest = 0.0
    sender = Sender(service, ledger, "1.2.826.0.7.1", rows)
    for number in range(row.rounds):
        assert sender.store() == 0
        of_a_new_series = Sender(service, ledger, f"1.2.826.0.8.{number}", rows)
        with fault():  # type: ignore[attr-defined]
            sender.store_until(OUT_OF_RESOURCES, 20)
            assert [sender.store() for _ in range(5)] == [OUT_OF_RESOURCES] * 5
            assert of_a_new_series.store() == OUT_OF_RESOURCES
            assert sender.association.echo(5).status == 0
            assert empty_folders(service) == []
        of_a_new_series.association.release()
        slowest = max(slowest, sender.store_until(0, 5))
    sender.association.release()
    assert set(ledger.statuses) == {0, OUT_OF_RESOURCES}
    assert service.temporary_files() == []
    assert service.stop() == 0
    assert service.events("outbox.not_empty") == [], "rows of refused instances are left in the queue"
    row.remark = f"{ledger.statuses[OUT_OF_RESOURCES]} answered A700, 0000 again within {slowest:.2f} s"
    row.reconcile(service, ledger)
    row.check()


@pytest.mark.timeout(0)
def test_a_full_disk_is_transient(start_service: StartService, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "size=24m") as folder:
        service = start_service(root=folder / "data", env=NO_WATERMARK)

        @contextlib.contextmanager
        def full() -> Iterator[None]:
            filler = folder / "filler"
            facts = os.statvfs(folder)
            filler.write_bytes(bytes(max(0, facts.f_bavail * facts.f_frsize - (64 << 10))))
            yield
            filler.unlink()

        check_through(Row("R5 disk full, then space again", rounds(20, 3)), service, Ledger(), full)


@pytest.mark.timeout(0)
def test_a_disk_without_inodes_is_transient(start_service: StartService, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "size=64m,nr_inodes=400") as folder:
        service = start_service(root=folder / "data", env=NO_WATERMARK)

        @contextlib.contextmanager
        def no_inodes() -> Iterator[None]:
            fillers = folder / "fillers"
            fillers.mkdir()
            with contextlib.suppress(OSError):
                for number in range(1000):
                    (fillers / str(number)).touch()
            yield
            shutil.rmtree(fillers)

        check_through(Row("R6 no inodes", rounds(20, 3)), service, Ledger(), no_inodes)


@pytest.mark.timeout(0)
def test_a_read_only_disk_is_transient(start_service: StartService, tmp_path: Path) -> None:
    # The lock file of the root is open for writing: it would keep the rest from becoming read-only.
    own = tmp_path / "own"
    with tmpfs(own, "size=64m"), tmpfs(own / ".outbox", "size=1m"):
        settings = [{"tenant_id": "1234567890", "storage_root": str(own)}]
        service = start_service(env=NO_WATERMARK | {"STORESCP_TENANTS__SETTINGS": json.dumps(settings)})
        service.tenant_roots.append(own)

        @contextlib.contextmanager
        def read_only() -> Iterator[None]:
            run("mount", "-o", "remount,ro", own)
            yield
            run("mount", "-o", "remount,rw", own)

        check_through(Row("R6 read-only", rounds(20, 3)), service, Ledger(), read_only)


@pytest.mark.timeout(0)
def test_a_folder_without_permission_is_transient(start_service: StartService) -> None:
    require_mounts()
    # Root writes everywhere, unless that is taken from it.
    may_less = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
    service = start_service(env=NO_WATERMARK, wrapper=may_less)

    @contextlib.contextmanager
    def forbidden() -> Iterator[None]:
        folder = service.root / ".incoming"
        folder.chmod(0o500)
        yield
        folder.chmod(0o700)

    check_through(Row("R6 no permission", rounds(20, 3)), service, Ledger(), forbidden)


@pytest.mark.timeout(0)
@pytest.mark.parametrize(
    ("call", "rows"), [("fdatasync", 64), ("fdatasync", 256), ("fsync", 256), ("sync_file_range", 256), ("linkat", 256)]
)
def test_a_call_that_fails_is_final_for_that_file(start_service: StartService, call: str, rows: int) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    service = start_service()

    @contextlib.contextmanager
    def failing() -> Iterator[None]:
        inject = ["strace", "-f", "-e", f"trace={call}", "-e", f"inject={call}:error=EIO", "-o", "/dev/null"]
        strace = subprocess.Popen([*inject, "-p", str(service.process.pid)], stderr=subprocess.PIPE, text=True)
        assert strace.stderr is not None
        attached = strace.stderr.readline()
        if not re.search("attached", attached):
            strace.wait(10)
            pytest.skip(f"strace cannot attach here: {attached.strip()}")
        yield
        strace.terminate()
        strace.communicate(timeout=20)

    check_through(Row(f"R6 EIO on {call}, {rows} rows", rounds(20, 3)), service, Ledger(), failing, rows)


@pytest.mark.parametrize("rows", [64, 256])
def test_a_bug_while_the_journal_is_synced_costs_one_instance(
    start_service: StartService, fail_points: dict[str, str], rows: int
) -> None:
    """Small instances sync it themselves, for large ones a thread beside them does."""
    service = start_service(env=fail_points | {"STORESCP_FAIL_POINT": "journal_written:3:panic"})
    sender = Sender(service, Ledger(), "1.2.826.0.7.1", rows)
    assert [sender.store() for _ in range(8)] == [0, 0, 0, OUT_OF_RESOURCES, 0, 0, 0, 0]
    sender.association.release()
    assert service.stop() == 0


def test_a_bug_in_the_writer_of_the_outbox_is_no_success_and_loses_nothing(
    start_service: StartService, fail_points: dict[str, str]
) -> None:
    service = start_service(env=fail_points | {"STORESCP_FAIL_POINT": "commit_begun:2:panic"})
    ledger = Ledger()
    sender = Sender(service, ledger, "1.2.826.0.7.1", 16)
    sender.store_until(OUT_OF_RESOURCES, 20)
    assert [sender.store() for _ in range(5)] == [OUT_OF_RESOURCES] * 5
    assert sender.association.echo(5).status == 0
    sender.association.abort()
    service.kill()
    row = Row("a writer of the outbox that ends")
    service = start_service(root=service.root)
    assert service.stop() == 0
    row.reconcile(service, ledger)
    row.check()
    assert len(ledger.uids) > 1
