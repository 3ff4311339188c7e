"""`storescpd index --rebuild`: the tables from the files, equal to those from the records."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from storescp.index import tables, writing
from storescp.index.database import Database
from storescp.index.follow import Follower
from storescp.index.incoming import IncomingRecord, read
from storescp.settings import Events, Index
from support.databases import described, messages, rows
from support.instances import ct_slice, explicit, text
from support.load import send_curated
from support.scu import RawAssociation
from support.service import ServiceProcess

CT = "1.2.840.10008.5.1.4.1.1.2"
# What no file tells.
ONLY_IN_RECORDS = {
    "trace_id", "created_time", "source_ip", "transfer_syntax_uid", "transfer_status", "updated", "last_received",
    "first_received",
}  # fmt: skip
COMPARED = (tables.patient, tables.study, tables.series, tables.instance, tables.location, tables.description)


def content(url: str) -> dict[str, list[tuple[Any, ...]]]:
    return {
        table.name: sorted(
            (tuple(value for name, value in row.items() if name not in ONLY_IN_RECORDS) for row in rows(url, table)),
            key=repr,
        )
        for table in COMPARED
    }


def rebuild(root: Path, url: str, code: int = 0) -> str:
    arguments = ["index", "--rebuild", str(root), "--database", url]
    result = subprocess.run(
        [sys.executable, "-m", "storescp", *arguments], capture_output=True, text=True, check=False, timeout=100
    )
    assert result.returncode == code, result.stderr
    return result.stdout + result.stderr


def follow(root: Path, url: str) -> None:
    database = Database(url)
    asyncio.run(Follower(root, Index(), "storage_queue", database, Events(topic="")).run(until_caught_up=True))
    database.close()


def store(service: ServiceProcess, *instances: Any) -> None:
    with RawAssociation(service.port, [(1, CT, [instances[0].transfer_syntax])]) as association:
        for one in instances:
            assert association.store(1, CT, one.sop_instance, one.dataset).status == 0
        association.release()


def slice_of(number: int, study: str, patient: str = "P1", description: str = "Thorax", size: int = 8) -> Any:
    changes = {
        0x00100020: explicit(0x00100020, b"LO", text(patient)),
        0x00081030: explicit(0x00081030, b"LO", text(description)),
    }
    return ct_slice(number, study=f"1.2.826.{study}", series=f"1.2.826.{study}.1", rows=size, changes=changes)


def test_files_give_the_same_tables_as_records(
    scp: ServiceProcess, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(scp, *(slice_of(number, "1") for number in range(5)))
    store(scp, *(slice_of(number, "2", "P2", f"D{number}") for number in range(3)))
    # A replacement, of another patient. The times of files have a grain of some milliseconds.
    for path in scp.files():
        os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns - 50_000_000))
    store(scp, slice_of(1, "2", "P3", "new", 16))
    assert scp.stop() == 0
    follow(scp.root, url)
    before = content(url)
    conflicts = sorted(map(str, rows(url, "conflict")))
    assert conflicts
    assert "8 instances, 0 removed, 0 files skipped" in rebuild(scp.root, url)
    assert content(url) == before
    assert sum(one["trace_id"] != "" for one in rows(url, tables.instance)) == 8, "what was known stays"
    other = f"sqlite:///{tmp_path}/other.sqlite"
    rebuild(scp.root, other)
    assert content(other) == before
    assert sorted(map(str, rows(other, "conflict"))) == conflicts
    assert {one["trace_id"] for one in rows(other, tables.instance)} == {""}
    assert rows(other, tables.study_timer) == []
    # Old records of files that are known bring nothing new: no study is opened.
    monkeypatch.setattr(writing, "_OLD_SECONDS", 0.0)
    follow(scp.root, other)
    assert content(other) == before
    assert rows(other, tables.study_timer) == []
    assert {one["trace_id"] for one in rows(other, tables.instance)} == {
        one["trace_id"] for one in rows(url, tables.instance)
    }


def test_files_that_are_gone_leave_the_tables(scp: ServiceProcess, url: str) -> None:
    store(scp, *(slice_of(number, "1", f"P{number % 2}", f"D{number}") for number in range(4)))
    store(scp, slice_of(1, "2", "P9"))
    assert scp.stop() == 0
    follow(scp.root, url)
    [last] = [one for one in rows(url, tables.instance) if one["sop_uid"].endswith(".3")]
    Path(last["file_path"]).unlink()
    shutil.rmtree(next(path for path in scp.files() if "1.2.826.2" in str(path)).parents[1])
    foreign = next(iter(scp.files())).with_name("1.2.3.dcm")
    foreign.write_bytes(b"not an instance")
    output = rebuild(scp.root, url, code=1)
    assert "3 instances, 2 removed, 1 files skipped" in output
    assert "1.2.3.dcm: not a PS3.10 file" in output
    [study] = rows(url, tables.study)
    assert (study["instance_count"], study["patient_id"], study["study_description"]) == (3, "P0", "D2")
    assert {one["patient_id"] for one in rows(url, tables.patient)} == {"P0", "P1"}
    assert len(rows(url, tables.series)) == 1
    assert len(rows(url, tables.location)) == 3


def test_a_root_that_is_not_mounted_removes_nothing(scp: ServiceProcess, url: str, tmp_path: Path) -> None:
    store(scp, slice_of(1, "1"))
    assert scp.stop() == 0
    follow(scp.root, url)
    scp.root.rename(tmp_path / "elsewhere")
    scp.root.mkdir()
    assert "not mounted" in rebuild(scp.root, url, code=1)
    assert len(rows(url, tables.instance)) == 1


def test_a_file_that_is_replaced_while_tables_are_rebuilt_is_left_to_its_record(scp: ServiceProcess, url: str) -> None:
    store(scp, slice_of(1, "1"))
    assert scp.stop() == 0
    follow(scp.root, url)
    before = content(url)
    unknown = described(1, study_uid="1.2.826.9", series_uid="1.2.826.9.1", file_path="/nowhere/1.dcm")
    [path] = scp.files()
    known = described(
        1, study_uid="1.2.826.1", series_uid="1.2.826.1.1", sop_uid=path.stem, tenant_id="1234567890",
        study_date="2026-01-02", file_path=str(path), file_size=1,
    )  # fmt: skip
    database = Database(url)
    read_from_files = [read(message.value) for message in messages(unknown, known)]
    database.rebuild([one for one in read_from_files if isinstance(one, IncomingRecord)], "2026-01-01T00:00:00Z")
    database.close()
    assert content(url) == before


def test_a_name_that_is_no_text_is_skipped(scp: ServiceProcess, url: str) -> None:
    store(scp, slice_of(1, "1"))
    assert scp.stop() == 0
    Path(f"{next(iter(scp.files())).parent}/odd-\udcff.dcm").touch()
    assert "1 instances, 0 removed, 1 files skipped" in rebuild(scp.root, url, code=1)


@pytest.mark.curated
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_curated_files_give_the_same_tables_as_their_records(
    start_service: Any, curated: Path, url: str, tmp_path: Path
) -> None:
    service = start_service("--promiscuous", env={"STORESCP_DICOM_STORE_SCP__REQUIRED_ATTRIBUTES": "[]"})
    send_curated(service.port, curated)
    assert service.stop() == 0
    follow(service.root, url)
    other = f"sqlite:///{tmp_path}/other.sqlite"
    assert f"{len(service.files())} instances, 0 removed, 0 files skipped" in rebuild(service.root, other)
    assert json.dumps(content(other)) == json.dumps(content(url))
