"""A proxy that keeps every byte a sender sent, so what was stored can be compared with what was on the wire."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from dataclasses import dataclass, field


@dataclass
class Sent:
    """One C-STORE as it was on the wire, and its status."""

    sop_class: str
    sop_instance: str
    dataset: bytes
    status: int | None = None


@dataclass
class _Link:
    upstream: bytearray = field(default_factory=bytearray)
    downstream: bytearray = field(default_factory=bytearray)


class RecordingProxy:
    """Forwards 127.0.0.1:`port` to the service. Use as a context manager; `stores()` afterwards."""

    def __init__(self, target_port: int) -> None:
        self._target = target_port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        self._links: list[_Link] = []
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, name="proxy-accept")
        self._acceptor.start()

    def __enter__(self) -> RecordingProxy:
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        for thread in self._threads:
            thread.join(30)

    def stores(self) -> list[Sent]:
        """Every C-STORE that was answered or not, in order."""
        return [sent for link in self._links for sent in _stores(bytes(link.upstream), bytes(link.downstream))]

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = _Link()
            self._links.append(link)
            for source, sink, record in ((client, server, link.upstream), (server, client, link.downstream)):
                thread = threading.Thread(target=_pump, args=(source, sink, record), name="proxy-pump")
                thread.start()
                self._threads.append(thread)


def _pump(source: socket.socket, sink: socket.socket, record: bytearray) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 18):
            record += data
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def _messages(stream: bytes) -> list[tuple[bool, bytes]]:
    """Command sets (True) and data sets (False) of one direction."""
    messages: list[tuple[bool, bytes]] = []
    parts: list[bytes] = []
    at = 0
    while at + 6 <= len(stream):
        kind, _, length = struct.unpack_from(">BBL", stream, at)
        body, at = stream[at + 6 : at + 6 + length], at + 6 + length
        inner = 0
        while kind == 4 and inner + 6 <= len(body):
            size, _, control = struct.unpack_from(">LBB", body, inner)
            parts.append(body[inner + 6 : inner + 4 + size])
            inner += 4 + size
            if control & 2:
                messages.append((bool(control & 1), b"".join(parts)))
                parts = []
    return messages


def _elements(command: bytes) -> dict[int, bytes]:
    elements, at = {}, 0
    while at + 8 <= len(command):
        group, number, length = struct.unpack_from("<HHL", command, at)
        elements[group << 16 | number] = command[at + 8 : at + 8 + length]
        at += 8 + length
    return elements


def _stores(upstream: bytes, downstream: bytes) -> list[Sent]:
    statuses = {
        elements[0x00000120]: struct.unpack("<H", elements[0x00000900])[0]
        for is_command, data in _messages(downstream)
        if is_command and (elements := _elements(data)).get(0x00000100) == b"\x01\x80"
    }
    sent: list[Sent] = []
    request: dict[int, bytes] | None = None
    for is_command, data in _messages(upstream):
        if is_command:
            elements = _elements(data)
            request = elements if elements[0x00000100] == b"\x01\x00" else None
        elif request is not None:
            uids = [request[tag].rstrip(b"\0 ").decode("latin-1") for tag in (0x00000002, 0x00001000)]
            sent.append(Sent(*uids, data, statuses.get(request[0x00000110])))
    return sent
