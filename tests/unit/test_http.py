"""The endpoints answer whatever hangs: the disk, the peers, or a thread of the service."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from storescp.engine import StorageState
from storescp.errors import CoreError
from storescp.http import connections
from storescp.http.health import Probe
from storescp.http.server import HttpServer
from storescp.liveness import HEARTBEAT_SECONDS, Liveness
from storescp.logs import Warnings
from storescp.settings import Settings
from support.waiting import wait_until
from support.web import get

ANSWER_SECONDS = 1.0
REQUEST = b"GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


class FakeEngine:
    """Answers at once, but while it hangs; or fails."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.answers.set()
        self.failure: Exception | None = None
        self.set_aside = 0

    def _wait(self) -> None:
        assert self.answers.wait(30)
        if self.failure is not None:
            raise self.failure

    def unavailable(self) -> str | None:
        self._wait()
        return None

    def outbox_lag(self, topic_number: int) -> tuple[int, int | None, int]:
        self._wait()
        return 7 + topic_number, int(time.time() * 1e6), 1

    def outbox_backlog(self) -> tuple[int, int, int]:
        self._wait()
        return 0, self.set_aside, 0

    def storage_state(self) -> StorageState:
        return StorageState(quarantined=3)


class Running:
    """A server of its own, with a service that is made up."""

    def __init__(self, folder: Path) -> None:
        self.engine = FakeEngine()
        self.liveness = Liveness()
        self.reasons: list[str] = []
        self.silent_since: dict[str, datetime] = {}
        settings = Settings.model_validate({"storage": {"root": folder}, "http": {"port": 0}})
        assert settings.http is not None
        ends = SimpleNamespace(timestamp=lambda: time.time() + 1e6)
        licence = SimpleNamespace(client_id="test", not_after=ends, days_left=lambda _now: 11)
        watch = SimpleNamespace(licence=licence, notes=list, state=lambda _now: "valid")
        probe = Probe(
            settings=settings,
            host="127.0.0.1",
            warned=Warnings(),
            engine=self.engine,  # type: ignore[arg-type]
            admission=SimpleNamespace(counts=lambda: (0, 0, {}), largest=lambda: (None, None)),  # type: ignore[arg-type]
            publisher=SimpleNamespace(published=Counter(), failing={}, silent_since=self.silent_since),  # type: ignore[arg-type]
            licence=watch,  # type: ignore[arg-type]
            refused_connections=dict,
            not_ready=lambda: self.reasons,
            dead=self.liveness.dead,
        )
        self.server = HttpServer(settings.http, probe)
        self.server.start()
        self.port = self.server.address[1]

    def ask(self, path: str) -> tuple[int, str]:
        """The answer, which comes within a second."""
        began = time.monotonic()
        answer = get(self.port, path)
        assert time.monotonic() - began < ANSWER_SECONDS, path
        return answer

    def ready(self) -> tuple[int, list[str]]:
        status, text = self.ask("/readyz")
        return status, json.loads(text)["reasons"]

    def metrics(self) -> dict[str, float]:
        status, text = self.ask("/metrics")
        assert status == 200
        return {
            f"{one.name}{{{','.join(one.labels.values())}}}" if one.labels else one.name: one.value
            for family in text_string_to_metric_families(text)
            for one in family.samples
        }

    def connections(self) -> int:
        """Those that are open at the server's end."""
        return len(self.server._server.server_state.connections)

    def connect(self, sent: bytes = b"", receive_buffer: int | None = None) -> socket.socket:
        client = socket.socket()
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.settimeout(10)
        client.connect(("127.0.0.1", self.port))
        client.sendall(sent)
        return client


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    one = Running(tmp_path)
    wait_until(lambda: one.server.is_alive() and get(one.port, "/livez")[0] == 200)
    yield one
    one.engine.answers.set()
    one.server.stop()
    assert not one.server.is_alive()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same deadlines, shorter."""
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.3)
    monkeypatch.setattr(connections, "TAKE_SECONDS", 0.6)
    monkeypatch.setattr(connections, "_LOOK_SECONDS", 0.05)


def is_closed(client: socket.socket) -> bool:
    """Whether the server has closed a connection; what it sent before stays unread."""
    events = select.poll()
    events.register(client, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
    return bool(events.poll(0))


def seconds_until_closed(client: socket.socket) -> float:
    return wait_until(lambda: is_closed(client))


def questions(part: str) -> int:
    """Threads that wait for an answer of the disk."""
    return sum(thread.name == f"storescp-http-{part}" for thread in threading.enumerate())


def test_while_the_disk_hangs_probes_and_metrics_answer(running: Running) -> None:
    before = running.metrics()
    assert before["storescp_scrape_stale{disk}"] == before["storescp_scrape_stale{outbox}"] == 0
    assert (before["storescp_ready"], before["storescp_outbox_pending{storage_queue}"]) == (1, 7)
    running.engine.answers.clear()
    for _ in range(3):
        assert running.ask("/livez") == (200, "alive\n")
        assert running.ready() == (503, ["storage does not answer"])
        found = running.metrics()
        assert found["storescp_scrape_stale{disk}"] == found["storescp_scrape_stale{outbox}"] == 1
        assert found["storescp_ready"] == 0
        # What was known last.
        for name in ("storescp_outbox_pending{storage_queue}", "storescp_outbox_set_aside{log_queue}"):
            assert found[name] == before[name]
        assert found["storescp_storage_free_bytes"] > 0
        status, text = running.ask("/status")
        assert status == 200
        assert json.loads(text)["reasons"] == ["storage does not answer"]
        assert json.loads(text)["topics"][0]["pending"] == 7
    # However often it is asked, one thread of each waits.
    assert (questions("disk"), questions("outbox")) == (1, 1)
    running.engine.answers.set()
    wait_until(lambda: running.ready() == (200, []))
    wait_until(lambda: running.metrics()["storescp_scrape_stale{outbox}"] == 0)


def test_a_disk_that_hangs_from_the_start_on_leaves_its_metrics_out(running: Running) -> None:
    running.engine.answers.clear()
    found = running.metrics()
    assert found["storescp_scrape_stale{disk}"] == found["storescp_scrape_stale{outbox}"] == 1
    assert "storescp_storage_free_bytes" not in found
    assert "storescp_outbox_pending{storage_queue}" not in found
    assert found["storescp_associations_active"] == 0
    status, text = running.ask("/status")
    assert status == 200
    assert (json.loads(text)["disk"], json.loads(text)["topics"]) == (None, [])


def test_many_questions_to_a_disk_that_hangs_do_not_hold_up_a_probe(running: Running) -> None:
    running.engine.answers.clear()
    paths = (b"/status", b"/metrics", b"/readyz", b"/events")
    with contextlib.ExitStack() as open_now:
        for number in range(120):
            open_now.enter_context(running.connect(REQUEST % paths[number % len(paths)]))
        for _ in range(5):
            assert running.ask("/livez") == (200, "alive\n")
            assert running.ready()[0] == 503


def test_a_disk_with_errors_is_a_reason_and_no_failure_of_the_endpoints(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.engine.failure = CoreError("outbox: disk I/O error")
    assert running.ready() == (503, ["outbox: disk I/O error"])
    assert running.metrics()["storescp_scrape_stale{outbox}"] == 1
    running.engine.failure = None
    assert running.ready() == (200, [])

    def refuse(path: Path) -> None:
        raise OSError(5, os.strerror(5), str(path))

    monkeypatch.setattr(os, "statvfs", refuse)
    assert running.ready() == (503, ["storage: Input/output error"])


def test_reasons_in_memory_are_told_beside_that_of_the_disk(running: Running) -> None:
    running.reasons = ["draining"]
    assert running.ready() == (503, ["draining"])
    running.engine.answers.clear()
    assert running.ready() == (503, ["draining", "storage does not answer"])


def test_livez_names_what_is_dead(running: Running) -> None:
    running.liveness.watch("publisher", lambda: False)
    running.liveness.watch("listener", lambda: True)
    running.liveness.watch("outbox", lambda: False)
    assert running.ask("/livez") == (503, "dead: publisher, outbox\n")
    # A dead thread does not come back by itself, and readiness is another question.
    assert running.ready() == (200, [])


def test_a_main_thread_that_does_not_come_round_is_dead_but_not_while_it_starts_or_drains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    liveness = Liveness()
    now += 10 * HEARTBEAT_SECONDS
    assert liveness.dead() == []
    liveness.beat()
    now += HEARTBEAT_SECONDS
    assert liveness.dead() == []
    now += 1
    assert liveness.dead() == ["main thread"]
    liveness.beat()
    assert liveness.dead() == []
    now += 2 * HEARTBEAT_SECONDS
    liveness.rest()
    assert liveness.dead() == []


@pytest.mark.parametrize("sent", [b"", b"GET /livez HTTP/1.1\r\nHost: x\r\n", REQUEST % b"/livez"])
@pytest.mark.usefixtures("quick")
def test_a_connection_without_a_complete_request_is_closed(running: Running, sent: bytes) -> None:
    """At its beginning, within a request, and behind an answer."""
    with running.connect(sent) as client:
        assert 0.2 < seconds_until_closed(client) < 2


@pytest.mark.usefixtures("quick")
def test_bytes_that_trickle_in_do_not_put_it_off(running: Running) -> None:
    for first in (b"GET /livez HTTP/1.1\r\n", REQUEST % b"/livez" + b"GET /livez HTTP/1.1\r\n"):
        with running.connect(first) as client:
            began = time.monotonic()

            def trickle() -> bool:
                with contextlib.suppress(OSError):
                    client.send(b"X-A: b\r\n")
                return is_closed(client)

            wait_until(trickle)
            assert time.monotonic() - began < 2


@pytest.mark.usefixtures("quick")
def test_a_reader_that_takes_nothing_is_closed(running: Running) -> None:
    # More answers than the system buffers.
    sent = REQUEST % b"/page.js" * 2000
    with contextlib.ExitStack() as open_now:
        for _ in range(5):
            client = open_now.enter_context(running.connect(receive_buffer=4096))
            client.setblocking(False)
            client.send(sent)
        assert running.ask("/livez")[0] == 200
        wait_until(lambda: running.connections() == 5)
        wait_until(lambda: running.connections() == 0)


@pytest.mark.usefixtures("quick")
def test_a_stream_stays_open_as_long_as_it_is_read(running: Running) -> None:
    with running.connect(REQUEST % b"/events") as client:
        received, began = b"", time.monotonic()
        # Longer than any deadline of a connection.
        while received.count(b"event: status") < 3:
            received += client.recv(65536)
        assert time.monotonic() - began > 1.5


def test_at_the_bound_the_connection_that_is_idle_longest_gives_way(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 8)
    with contextlib.ExitStack() as open_now:
        watcher = open_now.enter_context(running.connect(REQUEST % b"/events"))
        assert watcher.recv(12) == b"HTTP/1.1 200"
        idle = [open_now.enter_context(running.connect()) for _ in range(7)]
        assert not any(map(is_closed, idle))
        idle += [open_now.enter_context(running.connect()) for _ in range(3)]
        wait_until(lambda: [is_closed(one) for one in idle] == [True] * 3 + [False] * 7)
        # Whoever asks comes in, and who is being answered stays.
        assert running.ask("/readyz")[0] == 200
        assert not is_closed(watcher)


def test_where_all_are_being_answered_the_oldest_gives_way(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 4)
    with contextlib.ExitStack() as open_now:
        watchers = []
        for _ in range(4):
            watchers.append(open_now.enter_context(running.connect(REQUEST % b"/events")))
            assert watchers[-1].recv(12) == b"HTTP/1.1 200"
        assert running.ask("/livez") == (200, "alive\n")
        assert [is_closed(one) for one in watchers] == [True, False, False, False]


def test_a_probe_comes_through_a_flood_of_connections(running: Running) -> None:
    """Of 4,000 connections a second: many more overflow the listen queue, and TCP asks again only after a second."""
    over = threading.Event()
    opened = Counter[int]()

    def flood(number: int) -> None:
        while not over.wait(0.05):
            with contextlib.suppress(OSError):
                clients = [running.connect() for _ in range(50)]
                opened[number] += len(clients)
                for client in clients:
                    client.close()

    threads = [threading.Thread(target=flood, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        until = time.monotonic() + 2
        while time.monotonic() < until:
            assert running.ask("/livez") == (200, "alive\n")
            assert running.ready() == (200, [])
    finally:
        over.set()
        for thread in threads:
            thread.join(20)
    assert opened.total() > connections.MOST_CONNECTIONS


def test_a_websocket_does_not_leave_the_bounds(running: Running) -> None:
    upgrade = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    with running.connect(upgrade) as client:
        assert client.recv(12) == b"HTTP/1.1 200"


def test_records_that_do_not_get_through_are_told_while_it_is_ready(running: Running) -> None:
    assert running.ready() == (200, [])
    running.engine.set_aside = 2
    running.silent_since["main"] = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert running.ready() == (200, ["2 records set aside", "topic main gets nothing since 2026-01-02T03:04:05+00:00"])
    running.engine.set_aside = 1
    running.silent_since.clear()
    assert running.ready() == (200, ["1 record set aside"])
