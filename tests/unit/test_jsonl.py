"""JSON lines: whatever becomes of the files, each record is in one of them, whole."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog

from storescp.publish import jsonl
from storescp.publish.jsonl import JsonLinesSink
from storescp.publish.sink import SinkError

TOPICS = ("main", "log")


@dataclass(frozen=True)
class Row:
    id: int
    payload: bytes
    ready: int = 0
    trace_id: str = ""
    key: str = ""


class Driver:
    """Publishes batches of numbered records to `main`."""

    def __init__(self, folder: Path, *, max_bytes: int = 0) -> None:
        self.folder = folder
        self.sink = JsonLinesSink(folder, TOPICS, max_bytes=max_bytes)
        self.numbers = itertools.count()
        self.delivered: list[str] = []

    @property
    def file(self) -> Path:
        return self.folder / "main.jsonl"

    def publish(self, count: int = 1) -> None:
        """A batch; what fails is not delivered."""
        rows = [Row(number, f'{{"number":{number}}}'.encode()) for number in itertools.islice(self.numbers, count)]
        outcome = asyncio.run(self.sink.publish("main", rows))
        assert outcome.delivered == [row.id for row in rows]
        self.delivered += [row.payload.decode() for row in rows]

    def rotated(self) -> list[Path]:
        return sorted(self.folder.glob("main.jsonl.*"))

    def lines(self) -> list[str]:
        """Those of all files, the oldest first."""
        return [line for file in [*self.rotated(), self.file] for line in file.read_text().splitlines()]

    def stop(self) -> None:
        asyncio.run(self.sink.stop())


Start = Callable[..., Driver]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Driver] = []

    def make(**options: int) -> Driver:
        started.append(Driver(tmp_path / "events", **options))
        return started[-1]

    yield make
    for driver in started:
        driver.stop()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[datetime]:
    """What the clock says, one time after the other; the last one again and again."""
    times: list[datetime] = []

    class Clock(datetime):
        @classmethod
        def now(cls, _tz: object = None) -> datetime:
            return times.pop(0) if len(times) > 1 else times[0]

    monkeypatch.setattr(jsonl, "datetime", Clock)
    return times


def test_a_file_that_was_renamed_gets_no_more_records(start: Start) -> None:
    driver = start()
    driver.publish()
    moved = driver.file.rename(driver.folder / "moved")
    driver.publish()
    assert moved.read_text() == '{"number":0}\n'
    assert driver.file.read_text() == '{"number":1}\n'


def test_a_file_that_was_removed_is_made_anew(start: Start) -> None:
    driver = start()
    driver.publish()
    driver.file.unlink()
    driver.publish()
    assert driver.file.read_text() == '{"number":1}\n'
    for file in driver.folder.iterdir():
        file.unlink()
    driver.folder.rmdir()
    driver.publish()
    assert driver.file.read_text() == '{"number":2}\n'


def test_another_file_of_the_name_is_appended_to(start: Start) -> None:
    driver = start()
    driver.publish()
    driver.file.rename(driver.folder / "moved")
    # As `create` of logrotate does; and its last line is torn.
    driver.file.write_text('{"of another":1}\n{"torn')
    driver.publish()
    assert driver.file.read_text() == '{"of another":1}\n{"number":1}\n'


def test_a_batch_that_is_written_while_its_file_is_renamed_is_in_the_new_file_too(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = start()
    driver.publish()
    moved = driver.folder / "moved"
    sync = os.fdatasync

    def rename_first(file: int) -> None:
        if not moved.exists():
            driver.file.rename(moved)
        sync(file)

    monkeypatch.setattr(os, "fdatasync", rename_first)
    driver.publish()
    # Whoever renamed it may have read it before the second record came.
    assert moved.read_text() == '{"number":0}\n{"number":1}\n'
    assert driver.file.read_text() == '{"number":1}\n'


def test_a_file_that_is_renamed_during_each_write_is_an_error(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = start()
    numbers = itertools.count()
    monkeypatch.setattr(os, "fdatasync", lambda file: driver.file.rename(driver.folder / f"moved{next(numbers)}"))
    with pytest.raises(SinkError, match="renamed while it is written to"):
        driver.publish()


def test_rotation_by_size_loses_and_doubles_nothing(start: Start) -> None:
    driver = start(max_bytes=500)
    for count in range(1, 60):
        driver.publish(count)
    assert driver.lines() == driver.delivered
    rotated = driver.rotated()
    assert len(rotated) > 10
    for file in rotated:
        assert file.stat().st_size >= 500
        assert file.read_bytes().endswith(b"\n")
        assert datetime.strptime(file.name, "main.jsonl.%Y%m%dT%H%M%S%fZ").year >= 2026  # noqa: DTZ007
    # A batch is in one file.
    assert not (driver.folder / "log.jsonl").read_bytes()


def test_a_file_that_grew_before_the_start_is_rotated_too(start: Start) -> None:
    driver = start()
    driver.publish(50)
    driver.stop()
    again = start(max_bytes=100)
    again.publish()
    [full] = again.rotated()
    assert len(full.read_text().splitlines()) == 50
    assert again.file.read_text() == '{"number":0}\n'


def test_a_rotated_file_is_never_written_over(start: Start, clock: list[datetime]) -> None:
    first = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
    clock[:] = [first]
    driver = start(max_bytes=1)
    driver.folder.mkdir()
    taken = driver.folder / "main.jsonl.20260102T030405000678Z"
    taken.write_text("of another time\n")
    driver.publish()
    clock[:] = [first, first, first + timedelta(microseconds=1)]
    driver.publish()
    assert taken.read_text() == "of another time\n"
    assert (driver.folder / "main.jsonl.20260102T030405000679Z").read_text() == '{"number":0}\n'
    assert driver.file.read_text() == '{"number":1}\n'


def test_where_a_file_cannot_be_renamed_it_goes_on_growing_and_that_is_said_once(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = start(max_bytes=1)
    driver.publish()

    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    with monkeypatch.context() as broken, structlog.testing.capture_logs() as said:
        broken.setattr(Path, "rename", refuse)
        driver.publish()
        driver.publish()
    assert [(line["event"], line["topic"], line["reason"]) for line in said] == [
        ("publish.not_rotated", "main", "Permission denied")
    ]
    assert driver.rotated() == []
    driver.publish()
    assert [len(file.read_text().splitlines()) for file in driver.rotated()] == [3]
    assert driver.lines() == driver.delivered


def test_where_no_new_file_can_be_made_the_batch_fails_and_nothing_is_lost(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = start(max_bytes=1)
    driver.publish()

    def refuse(path: Path, *_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as full:
        full.setattr(os, "open", refuse)
        for _ in range(2):
            with pytest.raises(SinkError, match=r"main\.jsonl: No space left on device"):
                driver.publish()
    driver.publish()
    assert driver.lines() == driver.delivered == ['{"number":0}', '{"number":3}']


@pytest.mark.parametrize("left", [None, "", '{"number":9}\n', '{"number":9}\n{"torn', '{"torn'])
def test_a_start_after_a_kill_during_rotation_finds_everything(start: Start, left: str | None) -> None:
    """It was killed behind the renaming, behind the making of the new file, or in the first writes to it."""
    driver = start(max_bytes=1)
    driver.publish()
    driver.stop()
    driver.file.rename(driver.folder / "main.jsonl.20260102T030405000678Z")
    if left is not None:
        driver.file.write_text(left)
    again = start()
    again.publish()
    before = ['{"number":9}'] if left and "9" in left else []
    assert again.lines() == [*driver.delivered, *before, *again.delivered]


def test_a_write_that_fails_leaves_no_torn_line(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = start()
    driver.publish()
    write = os.write

    def half(file: int, content: bytes) -> int:
        return write(file, content[: len(content) // 2])

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as full:
        full.setattr(os, "write", half)
        with pytest.raises(SinkError, match="short write"):
            driver.publish()
    assert driver.file.read_text() == '{"number":0}\n'
    with monkeypatch.context() as broken:
        # The half line cannot be taken back now, so it is when the file is opened again.
        broken.setattr(os, "write", half)
        broken.setattr(os, "ftruncate", refuse)
        with pytest.raises(SinkError, match="short write"):
            driver.publish()
    driver.publish()
    assert driver.file.read_text() == '{"number":0}\n{"number":3}\n'


def test_names_are_durable_before_records_count(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = start(max_bytes=1)
    driver.publish()
    steps: list[str] = []
    rename, sync_folder, fdatasync = Path.rename, jsonl.sync_folder, os.fdatasync
    monkeypatch.setattr(Path, "rename", lambda self, target: (steps.append("rename"), rename(self, target))[1])
    monkeypatch.setattr(jsonl, "sync_folder", lambda folder: (steps.append(folder.name), sync_folder(folder)))
    monkeypatch.setattr(os, "fdatasync", lambda file: (steps.append("data"), fdatasync(file)))
    driver.publish()
    assert steps == ["rename", "events", driver.folder.parent.name, "data"]


def test_reopening_lets_go_of_the_old_file_and_makes_the_new_one(start: Start) -> None:
    driver = start()
    driver.publish()
    moved = driver.file.rename(driver.folder / "moved")
    driver.sink.reopen()
    assert driver.file.read_bytes() == b""
    open_now = {str(Path(link).readlink()) for link in Path("/proc/self/fd").iterdir() if link.exists()}
    assert str(moved) not in open_now
    assert str(driver.file) in open_now
