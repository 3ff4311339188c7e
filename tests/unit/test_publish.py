"""From the outbox to the sink, whatever the sink does. Both engines."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from storescp import _core, outbox
from storescp.engine import Engine, QueuedRecord, engine_config
from storescp.errors import StorescpError
from storescp.publish import publisher as publisher_module
from storescp.publish.jsonl import JsonLinesSink
from storescp.publish.publisher import Publisher
from storescp.publish.sink import Outcome, SinkError
from storescp.pure.engine import PureEngine
from storescp.settings import Settings
from support.instances import ct_slice
from support.operator import Operator
from support.waiting import wait_until

TOPICS = ("main", "log")


@dataclass(frozen=True)
class Row:
    id: int
    payload: bytes
    ready: int = 0
    trace_id: str = ""
    key: str = ""


def publish(sink: JsonLinesSink, topic: str, *payloads: str) -> None:
    async def run() -> None:
        await sink.publish(topic, [Row(number, payload.encode()) for number, payload in enumerate(payloads)])
        await sink.stop()

    asyncio.run(run())


def test_json_lines_are_appended_and_a_torn_tail_is_cut(tmp_path: Path) -> None:
    file = tmp_path / "events" / "main.jsonl"
    sink = JsonLinesSink(tmp_path / "events", TOPICS)
    publish(sink, "main", '{"a":1}', '{"a":2}')
    with file.open("ab") as torn:
        torn.write(b'{"a":3' + b"x" * 100_000)
    publish(sink, "main", '{"a":4}')
    assert file.read_text() == '{"a":1}\n{"a":2}\n{"a":4}\n'
    file.write_bytes(b"torn from the start")
    publish(sink, "main", '{"a":5}')
    assert file.read_text() == '{"a":5}\n'


def test_a_folder_that_cannot_be_made_is_an_error_of_the_sink(tmp_path: Path) -> None:
    (tmp_path / "events").write_text("in the way")
    with pytest.raises(SinkError, match="File exists"):
        publish(JsonLinesSink(tmp_path / "events", TOPICS), "main", "{}")


class FakeSink:
    """Asks `behave(topic, row)` about each row: None delivers it; a text rejects it; an exception is raised."""

    def __init__(self, behave: Callable[[str, QueuedRecord], str | Exception | None]) -> None:
        self._behave = behave
        self.delivered: dict[str, list[QueuedRecord]] = defaultdict(list)
        self.seen = threading.Event()
        self.hangs = False

    async def publish(self, topic: str, rows: Sequence[QueuedRecord]) -> Outcome:
        if self.hangs:
            self.seen.set()
            await asyncio.Event().wait()
        outcome = Outcome()
        stuck: set[str] = set()
        for row in rows:
            answer = "stuck" if row.key in stuck else self._behave(topic, row)
            if isinstance(answer, Exception):
                raise answer
            if answer is None:
                outcome.delivered.append(row.id)
                self.delivered[topic].append(row)
            elif answer == "stuck":
                stuck.add(row.key)
                outcome.failure = "stuck"
            else:
                outcome.rejected.append((row.id, answer))
        self.seen.set()
        return outcome

    def complaint(self) -> str:
        return "a complaint"

    async def stop(self) -> None:
        return


def settings(root: Path) -> Settings:
    return Settings.model_validate({"storage": {"root": root, "durability": "none"}})


OpenEngine = Callable[[], Engine]


@pytest.fixture(params=["rust", "python"])
def open_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenEngine]:
    opened: list[Engine] = []

    def open_it() -> Engine:
        chosen = settings(tmp_path / "data")
        opened.append(_core.Engine(engine_config(chosen)) if request.param == "rust" else PureEngine(chosen))
        return opened[-1]

    yield open_it
    opened[-1].close()


def ingest(engine: Engine, number: int, study: str = "1.2.3") -> None:
    one = ct_slice(number, rows=4, study=study)
    status = engine.ingest(
        one.dataset, one.sop_class, one.sop_instance, one.transfer_syntax, "A", "B", "127.0.0.1", "t"
    )
    assert status == (0, "")


PublishFrom = Callable[..., Publisher]


@pytest.fixture
def publish_from(open_engine: OpenEngine) -> Iterator[PublishFrom]:
    """Starts publishers; those that still run at the end, because a test failed, are stopped before their engine."""
    started: list[Publisher] = []

    def start(*args: object, **options: object) -> Publisher:
        publisher = Publisher(*args, **options)  # type: ignore[arg-type]
        publisher.start()
        started.append(publisher)
        return publisher

    yield start
    for publisher in started:
        if publisher.is_running():
            publisher.stop(0)


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Operator]:
    operator = Operator(tmp_path / "data")
    yield operator
    operator.close()


def test_a_topic_that_failed_is_tried_again_and_does_not_hold_up_the_other(
    open_engine: OpenEngine, publish_from: PublishFrom, operator: Operator
) -> None:
    engine = open_engine()
    for number in range(5):
        ingest(engine, number)
    broken = threading.Event()
    broken.set()

    def behave(topic: str, row: QueuedRecord) -> Exception | None:
        return SinkError("no broker") if topic == "log" and broken.is_set() else None

    sink = FakeSink(behave)
    publisher = publish_from(engine, sink, TOPICS, gather_seconds=(0, 0))
    wait_until(lambda: len(sink.delivered["main"]) == 5 and publisher.published["log", "failed"] >= 2)
    status = operator.topic_status(1, "log")
    assert (status.pending, status.last_error) == (5, "no broker")
    assert status.failures >= 1
    assert publisher.silent_since.keys() == {"log"}
    broken.clear()
    wait_until(lambda: len(sink.delivered["log"]) == 5)
    assert publisher.stop(5)
    assert engine.outbox_backlog() == (0, 0, 0)
    assert [row.trace_id for row in sink.delivered["main"]] == [row.trace_id for row in sink.delivered["log"]]
    assert len({row.trace_id for row in sink.delivered["main"]}) == 5
    # What topics acknowledged rides on the next transaction.
    engine.outbox_flush()
    assert operator.topic_status(1, "log").failures == 0
    assert publisher.silent_since == {}
    assert publisher.published["main", "delivered"] == publisher.published["log", "delivered"] == 5


def test_stopping_with_a_dead_sink_keeps_the_records_for_the_next_start(
    open_engine: OpenEngine, publish_from: PublishFrom
) -> None:
    engine = open_engine()
    ingest(engine, 1)
    sink = FakeSink(lambda topic, row: SinkError("no broker") if topic == "log" else None)
    publisher = publish_from(engine, sink, TOPICS)
    assert not publisher.stop(0.5)
    engine.close()
    again = open_engine()
    assert again.outbox_claim(0, 0, 10) == []
    [row] = again.outbox_claim(1, 0, 10)
    assert json.loads(row.payload)["trace_id"] == row.trace_id


def test_a_sink_that_hangs_is_told_of_and_does_not_hang_the_end(
    open_engine: OpenEngine, publish_from: PublishFrom, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "_STALL_SECONDS", 0.05)
    engine = open_engine()
    ingest(engine, 1)
    sink = FakeSink(lambda topic, row: None)
    sink.hangs = True
    publisher = publish_from(engine, sink, TOPICS)
    wait_until(lambda: publisher.published["main", "failed"] >= 2)
    wait_until(lambda: publisher.silent_since.keys() == {"main", "log"})
    error = operator.topic_status(0, "main").last_error
    assert error is not None
    assert error.startswith("no acknowledgement: a complaint")
    began = time.monotonic()
    assert not publisher.stop(0.1)
    assert time.monotonic() - began < 5


def test_a_bug_of_the_sink_does_not_end_the_publisher(
    open_engine: OpenEngine, publish_from: PublishFrom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "_LONGEST_PAUSE_SECONDS", 0.05)
    engine = open_engine()
    ingest(engine, 1)
    failures = [ZeroDivisionError("ours"), None, None]
    sink = FakeSink(lambda topic, row: failures.pop(0))
    publisher = publish_from(engine, sink, TOPICS, gather_seconds=(0, 0))
    assert publisher.stop(10)


def test_a_failure_after_a_quiet_time_is_tried_again_as_soon_as_any_other(
    open_engine: OpenEngine, publish_from: PublishFrom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "_PAUSE_TO_READING_RATIO", 100.0)
    engine = open_engine()
    answers = iter(["stuck"])
    sink = FakeSink(lambda topic, row: next(answers, None) if topic == "log" else None)
    publisher = publish_from(engine, sink, TOPICS, gather_seconds=(0, 0))
    threading.Event().wait(0.5)
    ingest(engine, 1)
    wait_until(lambda: len(sink.delivered["log"]) == 1)
    assert publisher.stop(5)


def test_rows_wait_longer_for_company_behind_many_than_behind_few(
    open_engine: OpenEngine, publish_from: PublishFrom, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine()
    for number in range(40):
        ingest(engine, number)
    engine.outbox_flush()
    after_few, after_many = 0.012, 0.034
    waits: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        if seconds in (after_few, after_many):
            waits.append(seconds)
        await sleep(seconds)

    monkeypatch.setattr(asyncio, "sleep", noted)
    sink = FakeSink(lambda topic, row: None)
    publisher = publish_from(engine, sink, TOPICS, gather_seconds=(after_few, after_many))
    for number in range(40, 43):
        wait_until(lambda: all(len(sink.delivered[topic]) == number for topic in TOPICS))  # noqa: B023
        ingest(engine, number)
    assert publisher.stop(5)
    assert waits[:2] == [after_many] * 2
    assert after_few in waits


def test_the_rest_of_a_key_waits_for_its_first_row_and_other_keys_go_on(
    open_engine: OpenEngine, publish_from: PublishFrom
) -> None:
    engine = open_engine()
    for number in range(30):
        ingest(engine, number, study=f"1.2.{number % 3}")
    attempts: Counter[str] = Counter()

    def behave(topic: str, row: QueuedRecord) -> str | None:
        attempts[topic] += row.key == "t/1.2.1"
        return "stuck" if row.key == "t/1.2.1" and attempts[topic] < 4 else None

    sink = FakeSink(behave)
    publisher = publish_from(engine, sink, TOPICS, gather_seconds=(0, 0))
    wait_until(lambda: len(sink.delivered["main"]) == len(sink.delivered["log"]) == 20)
    assert {row.key for row in sink.delivered["main"]} == {"t/1.2.0", "t/1.2.2"}
    wait_until(lambda: len(sink.delivered["main"]) == len(sink.delivered["log"]) == 30)
    assert publisher.stop(10)
    for topic in TOPICS:
        rows = sink.delivered[topic]
        assert len({row.trace_id for row in rows}) == 30
        for key in {row.key for row in rows}:
            order = [row.ready for row in rows if row.key == key]
            assert order == sorted(order)


def test_a_refused_record_is_set_aside_listed_and_tried_again_on_demand(
    open_engine: OpenEngine, publish_from: PublishFrom, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "_ADOPT_SECONDS", 0.02)
    monkeypatch.setattr(publisher_module, "_WAIT_SECONDS", 0.1)
    engine = open_engine()
    for number in range(3):
        ingest(engine, number)
    refuses = threading.Event()
    refuses.set()
    sink = FakeSink(lambda topic, row: "too large" if topic == "main" and refuses.is_set() else None)
    publisher = publish_from(engine, sink, TOPICS, gather_seconds=(0, 0))
    wait_until(lambda: engine.outbox_backlog()[:2] == (0, 3))
    dead = operator.entries(TOPICS, dead=True, limit=10)
    assert [(one.state, one.topics, one.attempts, one.error) for one in dead] == [
        ("dead", ("main",), 1, "too large")
    ] * 3
    assert operator.entries(TOPICS, dead=False, limit=10) == []
    assert engine.outbox_lag(0) == (0, None, 3)
    wait_until(lambda: operator.topic_status(0, "main").last_error is not None)
    told = operator.topic_status(0, "main").last_error
    assert told in {f"record {one.trace_id} was refused and set aside: too large" for one in dead}
    assert operator.topic_status(1, "log").last_error is None
    refuses.clear()
    with pytest.raises(StorescpError, match="not set aside"):
        operator.request_retry(["unknown"])
    with capture_logs() as lines:
        over = lambda: [line["rows"] for line in lines if line["event"] == "outbox.retry_over"]  # noqa: E731 - used once
        assert operator.request_retry([dead[1].trace_id]) == 1
        wait_until(lambda: over() == [1])
        assert [row.trace_id for row in sink.delivered["main"]] == [dead[1].trace_id]
        assert operator.request_retry(None) == 2
        wait_until(lambda: over() == [1, 2])
    assert len(sink.delivered["main"]) == 3
    assert publisher.stop(5)
    assert engine.outbox_backlog() == (0, 0, 0)
    assert len(sink.delivered["log"]) == 3
    assert publisher.published["main", "rejected"] == 3


def test_delivered_rows_lose_their_payload_in_time_and_are_still_known(
    open_engine: OpenEngine, publish_from: PublishFrom, operator: Operator, tmp_path: Path
) -> None:
    engine = open_engine()
    ingest(engine, 1)
    publisher = publish_from(engine, FakeSink(lambda topic, row: None), TOPICS, gather_seconds=(0, 0))
    assert publisher.stop(5)
    engine.outbox_flush()
    row = lambda: operator.execute("SELECT payload, trace_id, path, size FROM instance")[0]  # noqa: E731 - read twice
    assert json.loads(row()[0])["trace_id"] == row()[1]
    publisher = publish_from(engine, FakeSink(lambda topic, row: None), TOPICS, keep_delivered=0.0)
    wait_until(lambda: row()[0] == "")
    assert publisher.stop(5)
    _, trace_id, path, size = row()
    assert trace_id
    assert (tmp_path / "data" / path).stat().st_size == size
    ingest(engine, 1)
    assert engine.outbox_backlog() == (0, 0, 0), "the identical instance is still known"


def test_an_outbox_of_another_version_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(StorescpError, match="nothing was stored there yet"):
        outbox.open_outbox(tmp_path)
    folder = tmp_path / ".outbox"
    folder.mkdir()
    connection = sqlite3.connect(folder / "outbox.sqlite")
    connection.executescript(_core.outbox_migrations()[0])
    with pytest.raises(StorescpError, match="start the service once"):
        outbox.open_outbox(tmp_path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StorescpError, match="update storescp"):
        outbox.open_outbox(tmp_path)
    for open_it in (lambda: _core.Engine(engine_config(settings(tmp_path))), lambda: PureEngine(settings(tmp_path))):
        with pytest.raises(StorescpError, match="newer program"):
            open_it()
