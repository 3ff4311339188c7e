"""Timers of studies and their events: when they are made, and how they are delivered."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from storescp.index import study_events, tables
from storescp.index.database import Database
from storescp.index.events import Kind, Origin, StudyEvent
from storescp.index.study_events import Command, Row
from support.databases import described, messages, rows

QUIET, FORCE = 60.0, 600.0
MAIN = Origin("main", frozenset([0]), 1)


def fire(database: Database, seconds_later: float, origin: Origin = MAIN, wanted: list[Kind] | None = None) -> int:
    """As if everything had been read up to a moment from now."""
    at = database.timers.now() + seconds_later
    return database.timers.fire(origin, at, quiet=QUIET, force=FORCE, wanted=wanted or [])


def events(url: str) -> list[dict[str, Any]]:
    return sorted(rows(url, tables.study_event), key=lambda row: (row["study_uid"], row["generation"]))


def test_a_study_is_quiet_once_and_a_late_instance_opens_the_next_generation(database: Database, url: str) -> None:
    first = described(1, 1, said={"00080060": ("CS", "CT")}, accession_number="A1")
    database.apply("main", {0: messages(first, described(2, 2, series_uid="1.1.2"))})
    assert fire(database, QUIET - 5) == 0
    assert fire(database, QUIET + 1) == 1
    assert fire(database, 10 * FORCE) == 0
    database.apply("main", {0: messages(first, begin=2)})
    assert fire(database, 10 * FORCE) == 0, "a redelivery opens nothing"
    database.apply("main", {0: messages(described(1, 9, file_size=7), begin=3)})
    assert fire(database, QUIET + 1) == 1, "a replacement does"
    made = events(url)
    assert [(one["generation"], one["event"]) for one in made] == [(1, "study.quiet"), (2, "study.quiet")]
    assert json.loads(made[0]["message"]) == {
        "schema_version": 1, "event": "study.quiet", "event_id": "t/1.1/1", "generation": 1, "tenant_id": "t",
        "study_uid": "1.1", "patient_id": "p1", "accession_number": "A1",
        "first_received": "2026-01-01T00:00:01.000000Z", "last_received": "2026-01-01T00:00:02.000000Z",
        "instances": 2, "bytes": 101 + 102,
        "series": [{"series_uid": "1.1.1", "modality": "CT", "instances": 1},
                   {"series_uid": "1.1.2", "modality": None, "instances": 1}],
        "nodes": ["node-1"],
    }  # fmt: skip
    assert json.loads(made[1]["message"])["bytes"] == 7 + 102


def test_a_study_that_does_not_become_quiet_is_forced(database: Database, url: str) -> None:
    database.apply("main", {0: messages(described(1, 1))})
    # Its last record has just been applied; it has been open for long.
    with database._engine.begin() as connection:
        connection.execute(tables.study_timer.update().values(opened=tables.study_timer.c.opened - FORCE))
    assert fire(database, 1) == 1
    assert [one["event"] for one in events(url)] == ["study.forced"]
    assert rows(url, tables.study_timer) == []


def test_timers_belong_to_the_partition_of_the_last_record(database: Database, url: str) -> None:
    database.apply("main", {0: messages(described(1)), 1: messages(described(2, study_uid="1.2", series_uid="1.2.1"))})
    assert fire(database, FORCE, Origin("main", frozenset([1]), 2)) == 1
    assert [one["study_uid"] for one in events(url)] == ["1.2"]
    assert fire(database, FORCE, Origin("other", frozenset([0]), 2)) == 0
    now, due = database.timers.due(Origin("main", frozenset([0, 1]), 2), quiet=0.0, force=FORCE)
    assert (due, now > 0) == ({0}, True)


def test_timers_of_partitions_that_a_topic_has_no_more_belong_to_the_first(database: Database) -> None:
    database.apply("main", {5: messages(described(1))})
    assert database.timers.due(Origin("main", frozenset([0]), 2), quiet=0.0, force=FORCE)[1] == {0}
    assert fire(database, FORCE, Origin("main", frozenset([1]), 2)) == 0
    assert fire(database, FORCE, Origin("main", frozenset([0]), 2)) == 1


def test_more_events_than_one_transaction_makes(database: Database, url: str) -> None:
    sent = [described(1, study_uid=f"1.{number}", series_uid=f"1.{number}.1") for number in range(450)]
    database.apply("main", {0: messages(*sent)})
    assert fire(database, FORCE) == 450
    assert len(events(url)) == 450


def test_an_event_is_pending_until_it_is_delivered(database: Database) -> None:
    database.apply("main", {0: messages(described(1), described(2, study_uid="1.2", series_uid="1.2.1"))})
    fire(database, FORCE, wanted=["to_publish"])
    first, second = database.timers.pending(MAIN, "to_publish", 10)
    assert {first.id, second.id} == {"t/1.1/1", "t/1.2/1"}
    assert database.timers.pending(MAIN, "to_run", 10) == []
    assert database.timers.pending(Origin("main", frozenset([1]), 2), "to_publish", 10) == []
    database.timers.done([first], "to_publish")
    assert database.timers.pending(MAIN, "to_publish", 10) == [second]


SCRIPT = """
import json, pathlib, sys
message = json.load(sys.stdin)
folder = pathlib.Path(sys.argv[1])
with (folder / "taken").open("a") as file:
    print(message["event_id"], file=file)
if (folder / message["event_id"].replace("/", "-")).exists():
    sys.exit(3)
"""


def row(number: int, study: str = "", generation: int = 1) -> Row:
    event = StudyEvent(("t", study or f"1.{number}", generation), "")
    return Row(number, StudyEvent(event.key, json.dumps({"event_id": event.id})))


class Clock:
    """Stands still but when it is set."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_a_command_gets_each_event_until_it_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(study_events, "time", clock)
    (tmp_path / "t-1.2-1").touch()
    command = Command([sys.executable, "-c", SCRIPT, str(tmp_path)], 30)

    async def run() -> list[list[int]]:
        outcomes = [await command.deliver([one]) for one in (row(1), row(2))]
        assert command.paused() == [("t", "1.2")]
        (tmp_path / "t-1.2-1").unlink()
        clock.now += 1.1
        assert command.paused() == []
        outcomes.append(await command.deliver([row(2)]))
        return [one.delivered for one in outcomes]

    assert asyncio.run(run()) == [[1], [], [2]]
    assert (tmp_path / "taken").read_text().split() == ["t/1.1/1", "t/1.2/1", "t/1.2/1"]


def test_events_of_a_study_whose_command_fails_wait_and_the_others_go_on(database: Database) -> None:
    database.apply("main", {0: messages(described(1), described(2, study_uid="1.2", series_uid="1.2.1"))})
    fire(database, FORCE, wanted=["to_run"])
    [first] = database.timers.pending(MAIN, "to_run", 1)
    [second] = database.timers.pending(MAIN, "to_run", 1, [first.key[:2]])
    assert first != second
    assert database.timers.pending(MAIN, "to_run", 1, [first.key[:2], second.key[:2]]) == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["/nowhere/command"], "No such file or directory"),
        ([sys.executable, "-c", "import threading; threading.Event().wait(60)"], "did not end within 0.3 s"),
        ([sys.executable, "-c", "import sys; sys.exit(2)"], "exit status 2"),
    ],
)
def test_a_command_that_fails_delivers_nothing(
    arguments: list[str], reason: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = asyncio.run(Command(arguments, 0.3 if "within" in reason else 30).deliver([row(1), row(2)]))
    assert outcome.delivered == []
    captured = capsys.readouterr()
    assert reason in captured.out + captured.err + caplog.text
