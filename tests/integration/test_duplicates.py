"""Instances that come again with other bytes: what is replaced stays for a while, what is kept has a record."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from support.engines import ENGINES, TENANT, opened, outbox, path_of, records, rows_of, run_engine, store, take
from support.instances import Instance, ct_slice, dataset_of, explicit, text
from support.mounts import require_mounts, run, tmpfs

BOUND = (0xA700, "storage: replaced files have reached their bound")


def version(number: int, *, instance: int = 1) -> Instance:
    """One of several instances of the same UIDs and the same size."""
    name = explicit(0x00100010, b"PN", text(f"Version^{number}"))
    return ct_slice(instance, rows=4, changes={0x00100010: name})


PATH = path_of(version(0))


@pytest.fixture(params=ENGINES)
def engine_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def replaced(root: Path) -> list[Path]:
    """Every replaced file, the oldest first."""
    return sorted(path for path in (root / ".replaced").rglob("*") if path.is_file())


def make_older(file: Path, **age: float) -> Path:
    """Lets a file have been replaced so long before now."""
    moment = datetime.now(UTC) - timedelta(**age)
    folder = file.parents[1] / f"{moment:%Y%m%d}"
    folder.mkdir(exist_ok=True)
    return file.rename(folder / f"{moment:%H%M%S%f}{file.name[12:]}")


def test_a_replaced_file_stays_with_the_moment_in_its_name(tmp_path: Path, engine_name: str) -> None:
    before = datetime.now(UTC)
    with opened(engine_name, tmp_path) as engine:
        for number in range(3):
            assert take(engine, version(number)) == (0, "")
        assert take(engine, version(2)) == (0, ""), "an identical one replaces nothing"
        state = engine.storage_state()
        assert len(records(engine)) == 3
    files = replaced(tmp_path)
    assert [dataset_of(file) for file in files] == [version(0).dataset, version(1).dataset]
    assert dataset_of(tmp_path / PATH) == version(2).dataset
    for file in files:
        assert re.fullmatch(rf"\d{{12}}_{TENANT}_{re.escape(version(0).sop_instance)}\.dcm", file.name)
        moment = datetime.strptime(file.parent.name + file.name[:12], "%Y%m%d%H%M%S%f").replace(tzinfo=UTC)
        assert before <= moment <= datetime.now(UTC)
    assert {folder.stat().st_mode & 0o777 for folder in (tmp_path / ".replaced", files[0].parent)} == {0o700}
    size = (tmp_path / PATH).stat().st_size
    disk = os.statvfs(tmp_path)
    assert (state.replaced_files, state.replaced_bytes, state.replaced_total) == (2, 2 * size, 2)
    assert state.replaced_max_bytes == disk.f_blocks * disk.f_frsize // 10


def test_retention_0_keeps_no_replaced_file(tmp_path: Path, engine_name: str) -> None:
    with opened(engine_name, tmp_path, replaced_retention=0) as engine:
        assert [take(engine, version(number)) for number in range(2)] == [(0, "")] * 2
    assert replaced(tmp_path) == []
    assert dataset_of(tmp_path / PATH) == version(1).dataset


def test_at_the_bound_a_replacement_is_refused_and_changes_nothing(tmp_path: Path, engine_name: str) -> None:
    store(engine_name, tmp_path, version(0))
    size = (tmp_path / PATH).stat().st_size
    with opened(engine_name, tmp_path, replaced_max_bytes=2 * size) as engine:
        assert [take(engine, version(number)) for number in (1, 2)] == [(0, "")] * 2
        kept = replaced(tmp_path)
        assert take(engine, version(3)) == BOUND
        assert take(engine, version(1, instance=2)) == (0, ""), "a new instance replaces nothing"
        assert len(records(engine)) == 4
    assert replaced(tmp_path) == kept
    assert dataset_of(tmp_path / PATH) == version(2).dataset
    assert list((tmp_path / ".incoming").iterdir()) == []


def test_at_the_bound_the_oldest_go_first_but_none_of_the_last_day(tmp_path: Path, engine_name: str) -> None:
    store(engine_name, tmp_path, *(version(number) for number in range(4)))
    size = (tmp_path / PATH).stat().st_size
    first, second, third = replaced(tmp_path)
    make_older(first, days=3)
    second = make_older(second, days=2)
    with opened(engine_name, tmp_path, replaced_max_bytes=3 * size) as engine:
        engine.sweep()  # as the service does at its start: it counts what is kept
        assert take(engine, version(4)) == (0, "")
        assert replaced(tmp_path)[:2] == [second, third], "only as many go as must"
        assert take(engine, version(5)) == (0, "")
        assert replaced(tmp_path)[0] == third
        assert not second.parent.exists()
        assert take(engine, version(6)) == BOUND
        assert engine.storage_state().replaced_bytes == 3 * size


def test_replaced_files_go_when_their_retention_has_ended(tmp_path: Path, engine_name: str) -> None:
    store(engine_name, tmp_path, *(version(number) for number in range(3)))
    first, second = replaced(tmp_path)
    first = make_older(first, days=31)
    second = make_older(second, days=29)
    foreign = tmp_path / ".replaced" / "notes.txt"
    foreign.write_text("not ours")
    with opened(engine_name, tmp_path) as engine:
        assert engine.sweep()[0] == 1
        assert engine.storage_state().replaced_files == 1
        assert engine.sweep()[0] == 0
    assert replaced(tmp_path) == sorted([second, foreign])
    assert not first.parent.exists()


def test_a_day_that_cannot_be_read_stops_neither_sweep_nor_replacement(tmp_path: Path, engine_name: str) -> None:
    store(engine_name, tmp_path, version(0), version(1))
    (tmp_path / ".replaced" / "20200101").symlink_to("elsewhere")
    expired = make_older(*replaced(tmp_path), days=31)
    with opened(engine_name, tmp_path) as engine:
        assert engine.sweep()[0] == 1
        assert take(engine, version(2)) == (0, "")
        assert engine.storage_state().replaced_files == 1
    assert not expired.exists()


def test_a_replacement_that_fails_takes_back_what_it_kept(tmp_path: Path, engine_name: str) -> None:
    store(engine_name, tmp_path, ct_slice(1, rows=8))
    before = dataset_of(tmp_path / PATH)
    [(status, _)] = run_engine(engine_name, tmp_path, 1, rows=4, inject="rename,renameat,renameat2:error=EIO") or []
    assert status == 0xA700
    assert [path for path in (tmp_path / ".replaced").rglob("*") if path.is_file()] == []
    assert dataset_of(tmp_path / PATH) == before
    assert len(rows_of(tmp_path, PATH)) == 1
    assert list((tmp_path / ".incoming").iterdir()) == []


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_without_hard_links_the_pure_engine_keeps_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def link(*_arguments: object, **_keywords: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", link)
    store("python", tmp_path, *(version(number) for number in range(3)))
    assert [dataset_of(file) for file in replaced(tmp_path)] == [version(0).dataset, version(1).dataset]
    assert list((tmp_path / ".incoming").iterdir()) == []


def lose_rows(root: Path) -> None:
    with outbox(root) as database:
        database.execute("DELETE FROM instance")


def test_keep_gives_a_record_to_a_stored_file_that_has_none(tmp_path: Path, engine_name: str) -> None:
    store(engine_name, tmp_path, version(0))
    lose_rows(tmp_path)
    with opened(engine_name, tmp_path, duplicates="keep") as engine:
        assert [take(engine, version(number)) for number in (1, 2)] == [(0, "")] * 2
        [record] = records(engine)
    assert dataset_of(tmp_path / PATH) == version(0).dataset
    assert record["file_size"] == (tmp_path / PATH).stat().st_size
    assert record["file_path"] == str(tmp_path / PATH)
    assert (record["sop_uid"], record["tenant_id"]) == (version(0).sop_instance, TENANT)
    # The file says who sent it, but not from where and to whom.
    assert (record["source_ae"], record["source_ip"], record["called_ae"]) == ("MODALITY", "", "")
    with outbox(tmp_path) as database:
        [(size,)] = database.execute("SELECT size FROM instance")
    assert size == record["file_size"]


def test_keep_is_no_success_where_the_stored_file_can_get_no_record(tmp_path: Path, engine_name: str) -> None:
    store(engine_name, tmp_path, version(0))
    lose_rows(tmp_path)
    (tmp_path / PATH).write_bytes(b"no DICOM file")
    with opened(engine_name, tmp_path, duplicates="keep") as engine:
        assert take(engine, version(1))[0] == 0xA700
        assert records(engine) == []
    assert (tmp_path / PATH).read_bytes() == b"no DICOM file"


@pytest.fixture
def few_inodes(tmp_path: Path) -> Iterator[Path]:
    with tmpfs(tmp_path / "disk", "size=64m,nr_inodes=200") as folder:
        yield folder


def free_inodes(folder: Path) -> int:
    return os.statvfs(folder).f_ffree


def test_a_commit_that_fails_leaves_no_empty_folder(few_inodes: Path, engine_name: str) -> None:
    """Inodes end at the temporary file, or at any folder down to the series."""
    with opened(engine_name, few_inodes / "data", durability="none") as engine:
        assert take(engine, ct_slice(9, study="1.2.3", series="1.2.3.4", rows=4)) == (0, "")
        present = {path for path in (few_inodes / "data").rglob("*") if path.is_dir()}
        fill = few_inodes / "fill"
        fill.mkdir()
        refused = 0
        for left in range(5):
            free = free_inodes(few_inodes)
            for number in range(free - left):
                (fill / str(number)).touch()
            series = f"1.2.826.0.{left}"
            status, _ = take(engine, ct_slice(1, study="1.2.826.0", series=series, rows=4))
            after = {path for path in (few_inodes / "data").rglob("*") if path.is_dir()}
            if status:
                refused += 1
                assert status == 0xA700
                assert after == present
            present = after
            for file in fill.iterdir():
                file.unlink()
    assert refused >= 2


@pytest.fixture
def beneath_proc(tmp_path: Path) -> Iterator[Path]:
    """A folder that can be written to, in one that has no fsync."""
    require_mounts()
    folder = tmp_path / "proc"
    folder.mkdir()
    run("mount", "-t", "proc", "proc", folder)
    try:
        with tmpfs(folder / "fs", "size=64m") as writable:
            yield writable
    finally:
        run("umount", "-l", folder)


def test_a_root_beneath_a_folder_without_fsync_is_served(beneath_proc: Path, engine_name: str) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        fsync(beneath_proc.parent)
    store(engine_name, beneath_proc / "data", version(0))


def fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def test_a_sync_that_fails_after_a_replacement_leaves_the_new_file_with_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was acknowledged before is gone from its place, so what took it stays."""
    with opened("python", tmp_path) as engine:
        assert take(engine, version(0)) == (0, "")
        fail_behind_the_name(monkeypatch)
        assert take(engine, version(1))[0] == 0xA700
        monkeypatch.undo()
        assert len(records(engine)) == 2
    assert dataset_of(tmp_path / PATH) == version(1).dataset
    assert [dataset_of(file) for file in replaced(tmp_path)] == [version(0).dataset]


def test_a_sync_that_fails_after_the_name_was_given_takes_name_and_folders_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened("python", tmp_path) as engine:
        fail_behind_the_name(monkeypatch)
        assert take(engine, version(0))[0] == 0xA700
        monkeypatch.undo()
        assert records(engine) == []
    assert not (tmp_path / TENANT).exists()
    assert rows_of(tmp_path, PATH) == []


def fail_behind_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sync of a folder fails once a file has its final name."""
    rename, sync, named = os.rename, os.fsync, []

    def renamed(*arguments: object, **keywords: object) -> None:
        rename(*arguments, **keywords)  # type: ignore[arg-type]
        named.append(True)

    def synced(descriptor: int) -> None:
        if named:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(os, "fsync", synced)
