"""What the storage says, the records say: compared, repaired at start, and published again on request."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pydicom
import pytest
import xxhash

from conftest import StartService
from storescp.verify import Roots
from storescp.verify import verify as verify_files
from support.command import Done, run_in_process
from support.instances import CT, ct_slice
from support.load import CONTEXTS
from support.operator import Operator
from support.scu import RawAssociation
from support.service import ServiceProcess

SERIES = "1.2.826.0.1.1"


def verify(root: Path, *options: str) -> Done:
    return run_in_process("-o", root, "verify", *options)


def store(service: ServiceProcess, *numbers: int) -> None:
    with RawAssociation(service.port, CONTEXTS) as association:
        for number in numbers:
            one = ct_slice(number, study="1.2.826.0.1", series=SERIES, rows=16)
            assert association.store(1, CT, one.sop_instance, one.dataset).status == 0
        association.release()


def traces(service: ServiceProcess, count: int) -> dict[str, list[str]]:
    """Trace ids by instance, in the order in which they came."""
    found: dict[str, list[str]] = {}
    for record in service.records(count=count):
        found.setdefault(record["sop_uid"], []).append(record["trace_id"])
    return found


@pytest.fixture
def stopped(start_service: StartService) -> ServiceProcess:
    """A service that stored six instances and ended."""
    service = start_service()
    store(service, *range(6))
    assert service.stop() == 0
    return service


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Operator]:
    operator = Operator(tmp_path / "data")
    yield operator
    operator.close()


def file_of(service: ServiceProcess, number: int) -> Path:
    [file] = [file for file in service.files() if file.stem == f"{SERIES}.{number}"]
    return file


def test_verify_tells_what_is_wrong_with_each_file(stopped: ServiceProcess, operator: Operator) -> None:
    assert verify(stopped.root).returncode == 0
    file_of(stopped, 0).unlink()
    with file_of(stopped, 1).open("ab") as longer:
        longer.write(b"\0\0")
    with file_of(stopped, 2).open("r+b") as flipped:
        flipped.seek(-1, os.SEEK_END)
        flipped.write(b"\xff")
    with file_of(stopped, 3).open("r+b") as torn:
        torn.write(bytes(200))
    moved = file_of(stopped, 4)
    elsewhere = moved.with_stem("1.2.3")
    moved.rename(elsewhere)
    path = str(elsewhere.relative_to(stopped.root))
    old, number = str(moved.relative_to(stopped.root)), xxhash.xxh3_64_intdigest(path.encode())
    signed = number - (1 << 64) if number >> 63 else number
    operator.execute("UPDATE instance SET path = ?, path_hash = ? WHERE path = ?", (path, signed, old))
    shutil.copy(file_of(stopped, 5), file_of(stopped, 5).with_stem("1.2.4"))
    found = verify(stopped.root)
    assert found.returncode == 1
    lines = {tuple(line.split()[:2]) for line in found.stdout.splitlines()}
    folder = str(moved.parent.relative_to(stopped.root))
    assert lines == {
        ("missing", f"{folder}/{SERIES}.0.dcm"),
        ("changed", f"{folder}/{SERIES}.1.dcm"),
        ("changed", f"{folder}/{SERIES}.2.dcm"),
        ("unreadable", f"{folder}/{SERIES}.3.dcm"),
        ("misplaced", path),
        ("foreign", f"{folder}/1.2.4.dcm"),
    }
    assert "1 files" in found.stderr
    assert "6 findings" in found.stderr


def test_records_are_published_again_on_request(
    stopped: ServiceProcess, start_service: StartService, operator: Operator
) -> None:
    before = traces(stopped, 6)
    # One is delivered and its record no longer there, one has no row at all.
    operator.execute("UPDATE instance SET payload = '', key = '' WHERE path LIKE '%.1.dcm'")
    operator.execute("DELETE FROM instance WHERE path LIKE '%.2.dcm'")
    service = start_service(root=stopped.root)
    asked = verify(service.root, "--republish", "unrecorded")
    assert "1 records wished for" in asked.stderr
    after = traces(service, 7)
    assert {uid for uid, ids in after.items() if len(ids) == 2} == {f"{SERIES}.2"}
    assert len(set(after[f"{SERIES}.2"])) == 2
    assert verify(service.root, "--republish", "all").returncode == 0
    again = traces(service, 13)
    assert all(ids[-1] in ids[:-1] for ids in again.values()), "a second delivery carries the same trace id"
    assert again[f"{SERIES}.1"] == before[f"{SERIES}.1"] * 2
    records = {record["sop_uid"]: record for record in service.records()[-6:]}
    first = {record["sop_uid"]: record for record in service.records()[:6]}
    for number in (0, 1):
        uid = f"{SERIES}.{number}"
        changed = {key for key, value in records[uid].items() if value != first[uid][key]}
        # What the file does not say about how it came.
        assert changed == (set() if number == 0 else {"source_ip", "called_ae"})
    assert service.stop() == 0


def test_files_that_lost_their_rows_get_records_at_the_next_start(
    stopped: ServiceProcess, start_service: StartService, operator: Operator
) -> None:
    before = traces(stopped, 6)
    operator.close()
    shutil.rmtree(stopped.root / ".outbox", ignore_errors=True)
    # Neither is ours: one was written by another program, one lies in the wrong place.
    foreign = file_of(stopped, 0).with_stem("1.2.3")
    pydicom.dcmread(file_of(stopped, 0)).save_as(foreign)
    shutil.copy(file_of(stopped, 1), file_of(stopped, 1).with_stem("1.2.4"))
    service = start_service(root=stopped.root)
    found = service.wait_for_event("recovery.finished")
    assert (found["files"], found["recorded"], found["left_without_record"]) == (8, 6, 2)
    after = traces(service, 6)
    assert set(after) == set(before)
    assert all(set(after[uid]).isdisjoint(before[uid]) for uid in after), "a new record has a new trace id"
    assert {line.split()[0] for line in verify(service.root).stdout.splitlines()} == {"foreign"}
    assert service.stop() == 0


def test_an_outbox_that_is_no_database_is_put_aside_and_said(
    stopped: ServiceProcess, start_service: StartService
) -> None:
    (stopped.root / ".outbox" / "outbox.sqlite").write_bytes(b"not a database" * 1000)
    service = start_service(root=stopped.root)
    damaged = service.wait_for_event("outbox.damaged")
    assert damaged["rows_salvaged"] == 0
    assert Path(damaged["kept_as"]).read_bytes().startswith(b"not a database")
    assert service.wait_for_event("recovery.finished")["recorded"] == 6
    store(service, 7)
    assert service.stop() == 0
    assert verify(service.root).returncode == 0


def test_after_a_clean_stop_there_is_nothing_to_recover(stopped: ServiceProcess, start_service: StartService) -> None:
    service = start_service(root=stopped.root)
    store(service, 8)
    assert service.stop() == 0
    assert service.events("recovery.finished") == []
    assert service.events("outbox.damaged") == []


def test_a_recovery_that_is_interrupted_begins_again(
    stopped: ServiceProcess, start_service: StartService, clone_files: Callable[[ServiceProcess, int], None]
) -> None:
    shutil.rmtree(stopped.root / ".outbox")
    clone_files(stopped, 3000)
    service = start_service(root=stopped.root)
    assert service.stop() == 0
    assert service.events("recovery.not_finished")
    again = start_service(root=stopped.root)
    again.wait_for_event("recovery.finished", 60)
    assert again.stop() == 0
    recorded = {record["sop_uid"] for record in again.records()}
    assert recorded == {file.stem for file in again.files()}


@pytest.fixture
def clone_files() -> Callable[[ServiceProcess, int], None]:
    """Makes more stored instances out of one, quicker than by sending them."""

    def clone(service: ServiceProcess, count: int) -> None:
        template = file_of(service, 0)
        content, uid = template.read_bytes(), template.stem.encode()
        for number in range(count):
            other = b"%s%0*d" % (b"1.2.826.9.", len(uid) - 10, number)
            assert len(other) == len(uid)
            template.with_stem(other.decode()).write_bytes(content.replace(uid, other))

    return clone


def test_verify_looks_twice_at_a_young_file_without_a_record(
    stopped: ServiceProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that runs has its newest records in the journal for a moment."""
    file = file_of(stopped, 3)
    database_file = stopped.root / ".outbox" / "outbox.sqlite"
    with contextlib.closing(sqlite3.connect(database_file, isolation_level=None)) as database:
        place = (str(file.relative_to(stopped.root)),)
        row = database.execute("SELECT * FROM instance WHERE path = ?", place).fetchone()

        def insert(_seconds: float) -> None:
            database.execute(f"INSERT INTO instance VALUES ({', '.join('?' * len(row))})", row)

        def findings(sleep: Callable[[float], None]) -> list[str]:
            database.execute("DELETE FROM instance WHERE path = ?", place)
            file.touch()
            monkeypatch.setattr("storescp.verify.time", SimpleNamespace(time=time.time, sleep=sleep))
            looked = verify_files(Roots(stopped.root, {}), database)
            return [one.path for one in looked if one.kind != "whole"]

        assert findings(insert) == []
        assert findings(lambda _seconds: None) == list(place)
