"""Whoever holds connections to the endpoints open, or does not read, holds up neither probes nor reception."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator

from prometheus_client.parser import text_string_to_metric_families

from storescp.http.connections import MOST_CONNECTIONS, REQUEST_SECONDS
from support.instances import CT, ct_slice
from support.scu import EXPLICIT, RawAssociation
from support.service import ServiceProcess
from support.waiting import wait_until
from support.web import get, http_port

StartService = Callable[..., ServiceProcess]
HTTP = {"STORESCP_HTTP__PORT": "0"}
REQUEST = b"GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
IDLE, SLOW = 500, 50
# What is sent by those who read nothing: more answers than the system buffers, and streams.
UNREAD = (REQUEST % b"/metrics" * 400, REQUEST % b"/page.js" * 400, REQUEST % b"/events")


class Persistent:
    """Connections that are opened again when they are closed. What is sent to them is not read."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._ends = select.poll()
        self._clients: dict[int, tuple[socket.socket, bytes]] = {}
        self.opened = 0
        for number in range(IDLE):
            self._connect(b"GET /livez HTTP/1.1\r\nHost: " if number % 2 else b"")
        for number in range(SLOW):
            self._connect(UNREAD[number % len(UNREAD)])

    def keep_open(self) -> None:
        """Opens again what was closed, for a tenth of a second."""
        for descriptor, _ in self._ends.poll(100):
            client, sent = self._clients.pop(descriptor)
            self._ends.unregister(descriptor)
            client.close()
            self._connect(sent)

    def close(self) -> None:
        for client, _ in self._clients.values():
            client.close()

    def _connect(self, sent: bytes) -> None:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(10)
        client.connect(("127.0.0.1", self._port))
        client.setblocking(False)
        with contextlib.suppress(OSError):  # it may be closed already
            client.send(sent)
        self._clients[client.fileno()] = client, sent
        self._ends.register(client, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
        self.opened += 1


@contextlib.contextmanager
def persistent(port: int) -> Iterator[Persistent]:
    clients = Persistent(port)
    over = threading.Event()

    def keep_open() -> None:
        while not over.is_set():
            clients.keep_open()

    thread = threading.Thread(target=keep_open)
    thread.start()
    try:
        yield clients
    finally:
        over.set()
        thread.join(20)
        clients.close()


def test_idle_connections_and_slow_readers_hold_up_neither_probes_nor_reception(start_service: StartService) -> None:
    service = start_service(env=HTTP)
    port = http_port(service)
    before = service.descriptors()
    stored = itertools.count()
    with persistent(port) as clients:
        began = time.monotonic()
        # Longer than a connection may be idle.
        while time.monotonic() - began < REQUEST_SECONDS + 1:
            for path in ("/livez", "/readyz", "/metrics"):
                asked = time.monotonic()
                status, text = get(port, path)
                assert time.monotonic() - asked < 1, path
                assert status == 200, text
            assert {family.name for family in text_string_to_metric_families(text)} > {"storescp_instances"}
            one = ct_slice(next(stored), rows=64)
            with RawAssociation(service.port, [(1, CT, [EXPLICIT])], timeout=1.0) as association:
                assert association.store(1, CT, one.sop_instance, one.dataset).status == 0
                association.release()
            # Those that are accepted at once come on top.
            assert service.descriptors() < before + MOST_CONNECTIONS * 3 // 2
        assert clients.opened > IDLE + SLOW
    service.records(count=next(stored))
    wait_until(lambda: service.descriptors() < before + 10)
    assert service.stop() == 0
    assert "Traceback" not in service.log()
