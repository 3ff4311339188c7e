"""The tables from the JSON lines of a root: every line once, across rotation, damage and kills."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from storescp.index import tables
from storescp.index.database import Applied, Database
from storescp.index.events import Origin
from storescp.index.follow import Follower
from storescp.index.study_events import Command
from storescp.publish.jsonl import JsonLinesSink
from storescp.settings import Events, Index
from support.databases import described, record, rows
from support.index_process import wait_for
from support.load import Ledger, start_senders
from support.service import ServiceProcess

NAME = "storage_queue.jsonl"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of the records of a storage root."""
    made = tmp_path / "root" / ".outbox" / "events"
    made.mkdir(parents=True)
    return made


def write(path: Path, *records: object) -> None:
    with path.open("ab") as file:
        file.writelines(json.dumps(one).encode() + b"\n" for one in records)


def follow(database: Database, folder: Path, events: Events | None = None, command: Command | None = None) -> Applied:
    """Reads what there is."""
    root = folder.parents[1]
    follower = Follower(root, Index(max_records=50), "storage_queue", database, events or Events(topic=""), command)
    return asyncio.run(follower.run(until_caught_up=True))


def test_rotated_files_come_before_the_one_that_is_written_to(database: Database, url: str, folder: Path) -> None:
    write(folder / f"{NAME}.20260101T000000000002Z", record(1, file_size=2), record(2))
    write(folder / f"{NAME}.20260101T000000000001Z", record(1, file_size=1))
    write(folder / NAME, record(1, file_size=3))
    (folder / f"{NAME}.20250101T000000000000Z.gz").write_bytes(b"compressed")
    (folder / "log_queue.jsonl").write_bytes(b"of another topic\n")
    assert follow(database, folder) == Applied(records=4)
    assert [one["file_size"] for one in rows(url, tables.instance) if one["sop_uid"] == "1.1.1.1"] == [3]
    assert follow(database, folder) == Applied()
    # It grows, and is rotated.
    write(folder / NAME, record(3))
    (folder / NAME).rename(folder / f"{NAME}.20260101T000000000003Z")
    write(folder / NAME, record(4))
    assert follow(database, folder) == Applied(records=2)


def test_a_line_is_read_when_it_is_whole(database: Database, folder: Path) -> None:
    line = json.dumps(record(2)).encode()
    write(folder / NAME, record(1))
    with (folder / NAME).open("ab") as file:
        file.write(line[:50])
    assert follow(database, folder) == Applied(records=1)
    with (folder / NAME).open("ab") as file:
        file.write(line[50:] + b"\n")
    assert follow(database, folder) == Applied(records=1)


@pytest.mark.parametrize("begins", ["with a record", "with nonsense"])
def test_what_is_no_record_is_set_aside(database: Database, url: str, folder: Path, begins: str) -> None:
    first = [b"nonsense\n"] if begins == "with nonsense" else [json.dumps(record(0)).encode() + b"\n"]
    long = b'"' + b"x" * (5 << 19) + b'"\n'
    odd = [b"\n", b"\xff\xfe\n", long, b"{}\n", json.dumps(record(1)).encode() + b"\r\n"]
    (folder / NAME).write_bytes(b"".join(first + odd))
    write(folder / NAME, record(2))
    applied = follow(database, folder)
    expected = len(odd) - 1 + (begins == "with nonsense")
    assert (applied.records, applied.unreadable) == (2 + (begins == "with a record"), expected)
    kept = rows(url, tables.unreadable)
    assert len({one["offset"] for one in kept}) == len(kept) == expected
    assert max(len(one["value"]) for one in kept) == 1 << 20


