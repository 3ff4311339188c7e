"""From the outbox to the sink, whatever the sink does."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from storescp import _core
from storescp.engine import QueuedRecord, engine_config
from storescp.publish.jsonl import JsonLinesSink
from storescp.publish.publisher import Publisher
from storescp.publish.sink import SinkError
from storescp.settings import Settings
from support.instances import ct_slice

TOPICS = ("main", "log")


@dataclass(frozen=True)
class Row:
    id: int
    payload: str
    trace_id: str = ""
    key: str = ""
    pending: int = 3


def publish(sink: JsonLinesSink, topic: str, *payloads: str) -> None:
    async def run() -> None:
        await sink.start()
        await sink.publish(topic, [Row(number, payload) for number, payload in enumerate(payloads)])  # type: ignore[misc]
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


class FailingSink:
    """Refuses `failures` batches, then takes everything."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.published: dict[str, list[str]] = {topic: [] for topic in TOPICS}
        self.complete = threading.Event()

    async def start(self) -> None:
        return

    async def publish(self, topic: str, rows: Sequence[QueuedRecord]) -> None:
        if topic == "log" and self.failures:
            self.failures -= 1
            raise SinkError("no broker")
        self.published[topic] += [row.trace_id for row in rows]
        if all(len(published) >= 5 for published in self.published.values()):
            self.complete.set()

    async def stop(self) -> None:
        return


def open_engine(root: Path) -> _core.Engine:
    return _core.Engine(engine_config(Settings.model_validate({"local_storage": {"dicm_store_path": root}})))


def ingest(engine: _core.Engine, number: int) -> None:
    one = ct_slice(number, rows=4)
    status = engine.ingest(
        one.dataset, one.sop_class, one.sop_instance, one.transfer_syntax, "A", "B", "127.0.0.1", "t"
    )
    assert status == (0, "")


def test_a_topic_that_failed_is_tried_again_and_the_other_is_not(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "data")
    for number in range(5):
        ingest(engine, number)
    sink = FailingSink(failures=2)
    publisher = Publisher(engine, sink, TOPICS)
    publisher.start()
    assert sink.complete.wait(20)
    assert publisher.stop(5)
    assert sink.published["main"] == sink.published["log"]
    assert len(set(sink.published["main"])) == 5
    assert engine.outbox_backlog() == (0, 0)
    engine.close()


def test_stopping_with_a_dead_sink_keeps_the_records_for_the_next_start(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "data")
    ingest(engine, 1)
    publisher = Publisher(engine, FailingSink(failures=1_000_000), TOPICS)
    publisher.start()
    assert not publisher.stop(0.3)
    engine.close()
    again = open_engine(tmp_path / "data")
    assert again.outbox_wait(5)
    [row] = again.outbox_claim(10)
    assert row.pending == 0b10
    assert json.loads(row.payload)["trace_id"] == row.trace_id
    again.close()