def test_lines_that_were_taken_back_and_written_anew_are_read_again(
    database: Database, url: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [record(number) for number in range(10)]
    write(folder / NAME, *records)
    follow(database, folder)
    content = (folder / NAME).read_bytes().splitlines(keepends=True)
    # As after a failed fsync: the last batch is cut, and other records come first.
    (folder / NAME).write_bytes(b"".join(content[:6]))
    write(folder / NAME, record(20, file_size=12345), *records[6:], record(21))
    assert follow(database, folder) == Applied(records=2, duplicates=10)
    assert "index.file_changed" in capsys.readouterr().out
    assert len(rows(url, tables.record)) == 12
    # Shorter than what was read, and nothing new.
    (folder / NAME).write_bytes(b"".join(content[:2]))
    assert follow(database, folder) == Applied(duplicates=2)


def test_a_file_that_cannot_be_read_does_not_hold_up_the_others(
    database: Database, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder / f"{NAME}.20260101T000000000001Z", record(1))
    write(folder / NAME, record(2))
    opened = Path.open

    def fail_first(path: Path, *arguments: Any, **keywords: Any) -> Any:
        if path.name.endswith("1Z"):
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "open", fail_first)
    assert follow(database, folder).records == 1
    assert "index.file_unreadable" in capsys.readouterr().out
    monkeypatch.setattr(Path, "open", opened)
    assert follow(database, folder).records == 1


def test_a_file_that_is_rotated_while_it_is_looked_for_is_read_in_its_place(
    database: Database, url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder / f"{NAME}.20260101T000000000001Z", record(1, file_size=1))
    write(folder / NAME, record(1, file_size=2))
    opened = Path.open

    def rotate_first(path: Path, *arguments: Any, **keywords: Any) -> Any:
        if path.name == NAME and not (folder / f"{NAME}.20260101T000000000002Z").exists():
            path.rename(folder / f"{NAME}.20260101T000000000002Z")
            write(folder / NAME, record(1, file_size=3))
        return opened(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "open", rotate_first)
    assert follow(database, folder).records == 3
    assert [one["file_size"] for one in rows(url, tables.instance)] == [3]


def test_a_root_is_followed_before_there_is_anything_in_it(url: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    assert FollowProcess(root, url, tmp_path / "follow.log", "--once").wait().startswith("0 records")
    follower = FollowProcess(root, url, tmp_path / "follow.log")
    wait_for(lambda: (tmp_path / "follow.log").read_text().count("index.started") == 2)
    folder = root / ".outbox" / "events"
    folder.mkdir(parents=True)
    (root / ".outbox" / "identity").write_text("7c1f2c4e-0000-4000-8000-000000000000\n")
    write(folder / NAME, record(1))
    wait_for(lambda: len(rows(url, tables.study_timer)) == 1)
    follower.process.terminate()
    follower.wait()
    assert rows(url, tables.study_timer)[0]["topic"].startswith("7c1f2c4e-")


COMMAND = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read() + '\\n')"


def test_events_go_to_json_lines_and_to_a_command(database: Database, url: str, folder: Path, tmp_path: Path) -> None:
    write(folder / NAME, described(1, 1), described(2, 2, study_uid="1.2", series_uid="1.2.1"))
    events = Events(topic="study_events", quiet=0.5, force=60)
    command = Command([sys.executable, "-c", COMMAND, str(tmp_path / "taken")], 30)
    assert follow(database, folder, events, command).records == 2
    assert rows(url, tables.study_event) == []
    origin = Origin(rows(url, tables.study_timer)[0]["topic"], frozenset([0]))
    wait_for(lambda: database.timers.due(origin, quiet=0.5, force=60)[1] == {0})
    assert follow(database, folder, events, command) == Applied()
    lines = [json.loads(line) for line in (folder / "study_events.jsonl").read_text().splitlines()]
    assert {(one["event"], one["event_id"]) for one in lines} == {
        ("study.quiet", "t/1.1/1"), ("study.quiet", "t/1.2/1"),
    }  # fmt: skip
    taken = [json.loads(line) for line in (tmp_path / "taken").read_text().splitlines()]
    assert sorted(taken, key=str) == sorted(lines, key=str)
    assert not any(one["to_publish"] or one["to_run"] for one in rows(url, tables.study_event))
    assert follow(database, folder, events, command) == Applied()
    assert len((folder / "study_events.jsonl").read_text().splitlines()) == 2


class FollowProcess:
    """`storescpd index --follow` as a process of its own."""

    def __init__(self, root: Path, url: str, log: Path, *options: str) -> None:
        self._log = log.open("ab")
        arguments = ["index", "--follow", str(root), "--database", url, *options]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "storescp", *arguments], stdout=subprocess.PIPE, stderr=self._log, text=True
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
        self._log.close()

    def wait(self, timeout: float | None = 90) -> str:
        output, _ = self.process.communicate(timeout=timeout)
        self._log.close()
        assert self.process.returncode == 0
        return output


MANY = 12_000
LINES = int(os.environ.get("STORESCP_INDEX_LINES", str(MANY)))
ROTATIONS, BYTES_OF_LINE = 10, 560
TOGETHER, PAUSE_SECONDS = (20, 0.002) if LINES == MANY else (500, 0.0)


@pytest.mark.timeout(0 if LINES > MANY else 120)
def test_every_line_is_applied_once_whatever_is_killed(url: str, folder: Path, tmp_path: Path) -> None:
    source = random.Random(random.random())
    stop = threading.Event()
    written: list[str] = []

    def publish() -> None:
        number = 0
        sink = JsonLinesSink(folder, ["storage_queue"], sync=False, max_bytes=LINES * BYTES_OF_LINE // ROTATIONS)

        async def some() -> None:
            nonlocal number
            lines = [
                record(number + each, study_uid=f"1.{number // 500}", series_uid="1.1") for each in range(TOGETHER)
            ]
            number += len(lines)
            written.extend(one["trace_id"] for one in lines)
            await sink.publish("storage_queue", [Line(one) for one in lines])

        while not stop.is_set() and number < LINES:
            asyncio.run(some())
            stop.wait(PAUSE_SECONDS)
        asyncio.run(sink.stop())

    writer = threading.Thread(target=publish)
    writer.start()
    try:
        for _ in range(5):
            follower = FollowProcess(folder.parents[1], url, tmp_path / "follow.log")
            stop.wait(source.uniform(0.8, 2.0) * (1 if LINES == MANY else 10))
            follower.kill()
        if LINES > MANY:
            writer.join()
    finally:
        stop.set()
        writer.join()
    follower = FollowProcess(folder.parents[1], url, tmp_path / "follow.log", "--once")
    output = follower.wait(90 if LINES == MANY else None)
    assert len(list(folder.glob(f"{NAME}.*"))) > 2, "it was not rotated"
    assert {one["trace_id"] for one in rows(url, tables.record)} == set(written)
    assert sum(one["instance_count"] for one in rows(url, tables.study)) == len(written)
    assert ", 0 duplicates, 0 unreadable" in output
    assert "index.file_changed" not in (tmp_path / "follow.log").read_text()


class Line:
    """A record as the publisher gives it to a sink."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.id = self.ready = 0
        self.trace_id = fields["trace_id"]
        self.key = ""
        self.payload = json.dumps(fields).encode()


def test_a_service_without_kafka_is_followed(scp: ServiceProcess, url: str, tmp_path: Path) -> None:
    follower = FollowProcess(scp.root, url, tmp_path / "follow.log")
    ledger = Ledger()
    for thread in start_senders(scp.port, ledger, senders=3, count=40):
        thread.join(60)
    wait_for(lambda: len(rows(url, tables.instance)) == len(ledger.uids))
    follower.process.terminate()
    assert f"{len(ledger.uids)} records, 0 duplicates" in follower.wait()
    paths = {one["file_path"] for one in rows(url, tables.location)}
    assert paths == {str(path) for path in scp.files()}
